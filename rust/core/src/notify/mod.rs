//! How we tell the device, and how it tells us.
//!
//! An [`EventFd`] carries an interrupt to us. A [`Doorbell`] carries a kick to
//! the device: a QTest write that nobody waits for, or a write to an eventfd.

mod descriptor;
mod doorbell;
mod eventfd;

pub(crate) use descriptor::Descriptor;
pub use doorbell::{Doorbell, Kick, Notification};
pub use eventfd::EventFd;
pub(crate) use eventfd::{timespec, wait_readable};
