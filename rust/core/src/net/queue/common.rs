//! Shared by both directions.

use super::AnyRing;
use crate::memory::{BufferId, Pool};
use crate::net::packet::header::HEADER_LEN;
use crate::net::stats::LiveQueueStats;
use crate::notify::Doorbell;
use crate::virtio::ring::Follower;
use crate::virtio::transport::QueueAddresses;
use std::sync::Arc;

/// Shared by both directions.
#[derive(Debug)]
pub(in crate::net) struct Common {
    pub(in crate::net) index: u16,
    pub(in crate::net) ring: AnyRing,
    pub(in crate::net) pool: Arc<Pool>,
    pub(in crate::net) doorbell: Doorbell,
    pub(in crate::net) stats: Arc<LiveQueueStats>,
    /// Bytes of the header in front of each packet (section 5.1.6.1).
    pub(in crate::net) header_len: usize,
    /// Buffers between the pool and the ring.
    pub(in crate::net) stash: Vec<BufferId>,
    /// The device is away: nothing is passed to it.
    pub(super) suspended: bool,
}

impl Common {
    pub(in crate::net) fn new(
        index: u16,
        ring: AnyRing,
        pool: Arc<Pool>,
        doorbell: Doorbell,
        stats: Arc<LiveQueueStats>,
    ) -> Self {
        let stash = Vec::with_capacity(usize::from(ring.size()));
        stats.ring_size.set(ring.size().into());
        let header_len = HEADER_LEN;
        Self { index, ring, pool, doorbell, stats, header_len, stash, suspended: false }
    }

    /// Sets the header length.
    pub(in crate::net) fn with_header(self, header_len: usize) -> Self {
        Self { header_len, ..self }
    }

    /// The position of the device, for other threads.
    pub(super) fn follower(&self) -> Follower {
        self.ring.follower()
    }

    /// The parameters of the queue for the device.
    pub(in crate::net) fn addresses(&self, vector: u16) -> QueueAddresses {
        let (descriptors, driver, device) = self.ring.addresses();
        QueueAddresses { size: self.ring.size(), descriptors, driver, device, vector }
    }

    /// Publishes what was added, and rings the doorbell if the device wants it.
    pub(super) fn publish(&mut self) {
        if self.ring.publish() {
            self.doorbell.ring(self.index, self.ring.next_available());
            self.stats.kicks.add(1);
        } else {
            self.stats.kicks_suppressed.add(1);
        }
    }

    /// Updates the ring's fill level for statistics.
    #[inline]
    pub(super) fn show_use(&self) {
        let size = usize::from(self.ring.size());
        self.stats.ring_used.set(size.saturating_sub(self.ring.free()) as u64);
    }

    pub(in crate::net) fn disable_interrupts(&mut self) {
        self.ring.disable_interrupts();
    }

    /// Replaces an empty ring with another one.
    pub(super) fn replace_ring(&mut self, ring: AnyRing) {
        self.ring = ring;
        self.disable_interrupts();
    }

    /// Nothing moves any more; the ring is empty.
    pub(super) fn end(&mut self, reset: bool) {
        self.suspended = true;
        if reset {
            self.ring.end();
        }
    }

    pub(super) fn resume(&mut self, doorbell: Doorbell) {
        self.doorbell = doorbell;
        self.suspended = false;
    }
}
