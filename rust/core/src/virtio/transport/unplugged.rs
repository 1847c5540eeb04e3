//! The transport of an unplugged device, whose addresses may belong to another device.

use super::{QueueAddresses, Transport};
use crate::notify::Doorbell;
use crate::virtio::{Features, Status};
use crate::{Error, Result};
use std::sync::Arc;

/// Replaces the transport of an unplugged device. Accesses no register.
pub struct Unplugged(Arc<dyn Transport>);

impl Unplugged {
    /// Replaces this transport, whose QEMU still runs.
    pub fn new(before: Arc<dyn Transport>) -> Self {
        Self(before)
    }

    fn away<T>() -> Result<T> {
        Err(Error::Timeout(
            "the device is unplugged at the moment and will be plugged again".into(),
        ))
    }
}

impl Transport for Unplugged {
    fn is_legacy(&self) -> bool {
        self.0.is_legacy()
    }
    fn device_features(&self) -> Result<Features> {
        Self::away()
    }
    fn set_driver_features(&self, _features: Features) -> Result<()> {
        Self::away()
    }
    fn status(&self) -> Result<Status> {
        Self::away()
    }
    fn set_status(&self, _status: Status) -> Result<()> {
        Self::away()
    }
    fn read_config(&self, _offset: usize, _out: &mut [u8]) -> Result<()> {
        Self::away()
    }
    fn write_config(&self, _offset: usize, _data: &[u8]) -> Result<()> {
        Self::away()
    }
    fn pairs(&self) -> Option<u16> {
        self.0.pairs()
    }
    fn enable_pairs(&self, _count: u16) -> Result<()> {
        Self::away()
    }
    fn queue_count(&self) -> Result<u16> {
        Self::away()
    }
    fn queue_max_size(&self, _queue: u16) -> Result<u16> {
        Self::away()
    }
    fn setup_queue(&self, _queue: u16, _addresses: &QueueAddresses) -> Result<()> {
        Self::away()
    }
    fn reset_queue(&self, _queue: u16) -> Result<()> {
        Self::away()
    }
    fn doorbell(&self, _queue: u16) -> Result<Doorbell> {
        Self::away()
    }
    fn set_config_vector(&self, _vector: u16) -> Result<()> {
        Self::away()
    }
    /// It raises no interrupt, unlike devices on the same line.
    fn take_isr(&self) -> Result<u8> {
        Ok(0)
    }
    fn alive(&self) -> Result<()> {
        self.0.alive()
    }
    fn check_signals(&self) -> Result<()> {
        self.0.check_signals()
    }
}
