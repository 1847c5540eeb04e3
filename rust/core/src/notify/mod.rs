//! Notifications between driver and device.
//!
//! The device signals an [`EventFd`] as an interrupt. The driver rings a [`Doorbell`] as a kick: a QTest
//! write without waiting for the reply, or a write to an eventfd.

mod descriptor;
mod doorbell;
mod eventfd;

pub(crate) use descriptor::Descriptor;
pub use doorbell::{Doorbell, Kick, Notification};
pub use eventfd::EventFd;
pub(crate) use eventfd::{timespec, wait_readable};
