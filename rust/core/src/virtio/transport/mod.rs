//! How a driver reaches a virtio device's registers (VIRTIO 1.3, chapter 4), or does without them
//! (vhost).

pub mod legacy;
pub mod modern;
#[cfg(all(test, not(loom)))]
pub(crate) mod testing;
mod unplugged;
pub mod vhost;

pub use unplugged::Unplugged;

use super::{Features, Status};
use crate::Result;
use crate::memory::Iova;
use crate::notify::Doorbell;

/// MSI-X vector that means "none" (section 4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;

/// Where a queue's three areas lie and how it is set up (section 2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueAddresses {
    /// Entries.
    pub size: u16,
    /// Descriptor area.
    pub descriptors: Iova,
    /// Driver area (available ring; packed: driver event suppression).
    pub driver: Iova,
    /// Device area (used ring; packed: device event suppression).
    pub device: Iova,
    /// MSI-X table index, or [`NO_VECTOR`].
    pub vector: u16,
}

/// Access to one virtio device's registers.
pub trait Transport: Send + Sync {
    /// Whether this is the legacy interface: 32 feature bits, no VERSION_1 and no FEATURES_OK,
    /// queues of the device's own size in the layout of section 2.7.2.
    fn is_legacy(&self) -> bool {
        false
    }
    /// The features the device offers.
    fn device_features(&self) -> Result<Features>;
    /// Writes the features the driver accepts.
    fn set_driver_features(&self, features: Features) -> Result<()>;
    /// Reads the device status.
    fn status(&self) -> Result<Status>;
    /// Writes the status; an empty one resets and returns when the device says it is reset.
    fn set_status(&self, status: Status) -> Result<()>;
    /// Reads `out.len()` bytes of the device configuration at `offset`, consistently
    /// (generation checked, section 2.5.1); bytes past the device's configuration are an error.
    fn read_config(&self, offset: usize, out: &mut [u8]) -> Result<()>;
    /// Writes the device configuration.
    fn write_config(&self, offset: usize, data: &[u8]) -> Result<()>;
    /// How many queue pairs there are, where no control queue turns them on and off but
    /// [`Self::enable_pairs`].
    fn pairs(&self) -> Option<u16> {
        None
    }
    /// Has the first `count` pairs be served, and no other.
    fn enable_pairs(&self, _count: u16) -> Result<()> {
        Ok(())
    }
    /// How many queues the device has.
    fn queue_count(&self) -> Result<u16>;
    /// The largest size of a queue; 0: it does not exist.
    fn queue_max_size(&self, queue: u16) -> Result<u16>;
    /// Sets a queue up and enables it. An [`crate::Error::Device`] where the device refuses the vector.
    fn setup_queue(&self, queue: u16, addresses: &QueueAddresses) -> Result<()>;
    /// Resets one queue and returns when the device says it is reset (section 2.6.1, feature
    /// RING_RESET). [`Self::setup_queue`] sets it up again.
    fn reset_queue(&self, queue: u16) -> Result<()>;
    /// The queue's doorbell through this transport.
    fn doorbell(&self, queue: u16) -> Result<Doorbell>;
    /// Sets the vector of configuration changes, or [`NO_VECTOR`].
    fn set_config_vector(&self, vector: u16) -> Result<()>;
    /// Reads and clears the interrupt status (section 4.1.4.5); lowers INTx.
    fn take_isr(&self) -> Result<u8>;
    /// An [`crate::Error::QemuDied`] when the device is gone for good. Cheap.
    fn alive(&self) -> Result<()>;
    /// Asked every 100 ms by a caller that waits for the device: an error where it is to wait no longer,
    /// such as for a user's Ctrl-C.
    fn patience(&self) -> Result<()> {
        Ok(())
    }
}
