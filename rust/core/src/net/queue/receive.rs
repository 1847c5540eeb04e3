//! The receive queue.

use super::{AnyRing, Common};
use crate::Result;
use crate::memory::{BufferId, Demand, Iova, JUMBO_SIZE};
use crate::net::interrupts::too_long::TooLong;
use crate::net::interrupts::wakeup::Interrupts;
use crate::net::packet::burst::Burst;
use crate::net::packet::header::Front;
use crate::net::queue::claim::Reclaim;
use crate::net::queue::merge::{self, Merger};
use crate::net::queue::outage::Outage;
use crate::notify::{Doorbell, EventFd};
use crate::virtio::ring::Follower;
use std::sync::Arc;

/// Minimum number of buffers posted at a time, if the ring is large enough.
const REFILL: usize = 32;
/// Most buffers that transmission leaves in the pool for each receive queue.
const KEPT: usize = 64;

/// Receives: the device writes into buffers that were posted earlier.
#[derive(Debug)]
pub(crate) struct RxQueue {
    pub(in crate::net) common: Common,
    refill_at: usize,
    /// With fewer buffers in the ring, the pool must report when there are more: the device may be
    /// unable to use these few, and so never interrupt.
    low: usize,
    demand: Arc<Demand>,
    /// Whether the last refill left the demand unmet.
    starved: bool,
    /// Missing buffers that have been counted.
    missing: usize,
    /// Where `VIRTIO_NET_F_MRG_RXBUF` was negotiated.
    merger: Option<Box<Merger>>,
    /// Frames that were taken from the ring before it was emptied; the next to be received.
    held: Option<Box<Burst>>,
    /// What the device writes in front of frames.
    front: Front,
}

impl RxQueue {
    /// `merge`: the device may spread a frame over several buffers.
    pub(in crate::net) fn new(common: Common, merge: bool) -> Self {
        let size = usize::from(common.ring.size());
        let refill_at = REFILL.min(size / 4).max(1);
        let low = lowest(&common, merge);
        let demand = common.pool.demand_to_receive(KEPT.min(size / 4));
        let merger = merge.then(|| Box::new(Merger::new(common.ring.size())));
        Self {
            common,
            refill_at,
            low,
            demand,
            starved: false,
            missing: 0,
            merger,
            held: None,
            front: Front::NONE,
        }
    }

    /// A buffer in a gap has a header and nothing else.
    pub(in crate::net) fn outage(&self) -> Arc<Outage> {
        Arc::new(Outage::new(self.follower(), None))
    }

    fn follower(&self) -> Follower {
        self.common.follower().with_gap_length(self.gap())
    }

    /// Replaces the ring while suspended.
    pub(in crate::net) fn replace_ring(&mut self, ring: AnyRing, outage: &Outage) {
        self.common.replace_ring(ring);
        outage.follow(self.follower());
    }

    /// The next device writes each frame into one buffer. While suspended.
    pub(in crate::net) fn stop_merging(&mut self) {
        self.merger = None;
        self.low = lowest(&self.common, false);
    }

    /// The backend is gone: see [`crate::virtio::ring::Ring::reoffer`].
    pub(in crate::net) fn reoffer(&mut self) {
        let gap = self.gap();
        let Common { ring, pool, header_len, .. } = &mut self.common;
        ring.reoffer(gap, |id| Some(Iova(pool.common_iova(id).0.wrapping_sub(*header_len as u64))));
        if let Some(merger) = &mut self.merger {
            merger.end_behind(ring.used());
        }
    }

    fn gap(&self) -> u32 {
        self.common.header_len as u32
    }

    /// Sets what is signalled when there are buffers again for a starved queue.
    pub(in crate::net) fn told_by(self, bell: Option<Arc<EventFd>>) -> Self {
        if let Some(bell) = bell {
            self.demand.ring(move || bell.signal());
        }
        self
    }

    /// Sets who is told of frames that fit no buffer.
    pub(in crate::net) fn telling(mut self, too_long: Arc<TooLong>) -> Self {
        if let Some(merger) = &mut self.merger {
            merger.tell(too_long);
        }
        self
    }

    /// Sets what the device writes in front of frames.
    pub(in crate::net) fn with_front(self, front: Front) -> Self {
        Self { front, ..self }
    }

