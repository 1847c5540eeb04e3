//! vhost-user backends (QEMU: `docs/interop/vhost-user.rst`): what stands between one and a QEMU, and,
//! in [`frontend`], what takes QEMU's place.
//!
//! The interposer is between the two to learn the kick eventfds and to put our own call eventfds in.
//!
//! QEMU connects to our socket and we to the backend's. Messages and descriptors pass in
//! both directions as they are, with these exceptions:
//!
//! | message | what happens |
//! |---|---|
//! | SET_VRING_KICK | we keep the eventfd too: our kick is one `write`, and QEMU sleeps on |
//! | SET_VRING_CALL | the backend gets our eventfd, also where QEMU withdraws its own |
//! | SET_VRING_BASE | in a packed ring the driver knows better where a new backend goes on |
//! | GET_VRING_BASE, RESET_OWNER, RESET_DEVICE | the ring stops: its kick is forgotten |
//! | the answer to GET_VRING_BASE | a packed ring is hidden from QEMU, which would spoil it |
//! | GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES | without in-band notifications, which would make messages of kicks |
//!
//! Back channels, in-flight memory, logs and dirty bitmaps are descriptors in messages, and
//! pass like any other: their traffic does not come by here.
//!
//! QEMU blocks as a whole while a backend does not answer it. So it is let in only when a
//! backend has answered us, and has what QEMU will insist on (`demands`), one QEMU at a time,
//! and is let go when the backend owes it an answer for too long, or gives one that QEMU would
//! not take (`answers`). While QEMU makes its netdev
//! it would try again for ever, so a backend that fails then is replaced (`stand_in`).
//!
//! `message` is framing, `channel` one socket, `rewrite` the table above, `link` a QEMU and
//! a backend, `service` whether the one serves the other, `socket` finding either,
//! `interposer` what users hold, `relay` what is done for one, `thread` the thread that does it for all.

mod answers;
mod channel;
mod demands;
mod finding;
pub mod frontend;
mod interposer;
mod line;
mod link;
mod message;
mod relay;
mod retry;
mod rewrite;
mod service;
mod shared;
mod socket;
mod stand_in;
mod stopping;
#[cfg(all(any(test, feature = "testing"), not(loom)))]
pub mod testing;
mod thread;

pub use crate::virtio::transport::vhost::Driver;
pub use interposer::{Backend, Interposer, Stats, Terms};
pub use retry::Retry;
