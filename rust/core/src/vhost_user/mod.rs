//! vhost-user backends (QEMU: `docs/interop/vhost-user.rst`): the interposer between a QEMU and a
//! backend, and [`frontend`], which replaces QEMU.
//!
//! The interposer learns QEMU's kick eventfds and inserts our own call eventfds.
//!
//! QEMU connects to our socket and we connect to the backend's. Messages and descriptors are forwarded
//! unchanged, with these exceptions:
//!
//! | message | what happens |
//! |---|---|
//! | SET_VRING_KICK | we keep a copy of the eventfd, so that our kick is one `write` and does not wake QEMU |
//! | SET_VRING_CALL | the backend gets our eventfd, even if QEMU removes its own |
//! | SET_VRING_BASE | in a packed ring, the driver sets the start position of a new backend |
//! | GET_VRING_BASE, RESET_OWNER, RESET_DEVICE | the ring stops: its kick eventfd is removed |
//! | the answer to GET_VRING_BASE | QEMU gets another position of a packed ring, which it would corrupt |
//! | GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES | in-band notifications, which turn kicks into messages, are removed |
//!
//! Back channels, in-flight memory, logs and dirty bitmaps are descriptors in messages and are
//! forwarded; their traffic does not pass through the interposer.
//!
//! QEMU blocks completely while a backend does not answer. Therefore QEMU can only connect after a
//! backend has answered us and offers what QEMU requires (`demands`), one QEMU at a time; it is
//! disconnected if the backend does not answer in time or gives an answer that QEMU would not accept
//! (`answers`). While QEMU creates its netdev it would retry forever, so a backend that fails then is
//! replaced (`stand_in`).
//!
//! `message` is the framing, `channel` one socket, `rewrite` the table above, `link` a connected QEMU
//! and backend, `service` whether the backend processes the rings, `socket` finds backends and accepts
//! QEMU, `interposer` is the API, `relay` the state machine of one interposer, `thread` the thread of
//! all.

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
