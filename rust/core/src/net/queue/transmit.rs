//! The transmit queue.

use super::{AnyRing, Common, Replay};
use crate::Result;
use crate::memory::{BufferId, Demand, Holder, Iova, Pool};
use crate::net::interrupts::wakeup::Interrupts;
use crate::net::packet::burst::Burst;
use crate::net::packet::header;
use crate::net::packet::header::copy_header;
use crate::net::queue::claim::{Reclaim, Slot};
use crate::net::queue::outage::Outage;
use crate::notify::{Doorbell, EventFd};
use crate::virtio::Features;
use std::sync::Arc;

/// Why [`crate::net::Port::send`] stopped before the last frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SendStop {
    /// The ring is full.
    RingFull,
    /// The pool has no free buffer.
    NoBuffer,
    /// This frame cannot be sent; with the reason.
    BadFrame(String),
}

/// Transmits: the device reads from buffers and returns them.
#[derive(Debug)]
pub(crate) struct TxQueue {
    pub(in crate::net) common: Common,
    /// With fewer free descriptors than this, finished buffers are taken back.
    reclaim_at: usize,
    /// Jumbo buffers with the device. They are few, so they are taken back early.
    jumbos: usize,
    replay: Option<Replay>,
    /// Unmet while frames wait for buffers.
    demand: Arc<Demand>,
    outage: Arc<Outage>,
    /// The negotiated features, which determine the possible offloads.
    pub(in crate::net) can: Features,
}

impl TxQueue {
    pub(in crate::net) fn new(common: Common) -> Self {
        let reclaim_at = usize::from(common.ring.size()) / 2;
        let outage = Outage::new(common.follower(), Some(common.stats.clone()));
        let (outage, can) = (Arc::new(outage), Features::NONE);
        let demand = common.pool.demand_to_send();
        Self { common, reclaim_at, jumbos: 0, replay: None, demand, outage, can }
    }

    /// Replaces the ring while suspended.
    pub(in crate::net) fn replace_ring(&mut self, ring: AnyRing) {
        self.common.replace_ring(ring);
        self.outage.follow(self.common.follower());
    }

    /// The backend is gone: see [`crate::virtio::ring::Ring::reoffer`].
    pub(in crate::net) fn reoffer(&mut self) {
        let Common { ring, pool, header_len, .. } = &mut self.common;
        ring.reoffer(0, |token| {
            // Where a replay's lie only the replay knows.
            let header = *header_len as u64;
            (!Replay::issued(token)).then(|| Iova(pool.data_iova(token).0.wrapping_sub(header)))
        });
    }

    /// Sets what is signalled when there are buffers again for frames that had none.
    pub(in crate::net) fn told_by(self, bell: Option<Arc<EventFd>>) -> Self {
        if let Some(bell) = bell {
            self.demand.ring(move || bell.signal());
        }
        self
    }

    /// Senders take buffers with it.
    pub(in crate::net) fn demand(&self) -> &Arc<Demand> {
        &self.demand
    }

    /// Sets the negotiated features.
    pub(in crate::net) fn with_features(self, can: Features) -> Self {
        Self { can, ..self }
    }

    pub(in crate::net) fn outage(&self) -> Arc<Outage> {
        self.outage.clone()
    }

    /// Entries of the ring.
    pub(crate) fn size(&self) -> usize {
        usize::from(self.common.ring.size())
    }
    /// Bytes queued so far.
    #[inline]
    pub(crate) fn bytes(&self) -> u64 {
        self.common.stats.bytes.get()
    }

    pub(crate) fn has_replay(&self) -> bool {
        self.replay.is_some()
    }
    /// Loads frames to be sent repeatedly.
    pub(crate) fn load(&mut self, replay: Replay) {
        replay.clear_headers(&self.common);
        self.replay = Some(replay);
    }
    /// Ends the replay: its buffers go to the pool, those with the device later.
    pub(crate) fn unload(&mut self) {
        if let Some(replay) = &mut self.replay {
            replay.end();
        }
        self.retire_replay();
    }

    fn retire_replay(&mut self) {
        if self.replay.as_mut().is_some_and(|replay| replay.retire(&self.common.pool)) {
            self.replay = None;
        }
    }

    /// Sends up to `most` frames of the replay; returns their number and bytes.
    #[inline]
    pub(crate) fn send_replay(&mut self, most: usize) -> Result<(usize, u64)> {
        self.expect_back(most)?;
        match &mut self.replay {
            Some(replay) if !self.common.suspended => Ok(replay.send(&mut self.common, most)),
            _ => Ok((0, 0)),
        }
    }

    /// The same for frames that `write` writes: see [`Replay::send_written`].
    #[inline]
    pub(crate) fn send_written(
        &mut self,
        most: usize,
        write: impl FnMut(usize, *mut u8) -> u32,
    ) -> Result<(usize, u64)> {
        self.expect_back(most)?;
        match &mut self.replay {
            Some(replay) if !self.common.suspended => {
                Ok(replay.send_written(&mut self.common, most, write))
            }
            _ => Ok((0, 0)),
        }
    }

