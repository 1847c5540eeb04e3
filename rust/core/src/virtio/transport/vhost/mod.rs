//! A virtio device whose registers are ours, and whose rings somebody else serves: vhost.
//!
//! vhost moves frames and nothing else: it has no status register, no configuration and no control
//! queue. What a driver reads and writes there is kept here ([`VhostDevice`]), and told to the
//! one that serves the rings as messages ([`Vhost`]), of which there are several kinds that
//! differ in how a message is said: over a socket (vhost-user), or as an ioctl of `/dev/vhost-net`
//! or `/dev/vhost-vdpa-N`.

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

/// One ring, as whoever serves it has to know it.
#[derive(Clone, Debug)]
pub struct Vring {
    /// Its number: even ones receive, odd ones transmit.
    pub index: u16,
    /// Its areas and its size, in the device's addresses.
    pub addresses: QueueAddresses,
    /// The same areas in this process, in the same order: vhost wants these.
    pub here: [u64; 3],
    /// Where it goes on: the next available index of a split ring; of a packed one the next available
    /// descriptor with its lap's wrap counter, and in the upper half the next used one.
    pub base: u32,
    /// What we signal when there is something in it.
    pub kick: Arc<Owned>,
    /// What is signalled to us; none where we look ourselves.
    pub call: Option<Arc<Owned>>,
}

/// Somebody who serves rings, as vhost speaks to him. Each call waits until it is known to have been
/// done, as far as he says so.
///
/// # Errors
/// Every call: [`crate::Error::Device`] where he refuses, breaks a rule or is gone,
/// [`crate::Error::Timeout`] where he does not answer, and what the caller's patience returns.
/// After an error there is nothing more to say to him: he is hung up on.
pub trait Vhost: Send {
    /// The feature bits that he offers.
    fn offered(&self) -> u64;
    /// The queue pairs that he has.
    fn pairs(&self) -> u16;
    /// From here on what follows may take so long in all.
    fn begin(&mut self, time: Duration);
    /// Takes possession, and tells the features in force.
    fn set_features(&mut self, features: u64) -> Result<()>;
    /// Shares the memory in which the rings and the buffers lie: the only one.
    fn set_memory(&mut self, region: &Arc<Region>) -> Result<()>;
    /// Tells the MTU, where he wants to know it.
    fn set_mtu(&mut self, mtu: u16) -> Result<()>;
    /// Tells the device status, and gives back what has become of it; the same where he has none.
    fn set_status(&mut self, status: Status) -> Result<Status>;
    /// Sets a ring up; it is not served before it is [enabled](Self::enable_ring).
    fn set_ring(&mut self, ring: &Vring) -> Result<()>;
    /// Has a ring be served, or frames of it dropped.
    fn enable_ring(&mut self, index: u16, on: bool) -> Result<()>;
    /// Has a ring be left alone, and returns when it is.
    fn stop_ring(&mut self, index: u16) -> Result<()>;
    /// Forgets what was set up, where he can; all rings are stopped.
    fn reset(&mut self) -> Result<()>;
    /// Whether he is gone, as opposed to not having done what he was asked for.
    fn is_gone(&self) -> bool;
}