    /// Appends up to `max` received frames to the burst, and posts fresh buffers.
    #[inline]
    pub(crate) fn recv(&mut self, max: usize, burst: &mut Burst) -> Result<usize> {
        if burst.front != self.front {
            if !burst.is_empty() {
                return self.recv_beside(max, burst);
            }
            burst.expect(self.front);
        }
        if self.common.suspended || self.held.is_some() {
            return Ok(self.recv_held(max, burst));
        }
        let taken = self.take(max, burst)?;
        if self.common.ring.free() >= self.refill_at {
            self.refill();
        }
        if taken > 0 {
            self.common.show_use();
        }
        Ok(taken)
    }

    /// The same for a burst with frames of a queue with other headers.
    #[cold]
    fn recv_beside(&mut self, max: usize, burst: &mut Burst) -> Result<usize> {
        let mut fresh = Burst::new(self.common.pool.clone());
        let result = self.recv(max, &mut fresh);
        burst.append(&mut fresh);
        result
    }

    /// Appends up to `max` received frames to the burst.
    #[inline]
    fn take(&mut self, max: usize, burst: &mut Burst) -> Result<usize> {
        let before = burst.len();
        let taken = match &mut self.merger {
            None => recv_whole(&mut self.common, max, burst),
            Some(merger) => merger.recv(&mut self.common, max, burst),
        };
        let Common { stats, pool, .. } = &self.common;
        if stats.watch.on() {
            let (ids, lengths) = (&burst.ids()[before..], &burst.lengths()[before..]);
            if let Some(now) = stats.watch.see(pool, ids.len(), |i| (ids[i], lengths[i]), None) {
                burst.stamp(now);
            }
        }
        taken
    }

    #[cold]
    fn recv_held(&mut self, max: usize, burst: &mut Burst) -> usize {
        let Some(held) = &mut self.held else { return 0 };
        let taken = held.hand_over(max, burst);
        if held.is_empty() {
            self.held = None;
        }
        taken
    }

    /// The device was reset, or is gone: keeps what had arrived, and takes all buffers back.
    /// Nothing is passed to the device before [`Self::resume`].
    pub(in crate::net) fn suspend(&mut self) {
        let fresh = || {
            let mut burst = Box::new(Burst::new(self.common.pool.clone()));
            burst.expect(self.front);
            burst
        };
        let mut held = self.held.take().unwrap_or_else(fresh);
        // An error is due to the lost device; what it reported before was valid.
        while matches!(self.take(usize::from(u16::MAX), &mut held), Ok(1..)) {}
        self.empty();
        self.held = (!held.is_empty()).then_some(held);
        self.common.suspended = true;
    }

    /// How the device is notified.
    pub(in crate::net) fn doorbell(&self) -> Doorbell {
        self.common.doorbell.clone()
    }

    /// The device is back, and is notified by this doorbell.
    pub(in crate::net) fn resume(&mut self, doorbell: Doorbell) {
        self.common.resume(doorbell);
    }

    /// Posts a buffer for every free descriptor, as far as available.
    pub(in crate::net) fn refill(&mut self) {
        let common = &mut self.common;
        if common.suspended {
            return;
        }
        let room = common.ring.free();
        let mut missing = 0;
        self.starved = false;
        if common.stash.len() < room {
            let wanted = room - common.stash.len();
            let has = usize::from(common.ring.size()).saturating_sub(wanted);
            let least = self.low.saturating_sub(has).min(wanted);
            let got = common.pool.take_to_receive(&mut common.stash, wanted, least, &self.demand);
            self.starved = got < least;
            missing = wanted - got;
        }
        // Each is counted once, however often it is missing.
        if missing != self.missing {
            common.stats.no_buffer.add(missing.saturating_sub(self.missing) as u64);
            self.missing = missing;
        }
        let count = room.min(common.stash.len());
        if count == 0 {
            return;
        }
        let first = common.stash.len() - count;
        let ids = &common.stash[first..];
        let pool = &common.pool;
        let header_len = common.header_len;
        let length = (pool.capacity() + header_len) as u32;
        let added = common.ring.add(true, count, |i| {
            let id = ids[i];
            (id, Iova(pool.common_iova(id).0.wrapping_sub(header_len as u64)), length)
        });
        common.stash.drain(first..first + added);
        common.publish();
        common.show_use();
    }