    /// Takes buffers of the replay back where there may be too few for so many frames.
    #[inline]
    fn expect_back(&mut self, most: usize) -> Result<()> {
        // A replay of jumbo buffers may be much smaller than the ring.
        let few = self.replay.as_ref().is_some_and(|replay| replay.ready() < most);
        if few || self.common.ring.free() < self.reclaim_at.max(most) {
            self.reclaim()?;
        }
        Ok(())
    }

    /// Frames that are with the device.
    pub(crate) fn in_flight(&self) -> usize {
        self.common.ring.in_flight()
    }

    /// Sends copies of frames of another memory; the burst keeps what did not fit.
    #[cold]
    pub(crate) fn send_copies(&mut self, burst: &mut Burst) -> Result<usize> {
        self.release()?;
        let room = self.room()?.min(burst.len());
        let mut ids = Vec::with_capacity(room);
        let mut got = self.common.pool.take_to_send(&mut ids, room, &self.demand);
        if got < room && self.common.ring.in_flight() > 0 {
            // The pool cannot ask a queue that is in use.
            self.reclaim()?;
            got += self.common.pool.take_to_send(&mut ids, room - got, &self.demand);
        }
        if got < room {
            self.common.stats.no_buffer.add((room - got) as u64);
        }
        let pool = &self.common.pool;
        let mut staged = Burst::new(pool.clone());
        staged.expect_those_of(burst);
        let mut consumed = 0;
        for &common in &ids {
            let Some((from, length)) = burst.frame(consumed) else { break };
            let mut id = common;
            if length > pool.capacity() {
                pool.give(&[common]);
                if length > pool.largest_frame() {
                    self.common.stats.bad_length.add(1);
                    consumed += 1;
                    continue;
                }
                let Some(jumbo) = pool.take_jumbo_to_send(&self.demand) else {
                    self.common.stats.no_buffer.add(1);
                    consumed += 1;
                    continue;
                };
                id = jumbo;
            }
            consumed += 1;
            // SAFETY: two buffers of two owners, both at least `length` bytes.
            unsafe {
                std::ptr::copy_nonoverlapping(from, pool.data_ptr(id), length);
                copy_header(from, pool.data_ptr(id), burst.headers());
            }
            staged.push(id, length as u32);
        }
        let sent = self.send_burst(&mut staged)?;
        self.common.stats.copied.add(sent as u64);
        burst.clear_front(consumed);
        Ok(sent)
    }

    /// Queues a burst's frames with their offload metadata, in order, as many as fit; these leave
    /// the burst. Returns their number.
    #[inline]
    pub(crate) fn send_burst(&mut self, burst: &mut Burst) -> Result<usize> {
        if burst.headers() > 0 {
            return self.send_on(burst);
        }
        let sent = self.send(burst.ids(), burst.lengths())?;
        burst.moved(sent);
        Ok(sent)
    }

    /// Queues frames in buffers of the pool, in order, as many as fit; returns their number. These
    /// buffers then belong to the device.
    #[inline]
    pub(in crate::net) fn send(&mut self, ids: &[BufferId], lengths: &[u32]) -> Result<usize> {
        self.queue::<true>(ids, lengths)
    }

    /// The same for frames with prepared headers.
    pub(in crate::net) fn send_ready(
        &mut self,
        ids: &[BufferId],
        lengths: &[u32],
    ) -> Result<usize> {
        self.queue::<false>(ids, lengths)
    }

    #[inline]
    fn queue<const CLEAR: bool>(&mut self, ids: &[BufferId], lengths: &[u32]) -> Result<usize> {
        if self.common.ring.free() < self.reclaim_at.max(ids.len())
            || self.jumbos > 0
            || self.common.pool.starved()
        {
            self.reclaim()?;
        }
        let common = &mut self.common;
        let pool = &common.pool;
        let header_len = common.header_len;
        let mut bytes = 0u64;
        let count = if common.suspended { 0 } else { ids.len().min(lengths.len()) };
        let added = common.ring.add(false, count, |i| {
            let (id, length) = (ids[i], lengths[i]);
            let (data, iova) = pool.data(id);
            if CLEAR {
                // SAFETY: the buffer is ours until publish, its data is 64-byte aligned and has
                // DATA_OFFSET (64) bytes in front.
                unsafe { header::clear(data, header_len) };
            }
            bytes += u64::from(length);
            let header = iova.0.wrapping_sub(header_len as u64);
            (id, Iova(header), length + header_len as u32)
        });
        if added > 0 {
            if common.pool.any_jumbo(&ids[..added]) {
                self.jumbos += jumbos_among(&ids[..added], &common.pool);
            }
            common.stats.packets.add(added as u64);
            common.stats.bytes.add(bytes);
            common.publish();
            if common.stats.watch.on() {
                let frame = |i: usize| (ids[i], lengths[i]);
                common.stats.watch.see(&common.pool, added, frame, None);
            }
            common.show_use();
        }
        if added < ids.len() {
            common.stats.ring_full.add((ids.len() - added) as u64);
        }
        Ok(added)
    }

