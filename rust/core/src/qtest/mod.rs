//! The QTest client: port I/O, MMIO, interrupts and the virtual clock over one socket (QEMU:
//! `docs/devel/testing/qtest.rst`, `system/qtest.c`).
//!
//! QEMU aborts on a malformed line, so only complete, valid lines are written, and arguments are checked
//! first.
//!
//! `wire` formats and parses lines (pure functions), `pipeline` matches replies with requests and
//! handles interrupts and the end (no I/O, so that loom can model it), `kicks` are writes that never
//! wait, `connection` is the socket and its reading thread, `client` the API.

mod client;
mod clock;
mod connection;
#[cfg(all(test, not(loom)))]
mod ending_tests;
mod kept;
mod kicks;
mod pipeline;
mod signals;
mod stepping;
mod sync;
#[cfg(all(any(test, feature = "testing"), not(loom)))]
pub mod testing;
#[cfg(all(test, not(loom)))]
mod tests;
mod wire;

pub use client::QTest;
pub use signals::SignalCheck;
