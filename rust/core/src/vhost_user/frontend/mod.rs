//! A vhost-user front-end: a backend processes our rings without a QEMU (QEMU:
//! `docs/interop/vhost-user.rst`).
//!
//! `wire` is one connection with blocking calls; `session` the messages of a front-end; `supervised` a
//! device that reconnects when its backend is lost.

mod session;
mod supervised;
mod wire;

pub use session::Session;
pub use supervised::{FrontEnd, FrontEndOptions, FrontEndStats};
pub use wire::{Received, Wire};