    fn empty(&mut self) {
        self.demand.withdraw();
        (self.starved, self.missing) = (false, 0);
        let stash = &mut self.common.stash;
        self.common.ring.reset(|id| stash.push(id));
        if let Some(merger) = &mut self.merger {
            merger.reset(stash);
        }
        self.common.pool.give(stash);
        stash.clear();
        self.common.show_use();
    }
    /// Posts a burst's buffers again.
    #[inline]
    pub(crate) fn recycle(&mut self, burst: &mut Burst) {
        let pool = &self.common.pool;
        if !Arc::ptr_eq(burst.pool(), pool) || pool.any_exported() || pool.any_jumbo(burst.ids()) {
            burst.clear();
            return;
        }
        self.common.stash.extend_from_slice(burst.ids());
        burst.moved(usize::MAX);
    }
    /// Whether [`Self::recv`] would find something now.
    pub(in crate::net) fn has_used(&self) -> bool {
        self.common.ring.has_used() || self.has_kept()
    }
    /// Whether the pool has buffers again for a ring that lacks some: [`Self::recv`] posts them.
    fn is_fed(&self) -> bool {
        self.starved && !self.demand.is_unmet()
    }
    /// Enables the interrupt; true if there may be something already.
    pub(in crate::net) fn enable_interrupts(&mut self) -> bool {
        self.common.ring.enable_interrupts() || self.has_kept()
    }
    /// Whether there are frames that were taken from the ring earlier.
    fn has_kept(&self) -> bool {
        self.held.is_some() || self.merger.as_ref().is_some_and(|merger| merger.has_more())
    }
    /// Bytes received so far.
    #[inline]
    pub(crate) fn bytes(&self) -> u64 {
        self.common.stats.bytes.get()
    }
}

impl Reclaim for RxQueue {
    fn reclaim_all(&mut self) {
        self.held = None;
        self.empty();
    }
    fn end(&mut self, reset: bool) {
        self.reclaim_all();
        self.common.end(reset);
    }
}

impl Interrupts for RxQueue {
    fn ready(&mut self) -> bool {
        self.has_used() || self.is_fed()
    }
    fn enable(&mut self) -> bool {
        self.enable_interrupts() || self.is_fed()
    }
    fn disable(&mut self) {
        self.common.disable_interrupts();
    }
}

/// With fewer buffers than this in the ring there may be no room for the longest frame.
fn lowest(common: &Common, merge: bool) -> usize {
    let size = usize::from(common.ring.size());
    let frame = if merge { JUMBO_SIZE.div_ceil(common.pool.capacity()) + 1 } else { 1 };
    frame.max(size / 4).min(size)
}

/// A buffer that came back with no frame in it.
#[cold]
#[inline(never)]
fn without_frame(
    id: BufferId,
    written: u32,
    header_len: usize,
    stash: &mut Vec<BufferId>,
    short: &mut Option<u32>,
) {
    if (written as usize) < header_len {
        *short = Some(written);
    }
    stash.push(id);
}

/// Received frames, each in one buffer.
#[inline]
fn recv_whole(common: &mut Common, max: usize, burst: &mut Burst) -> Result<usize> {
    let Common { ring, stats, stash, header_len, .. } = common;
    let header_len = *header_len;
    let max = max.min(ring.in_flight());
    let (mut bytes, mut short) = (0u64, None);
    let (popped, taken) = burst.fill(max, |burst| {
        let popped = ring.pop(max, |id, written| {
            // At least one byte of a frame behind the header.
            let length = (written as usize).wrapping_sub(header_len);
            if (written as usize) > header_len && burst.push(id, length as u32) {
                bytes += length as u64;
            } else {
                without_frame(id, written, header_len, stash, &mut short);
            }
        });
        (popped, burst.len())
    });
    if taken > 0 {
        stats.packets.add(taken as u64);
        stats.bytes.add(bytes);
    }
    let popped = popped?;
    if let Some(written) = short {
        return Err(merge::short(written, header_len));
    }
    if popped > taken {
        stats.bad_length.add((popped - taken) as u64);
    }
    Ok(taken)
}
