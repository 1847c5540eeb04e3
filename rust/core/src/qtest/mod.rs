//! The QTest wire client: port I/O, MMIO, interrupts and the virtual clock
//! over one socket (QEMU: `docs/devel/testing/qtest.rst`, `system/qtest.c`).
//!
//! QEMU aborts on a malformed line, so only whole, valid lines leave here, and
//! bad arguments are refused before anything is written.
//!
//! Five parts: `wire` (lines and replies, pure functions), `pipeline` (which
//! reply belongs to whom, interrupts, the end; no I/O, so that loom can model
//! it), `kicks` (writes that never wait), `connection` (the socket and the thread
//! that reads it), `client` (what users hold).

mod client;
mod clock;
mod connection;
mod kept;
mod kicks;
mod patience;
mod pipeline;
mod stepping;
mod sync;
#[cfg(all(any(test, feature = "testing"), not(loom)))]
pub mod testing;
#[cfg(all(test, not(loom)))]
mod tests;
mod wire;

pub use client::QTest;
pub use patience::Patience;