    /// Returns the buffers of finished frames to the pool.
    pub(crate) fn reclaim(&mut self) -> Result<()> {
        let common = &mut self.common;
        let stash = &mut common.stash;
        let replay = &mut self.replay;
        let result = common.ring.pop(usize::MAX, |token, _| sort(token, stash, replay));
        let popped = *result.as_ref().unwrap_or(&stash.len());
        common.stats.completed.add(popped as u64);
        if !stash.is_empty() {
            if self.jumbos > 0 {
                self.jumbos -= jumbos_among(stash, &common.pool).min(self.jumbos);
            }
            common.pool.give(stash);
            stash.clear();
        }
        self.retire_replay();
        self.common.show_use();
        result?;
        Ok(())
    }

    /// Takes finished buffers back early if they may be needed: jumbo buffers, because they are few
    /// (a replay may have any), and all while a queue is starved.
    #[inline]
    pub(crate) fn release(&mut self) -> Result<()> {
        if self.jumbos > 0 || self.replay.is_some() || self.common.pool.starved() {
            self.reclaim()
        } else {
            Ok(())
        }
    }

    /// Empties the ring; returns how many frames were still with the device.
    fn empty(&mut self) -> u64 {
        self.demand.withdraw();
        let stash = &mut self.common.stash;
        let replay = &mut self.replay;
        let mut left = 0;
        self.common.ring.reset(|token| {
            left += 1;
            sort(token, stash, replay);
        });
        self.common.pool.give(stash);
        stash.clear();
        self.jumbos = 0;
        self.common.show_use();
        left
    }

    /// The device was reset, or is gone: counts what it had finished, and the rest as lost. The
    /// queue behaves as a full one before [`Self::resume`].
    pub(in crate::net) fn suspend(&mut self) {
        self.outage.close();
        // An error is due to the lost device; what it reported before was valid.
        let _ = self.reclaim();
        let lost = self.empty();
        self.common.stats.lost.add(lost);
        self.retire_replay();
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

    /// How many frames fit now.
    #[inline]
    pub(crate) fn room(&mut self) -> Result<usize> {
        if self.common.ring.free() < self.reclaim_at {
            self.reclaim()?;
        }
        Ok(if self.common.suspended { 0 } else { self.common.ring.free() })
    }
}

impl Reclaim for TxQueue {
    fn reclaim_all(&mut self) {
        self.empty();
        self.unload();
    }
    fn end(&mut self, reset: bool) {
        self.reclaim_all();
        self.common.end(reset);
    }
}

/// A transmit queue is ready when half of it is free: one interrupt for many frames. One that
/// lacked buffers is ready when there are some, whoever frees them.
impl Interrupts for TxQueue {
    fn ready(&mut self) -> bool {
        // The next call finds the error: the ring stays poisoned.
        self.reclaim().is_err()
            || (!self.common.suspended
                && !self.demand.is_unmet()
                && self.common.ring.free() >= self.reclaim_at.max(1))
    }
    fn enable(&mut self) -> bool {
        loop {
            if self.ready() {
                self.common.disable_interrupts();
                return true;
            }
            if self.common.suspended {
                return false;
            }
            let missing = match self.reclaim_at.max(1).checked_sub(self.common.ring.free()) {
                Some(missing @ 1..) if !self.demand.is_unmet() => missing,
                _ => 1,
            };
            if !self.common.ring.enable_interrupts_after(missing as u16) {
                return false;
            }
        }
    }
    fn disable(&mut self) {
        self.common.disable_interrupts();
    }
}

impl Holder for Slot<TxQueue> {
    fn release(&self) -> bool {
        // It is in use, and may be about to send.
        let Some(mut queue) = self.try_lock() else { return true };
        if let Err(error) = queue.reclaim() {
            // The ring is poisoned: its next user gets the error.
            log::debug!("no buffers from a transmit queue: {error}");
            return false;
        }
        queue.common.ring.in_flight() > 0
    }
}

#[cold]
fn jumbos_among(ids: &[BufferId], pool: &Pool) -> usize {
    ids.iter().filter(|&&id| pool.is_jumbo(id)).count()
}

/// Returns a finished buffer to its origin.
#[inline]
fn sort(token: u32, stash: &mut Vec<BufferId>, replay: &mut Option<Replay>) {
    match replay {
        Some(replay) if Replay::issued(token) => replay.take_back(token),
        _ => stash.push(token),
    }
}
