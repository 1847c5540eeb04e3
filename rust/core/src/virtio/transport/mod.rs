//! Transports: access to a virtio device's registers (VIRTIO 1.3, chapter 4), or to a vhost backend.

pub mod legacy;
pub mod modern;
#[cfg(all(test, not(loom)))]
pub(crate) mod testing;
mod unplugged;
pub mod vhost;

pub use unplugged::Unplugged;

use super::{Features, Status};
use crate::memory::Iova;
use crate::notify::Doorbell;
use crate::{Error, Result};
use std::time::{Duration, Instant};

/// The MSI-X vector for "none" (section 4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;

/// The addresses and settings of a queue (section 2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueAddresses {
    /// The number of entries.
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

/// How long a reset may take.
const RESET_TIMEOUT: Duration = Duration::from_secs(5);

/// Waits until the device reports an empty status (section 4.1.4.3.2).
fn await_reset(status: impl Fn() -> Result<Status>) -> Result<()> {
    let deadline = Instant::now() + RESET_TIMEOUT;
    loop {
        let now = status()?;
        if now.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Error::Device(format!(
                "the device was reset but still reports status {:#x} after {RESET_TIMEOUT:?}",
                now.bits()
            )));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Access to one virtio device's registers.
pub trait Transport: Send + Sync {
    /// Whether this is the legacy interface: 32 feature bits, no VERSION_1 and no FEATURES_OK,
    /// queues of the device's own size in the layout of section 2.7.2.
    fn is_legacy(&self) -> bool {
        false
    }
    /// Reads the features that the device offers.
    fn device_features(&self) -> Result<Features>;
    /// Writes the features that the driver accepts.
    fn set_driver_features(&self, features: Features) -> Result<()>;
    /// Reads the device status.
    fn status(&self) -> Result<Status>;
    /// Writes the device status. An empty one resets the device; returns when the reset is complete.
    fn set_status(&self, status: Status) -> Result<()>;
    /// Reads `out.len()` bytes of the device configuration at `offset`, consistently (section 2.5.1).
    /// Fails past the end of the configuration.
    fn read_config(&self, offset: usize, out: &mut [u8]) -> Result<()>;
    /// Writes the device configuration.
    fn write_config(&self, offset: usize, data: &[u8]) -> Result<()>;
    /// The number of queue pairs, if [`Self::enable_pairs`] enables them instead of the control queue.
    fn pairs(&self) -> Option<u16> {
        None
    }
    /// Enables the first `count` pairs and disables the others.
    fn enable_pairs(&self, _count: u16) -> Result<()> {
        Ok(())
    }
    /// The number of queues.
    fn queue_count(&self) -> Result<u16>;
    /// The largest size of a queue; 0: it does not exist.
    fn queue_max_size(&self, queue: u16) -> Result<u16>;
    /// Sets up and enables a queue. [`crate::Error::Device`] if the device refuses the vector.
    fn setup_queue(&self, queue: u16, addresses: &QueueAddresses) -> Result<()>;
    /// Resets one queue (section 2.6.1, feature RING_RESET); returns when the reset is complete.
    /// [`Self::setup_queue`] sets it up again.
    fn reset_queue(&self, queue: u16) -> Result<()>;
    /// The queue's doorbell.
    fn doorbell(&self, queue: u16) -> Result<Doorbell>;
    /// Sets the vector of configuration changes, or [`NO_VECTOR`].
    fn set_config_vector(&self, vector: u16) -> Result<()>;
    /// Reads and clears the interrupt status (section 4.1.4.5), which lowers INTx.
    fn take_isr(&self) -> Result<u8>;
    /// [`crate::Error::QemuDied`] if the device is lost. Cheap.
    fn alive(&self) -> Result<()>;
    /// Returns once the device has done all that was written before: a write returns earlier, and
    /// QEMU drops the frames that come between its return and DRIVER_OK.
    ///
    /// # Errors
    /// As for [`Self::status`].
    fn settled(&self) -> Result<()> {
        self.status().map(|_| ())
    }
    /// Called every 100 ms by a caller that waits for the device. An error ends the wait, such as after
    /// a user's Ctrl-C.
    fn check_signals(&self) -> Result<()> {
        Ok(())
    }
}
