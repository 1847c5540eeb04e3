//! Our own front-end: a vhost-user backend serves our rings, and no QEMU is there (QEMU:
//! `docs/interop/vhost-user.rst`).
//!
//! `wire` is one connection, message by message, for a thread that waits; `session` what a front-end
//! says there; `supervised` a device that has a backend for as long as there is one, and looks
//! for the next when it went.

mod session;
mod supervised;
mod wire;

pub use session::Session;
pub use supervised::{FrontEnd, FrontEndOptions, FrontEndStats};
pub use wire::{Said, Wire};
