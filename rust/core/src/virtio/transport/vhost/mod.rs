//! vhost: a virtio device whose registers are in this process and whose rings a backend processes.
//!
//! A vhost backend only moves frames: it has no status register, no configuration and no control queue.
//! [`VhostDevice`] implements these for the driver and configures the backend through [`Vhost`], whose
//! implementations differ in the transport: messages on a socket (vhost-user), or ioctls of
//! `/dev/vhost-net` or `/dev/vhost-vdpa-N`.

mod device;
mod driver;
mod registers;

pub use device::{VhostDevice, VhostOptions};
pub use driver::Driver;

use super::QueueAddresses;
use crate::memory::Region;
use crate::virtio::Status;
use crate::{Owned, Result};
use std::sync::Arc;
use std::time::Duration;

/// A ring's setup for a backend.
#[derive(Clone, Debug)]
pub struct Vring {
    /// Its number: even ones receive, odd ones transmit.
    pub index: u16,
    /// Its size and the device addresses of its areas.
    pub addresses: QueueAddresses,
    /// The addresses of the same areas in this process, which vhost uses.
    pub here: [u64; 3],
    /// The start position: the next available index of a split ring; for a packed ring the next
    /// available descriptor with its wrap counter, and in the upper half the next used one.
    pub base: u32,
    /// Signalled by us when buffers are available.
    pub kick: Arc<Owned>,
    /// Signalled by the backend when buffers are used; none if we poll.
    pub call: Option<Arc<Owned>>,
}

/// A vhost backend. Each call waits until the backend has confirmed it, if it can.
///
/// # Errors
/// Every call: [`crate::Error::Device`] if the backend refuses, breaks a rule or is gone,
/// [`crate::Error::Timeout`] if it does not answer, and the error of the caller's
/// [`SignalCheck`](crate::qtest::SignalCheck). After an error the connection is closed.
pub trait Vhost: Send {
    /// The feature bits that it offers.
    fn offered(&self) -> u64;
    /// The number of its queue pairs.
    fn pairs(&self) -> u16;
    /// Limits the total time of the following calls.
    fn begin(&mut self, time: Duration);
    /// Takes ownership of the backend and sets the negotiated features.
    fn set_features(&mut self, features: u64) -> Result<()>;
    /// Shares the memory of the rings and the buffers.
    fn set_memory(&mut self, region: &Arc<Region>) -> Result<()>;
    /// Sets the MTU, if the backend supports that.
    fn set_mtu(&mut self, mtu: u16) -> Result<()>;
    /// Sets the device status. Returns the backend's status, or the same if it has none.
    fn set_status(&mut self, status: Status) -> Result<Status>;
    /// Sets up a ring, which remains disabled until [`Self::enable_ring`].
    fn set_ring(&mut self, ring: &Vring) -> Result<()>;
    /// Enables or disables a ring.
    fn enable_ring(&mut self, index: u16, on: bool) -> Result<()>;
    /// Stops a ring; returns when it is stopped.
    fn stop_ring(&mut self, index: u16) -> Result<()>;
    /// Resets the backend, if it supports that; all rings are stopped.
    fn reset(&mut self) -> Result<()>;
    /// Whether the backend is gone.
    fn is_gone(&self) -> bool;
}
