//! A receive and a transmit queue: a ring, and the packet buffers that pass through it.

use super::burst::Burst;
use super::header::{self, HEADER_LEN};
use super::merge::{self, Merger};
use super::onward::copy_header;
use super::slot::Slot;
use super::stats::LiveQueueStats;
use super::vacancy::Vacancy;
use super::wakeup::Interrupts;
use crate::Result;
use crate::memory::{BufferId, Holder, Iova, Pool, Region};
use crate::notify::Doorbell;
use crate::virtio::Features;
use crate::virtio::ring::{Follower, PackedRing, Ring, RingOptions, SplitRing, Violation};
use crate::virtio::transport::QueueAddresses;
use std::collections::VecDeque;
use std::sync::Arc;

/// Buffers are posted to the device in groups of at least so many, where the ring is large enough.
const REFILL: usize = 32;

/// Either ring. One branch for each burst picks the code that was compiled for it.
#[derive(Debug)]
pub(crate) enum AnyRing {
    Split(SplitRing),
    Packed(PackedRing),
}

macro_rules! each {
    ($any:expr, $ring:ident => $body:expr) => {
        match $any {
            AnyRing::Split($ring) => $body,
            AnyRing::Packed($ring) => $body,
        }
    };
}

impl AnyRing {
    pub(crate) fn new(packed: bool, region: &Arc<Region>, options: &RingOptions) -> Result<Self> {
        Ok(if packed {
            Self::Packed(PackedRing::new(region, options)?)
        } else {
            Self::Split(SplitRing::new(region, options)?)
        })
    }
    pub(super) fn addresses(&self) -> (Iova, Iova, Iova) {
        each!(self, ring => ring.addresses())
    }
    pub(crate) fn size(&self) -> u16 {
        each!(self, ring => ring.size())
    }
    fn free(&self) -> usize {
        each!(self, ring => ring.free())
    }
    pub(super) fn has_used(&self) -> bool {
        each!(self, ring => ring.has_used())
    }
    fn enable_interrupts(&mut self) -> bool {
        each!(self, ring => ring.enable_interrupts())
    }
    fn enable_interrupts_after(&mut self, n: u16) -> bool {
        each!(self, ring => ring.enable_interrupts_after(n))
    }
    pub(super) fn disable_interrupts(&mut self) {
        each!(self, ring => ring.disable_interrupts());
    }
    #[inline]
    fn add(
        &mut self,
        writable: bool,
        count: usize,
        buffer: impl FnMut(usize) -> (u32, Iova, u32),
    ) -> usize {
        each!(self, ring => ring.add(writable, count, buffer))
    }
    #[inline]
    pub(crate) fn pop(
        &mut self,
        max: usize,
        used: impl FnMut(u32, u32),
    ) -> Result<usize, Violation> {
        each!(self, ring => ring.pop(max, used))
    }
    #[inline]
    pub(super) fn add_chain(
        &mut self,
        token: u32,
        readable: &[(Iova, u32)],
        writable: &[(Iova, u32)],
    ) -> bool {
        each!(self, ring => ring.add_chain(token, readable, writable))
    }
    /// See [`Ring::next_available`].
    pub(super) fn next_available(&self) -> u16 {
        each!(self, ring => ring.next_available())
    }
    pub(super) fn publish(&mut self) -> bool {
        each!(self, ring => ring.publish())
    }
    pub(super) fn reset(&mut self, returned: impl FnMut(u32)) {
        each!(self, ring => ring.reset(returned));
    }
}

/// What both directions have.
#[derive(Debug)]
pub(crate) struct Common {
    pub(crate) index: u16,
    pub(crate) ring: AnyRing,
    pub(crate) pool: Arc<Pool>,
    pub(crate) doorbell: Doorbell,
    pub(crate) stats: Arc<LiveQueueStats>,
    /// Bytes of the header in front of each packet (section 5.1.6.1).
    pub(super) header_len: usize,
    /// Buffers on their way between the pool and the ring.
    pub(super) stash: Vec<BufferId>,
    /// The device is away: nothing goes to it.
    suspended: bool,
}

impl Common {
    pub(crate) fn new(
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

    /// With a header of this length.
    pub(super) fn with_header(self, header_len: usize) -> Self {
        Self { header_len, ..self }
    }

    /// What tells others how far the device has come.
    fn follower(&self) -> Follower {
        each!(&self.ring, ring => ring.follower())
    }

    /// What the device is told of the queue.
    pub(crate) fn addresses(&self, vector: u16) -> QueueAddresses {
        let (descriptors, driver, device) = self.ring.addresses();
        QueueAddresses { size: self.ring.size(), descriptors, driver, device, vector }
    }

    /// Makes what was added visible, and rings if the device wants to be told.
    fn publish(&mut self) {
        if self.ring.publish() {
            self.doorbell.ring(self.index, self.ring.next_available());
            self.stats.kicks.add(1);
        } else {
            self.stats.kicks_suppressed.add(1);
        }
    }

    /// Shows how full the ring is to whoever asks for statistics.
    #[inline]
    fn show_use(&self) {
        let size = usize::from(self.ring.size());
        self.stats.ring_used.set(size.saturating_sub(self.ring.free()) as u64);
    }

    pub(crate) fn disable_interrupts(&mut self) {
        self.ring.disable_interrupts();
    }

    fn resume(&mut self, doorbell: Option<Doorbell>) {
        if let Some(doorbell) = doorbell {
            self.doorbell = doorbell;
        }
        self.suspended = false;
    }

    /// Received frames, each in one buffer.
    #[inline]
    fn recv_whole(&mut self, max: usize, burst: &mut Burst) -> Result<usize> {
        let header_len = self.header_len;
        let mut bytes = 0u64;
        let (mut short, mut taken) = (None, 0usize);
        let popped = self.ring.pop(max, |id, written| {
            match (written as usize).checked_sub(header_len) {
                // At least one byte of a frame behind the header.
                Some(length) if length > 0 => {
                    bytes += length as u64;
                    taken += 1;
                    burst.push(id, length as u32);
                }
                Some(_) => self.stash.push(id),
                None => {
                    short = Some(written);
                    self.stash.push(id);
                }
            }
        });
        if taken > 0 {
            self.stats.packets.add(taken as u64);
            self.stats.bytes.add(bytes);
        }
        let popped = popped?;
        if let Some(written) = short {
            return Err(merge::short(written, header_len));
        }
        if popped > taken {
            self.stats.bad_length.add((popped - taken) as u64);
        }
        Ok(taken)
    }
}

/// Receives: the device writes into buffers that were posted before.
#[derive(Debug)]
pub(crate) struct RxQueue {
    pub(crate) common: Common,
    refill_at: usize,
    /// Where `VIRTIO_NET_F_MRG_RXBUF` was negotiated.
    merger: Option<Box<Merger>>,
    /// Frames that were taken from the ring before it was emptied; the next to be received.
    held: Option<Box<Burst>>,
    /// What bursts are told of the frames' headers: their length, 0 where they say nothing.
    headers: u8,
}

impl RxQueue {
    /// `merge`: the device may spread a frame over several buffers.
    pub(crate) fn new(common: Common, merge: bool) -> Self {
        let refill_at = REFILL.min(usize::from(common.ring.size()) / 4).max(1);
        let merger = merge.then(|| Box::new(Merger::new(common.ring.size())));
        Self { common, refill_at, merger, held: None, headers: 0 }
    }

    /// A buffer in a gap is one with a header and nothing behind it.
    pub(super) fn vacancy(&self) -> Arc<Vacancy> {
        let follower = self.common.follower().closing_with(self.common.header_len as u32);
        Arc::new(Vacancy::new(follower, None))
    }

    /// The device says in a header of so many bytes what is left to do to a frame.
    pub(super) fn with_offloads(self, headers: u8) -> Self {
        Self { headers, ..self }
    }

    /// Appends up to `max` received frames to the burst, and posts fresh buffers.
    #[inline]
    pub(crate) fn recv(&mut self, max: usize, burst: &mut Burst) -> Result<usize> {
        if burst.headers() != usize::from(self.headers) {
            if !burst.is_empty() {
                return self.recv_beside(max, burst);
            }
            burst.expect_headers(self.headers);
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

    /// Appends up to `max` received frames to the burst.
    #[inline]
    fn take(&mut self, max: usize, burst: &mut Burst) -> Result<usize> {
        let before = burst.len();
        let taken = match &mut self.merger {
            None => self.common.recv_whole(max, burst),
            Some(merger) => merger.recv(&mut self.common, max, burst),
        };
        let Common { stats, pool, .. } = &self.common;
        if stats.classes.on() {
            let (ids, lengths) = (&burst.ids()[before..], &burst.lengths()[before..]);
            stats.classes.count(pool, ids.len(), |i| (ids[i], lengths[i]));
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
    /// Nothing goes to the device before [`Self::resume`].
    pub(super) fn suspend(&mut self) {
        let fresh = || {
            let mut burst = Box::new(Burst::new(self.common.pool.clone()));
            burst.expect_headers(self.headers);
            burst
        };
        let mut held = self.held.take().unwrap_or_else(fresh);
        // An error is one of the device that is gone; what it said before was right.
        while matches!(self.take(usize::from(u16::MAX), &mut held), Ok(1..)) {}
        self.empty();
        self.held = (!held.is_empty()).then_some(held);
        self.common.suspended = true;
    }

    /// The device is back; with a doorbell where that is another.
    pub(super) fn resume(&mut self, doorbell: Option<Doorbell>) {
        self.common.resume(doorbell);
    }

    /// The same where the burst has frames of a queue with other headers.
    #[cold]
    fn recv_beside(&mut self, max: usize, burst: &mut Burst) -> Result<usize> {
        let mut fresh = Burst::new(self.common.pool.clone());
        let result = self.recv(max, &mut fresh);
        burst.append(&mut fresh);
        result
    }

    /// Posts a buffer for every free descriptor, as far as the pool has them.
    pub(crate) fn refill(&mut self) {
        let common = &mut self.common;
        if common.suspended {
            return;
        }
        let room = common.ring.free();
        if common.stash.len() < room {
            let wanted = room - common.stash.len();
            let got = common.pool.take(&mut common.stash, wanted);
            if got < wanted {
                common.stats.no_buffer.add((wanted - got) as u64);
            }
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
}

impl RxQueue {
    /// Takes every buffer back, after the device was reset.
    pub(crate) fn reclaim_all(&mut self) {
        self.held = None;
        self.empty();
    }
    fn empty(&mut self) {
        let stash = &mut self.common.stash;
        self.common.ring.reset(|id| stash.push(id));
        if let Some(merger) = &mut self.merger {
            merger.reset(stash);
        }
        self.common.pool.give(stash);
        stash.clear();
        self.common.show_use();
    }
    /// Takes a burst's buffers back to post them again.
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
    pub(crate) fn has_used(&self) -> bool {
        self.common.ring.has_used()
            || self.held.is_some()
            || self.merger.as_ref().is_some_and(|merger| merger.has_more())
    }
    /// Asks for an interrupt; true when there may be something already.
    pub(crate) fn enable_interrupts(&mut self) -> bool {
        self.common.ring.enable_interrupts()
            || self.held.is_some()
            || self.merger.as_ref().is_some_and(|merger| merger.has_more())
    }
    /// Bytes received so far.
    #[inline]
    pub(crate) fn bytes(&self) -> u64 {
        self.common.stats.bytes.get()
    }
}

/// Where a [`super::Port::send`] of frames stopped, where it did not take all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SendStop {
    /// The ring is full.
    RingFull,
    /// The pool has no free buffer.
    NoBuffer,
    /// This frame cannot be sent; the text says why.
    BadFrame(String),
}

/// Transmits: the device reads from buffers and gives them back.
#[derive(Debug)]
pub(crate) struct TxQueue {
    pub(crate) common: Common,
    /// With fewer free descriptors than this, finished buffers are taken back.
    reclaim_at: usize,
    /// Jumbo buffers that are with the device. They are few, so they are taken back early.
    jumbos: usize,
    magazine: Option<Magazine>,
    vacancy: Arc<Vacancy>,
    /// What the device can be told to do to frames: the features in force.
    pub(super) can: Features,
}

/// Buffers with frames in them that are sent again and again.
#[derive(Debug)]
pub(crate) struct Magazine {
    ids: Vec<BufferId>,
    lengths: Vec<u32>,
    /// Indices of those that are not with the device, longest first.
    ready: VecDeque<u32>,
    /// Set once no more shall be sent: what comes back goes to the pool.
    ended: bool,
    /// How many of its buffers have not gone to the pool.
    kept: usize,
}

/// Marks a ring's token as an index into the magazine.
const FROM_MAGAZINE: u32 = 1 << 31;

impl Magazine {
    /// Buffers that the caller owned, and the lengths of the frames in them.
    pub(crate) fn new(ids: Vec<BufferId>, lengths: Vec<u32>) -> Self {
        let ready = (0..ids.len() as u32).collect();
        let kept = ids.len();
        Self { ids, lengths, ready, ended: false, kept }
    }
}

impl TxQueue {
    pub(crate) fn new(common: Common) -> Self {
        let reclaim_at = usize::from(common.ring.size()) / 2;
        let vacancy = Vacancy::new(common.follower(), Some(common.stats.clone()));
        let (vacancy, can) = (Arc::new(vacancy), Features::NONE);
        Self { common, reclaim_at, jumbos: 0, magazine: None, vacancy, can }
    }

    /// With these features in force.
    pub(super) fn with_features(self, can: Features) -> Self {
        Self { can, ..self }
    }

    pub(super) fn vacancy(&self) -> Arc<Vacancy> {
        self.vacancy.clone()
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

    pub(crate) fn has_magazine(&self) -> bool {
        self.magazine.is_some()
    }
    /// Makes frames ready to be sent repeatedly.
    pub(crate) fn load(&mut self, magazine: Magazine) {
        let pool = &self.common.pool;
        let header_len = self.common.header_len;
        for &id in &magazine.ids {
            // SAFETY: as in `send`; the magazine owns its buffers.
            unsafe { header::clear(pool.data_ptr(id), header_len) };
        }
        self.magazine = Some(magazine);
    }
    /// No more from the magazine: its buffers go to the pool, those with the device later.
    pub(crate) fn unload(&mut self) {
        if let Some(magazine) = &mut self.magazine {
            magazine.ended = true;
        }
        self.retire_magazine();
    }

    fn retire_magazine(&mut self) {
        let Some(magazine) = &mut self.magazine else { return };
        if !magazine.ended {
            return;
        }
        let back: Vec<BufferId> =
            magazine.ready.drain(..).map(|index| magazine.ids[index as usize]).collect();
        self.common.pool.give(&back);
        magazine.kept -= back.len();
        if magazine.kept == 0 {
            self.magazine = None;
        }
    }

    /// Sends up to `most` frames of the magazine; says how many, and their bytes.
    #[inline]
    pub(crate) fn send_from_magazine(&mut self, most: usize) -> Result<(usize, u64)> {
        if self.common.ring.free() < self.reclaim_at.max(most) {
            self.reclaim()?;
        }
        let common = &mut self.common;
        if common.suspended {
            return Ok((0, 0));
        }
        let Some(magazine) = &mut self.magazine else { return Ok((0, 0)) };
        let pool = &common.pool;
        let mut bytes = 0u64;
        let ready = &mut magazine.ready;
        let (ids, lengths) = (&magazine.ids, &magazine.lengths);
        let header_len = common.header_len;
        let most = most.min(ready.len());
        let added = common.ring.add(false, most, |i| {
            let index = ready[i];
            let length = lengths[index as usize];
            bytes += u64::from(length);
            let header = pool.data_iova(ids[index as usize]).0.wrapping_sub(header_len as u64);
            (index | FROM_MAGAZINE, Iova(header), length + header_len as u32)
        });
        if added > 0 {
            common.publish();
            if common.stats.classes.on() {
                common.stats.classes.count(&common.pool, added, |i| {
                    let index = ready[i] as usize;
                    (ids[index], lengths[index])
                });
            }
            ready.drain(..added);
            common.stats.packets.add(added as u64);
            common.stats.bytes.add(bytes);
            common.show_use();
        }
        Ok((added, bytes))
    }

    /// Sends copies of frames of another memory; the burst keeps what did not fit.
    #[cold]
    pub(crate) fn send_copies(&mut self, burst: &mut Burst) -> Result<usize> {
        self.release_jumbos()?;
        let room = self.room()?.min(burst.len());
        let mut ids = Vec::with_capacity(room);
        let got = self.common.pool.take(&mut ids, room);
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
                let Some(jumbo) = pool.take_jumbo() else {
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

    /// Queues a burst's frames, in order, as many as fit, with what is left to do to them; these
    /// leave the burst. Says how many.
    #[inline]
    pub(crate) fn send_burst(&mut self, burst: &mut Burst) -> Result<usize> {
        if burst.headers() > 0 {
            return self.send_on(burst);
        }
        let sent = self.send(burst.ids(), burst.lengths())?;
        burst.moved(sent);
        Ok(sent)
    }

    /// Queues frames that lie in buffers of the pool, in order, as many as fit; says how many.
    /// These buffers are the device's from here on.
    #[inline]
    pub(crate) fn send(&mut self, ids: &[BufferId], lengths: &[u32]) -> Result<usize> {
        self.queue::<true>(ids, lengths)
    }

    /// The same for frames whose headers are written.
    pub(super) fn send_ready(&mut self, ids: &[BufferId], lengths: &[u32]) -> Result<usize> {
        self.queue::<false>(ids, lengths)
    }

    #[inline]
    fn queue<const CLEAR: bool>(&mut self, ids: &[BufferId], lengths: &[u32]) -> Result<usize> {
        if self.common.ring.free() < self.reclaim_at.max(ids.len()) || self.jumbos > 0 {
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
            if common.stats.classes.on() {
                common.stats.classes.count(&common.pool, added, |i| (ids[i], lengths[i]));
            }
            common.show_use();
        }
        if added < ids.len() {
            common.stats.ring_full.add((ids.len() - added) as u64);
        }
        Ok(added)
    }

    /// Gives the buffers of finished frames back to the pool.
    pub(crate) fn reclaim(&mut self) -> Result<()> {
        let common = &mut self.common;
        let stash = &mut common.stash;
        let magazine = &mut self.magazine;
        let result = common.ring.pop(usize::MAX, |token, _| sort(token, stash, magazine));
        let popped = *result.as_ref().unwrap_or(&stash.len());
        common.stats.completed.add(popped as u64);
        if !stash.is_empty() {
            if self.jumbos > 0 {
                self.jumbos -= jumbos_among(stash, &common.pool).min(self.jumbos);
            }
            common.pool.give(stash);
            stash.clear();
        }
        self.retire_magazine();
        self.common.show_use();
        result?;
        Ok(())
    }

    /// Takes finished jumbo buffers back, where there may be some.
    #[inline]
    pub(crate) fn release_jumbos(&mut self) -> Result<()> {
        if self.jumbos > 0 { self.reclaim() } else { Ok(()) }
    }

    /// Takes every buffer back, after the device was reset.
    pub(crate) fn reclaim_all(&mut self) {
        self.empty();
        self.unload();
    }

    /// Empties the ring; says how many frames were still with the device.
    fn empty(&mut self) -> u64 {
        let stash = &mut self.common.stash;
        let magazine = &mut self.magazine;
        let mut left = 0;
        self.common.ring.reset(|token| {
            left += 1;
            sort(token, stash, magazine);
        });
        self.common.pool.give(stash);
        stash.clear();
        self.jumbos = 0;
        self.common.show_use();
        left
    }

    /// The device was reset, or is gone: counts what it had finished, and the rest as lost.
    /// The queue is as a full one before [`Self::resume`].
    pub(super) fn suspend(&mut self) {
        self.vacancy.close();
        // An error is one of the device that is gone; what it said before was right.
        let _ = self.reclaim();
        let lost = self.empty();
        self.common.stats.lost.add(lost);
        self.retire_magazine();
        self.common.suspended = true;
    }

    /// The device is back; with a doorbell where that is another.
    pub(super) fn resume(&mut self, doorbell: Option<Doorbell>) {
        self.common.resume(doorbell);
    }

    /// How many frames fit now.
    pub(crate) fn room(&mut self) -> Result<usize> {
        if self.common.ring.free() < self.reclaim_at {
            self.reclaim()?;
        }
        Ok(if self.common.suspended { 0 } else { self.common.ring.free() })
    }
}

impl Interrupts for RxQueue {
    fn ready(&mut self) -> bool {
        self.has_used()
    }
    fn enable(&mut self) -> bool {
        self.enable_interrupts()
    }
    fn disable(&mut self) {
        self.common.disable_interrupts();
    }
}

/// A transmit queue is ready when half of it is free: one interrupt for many frames.
impl Interrupts for TxQueue {
    fn ready(&mut self) -> bool {
        // An error is for the next call to find: the ring stays poisoned.
        self.reclaim().is_err()
            || (!self.common.suspended && self.common.ring.free() >= self.reclaim_at.max(1))
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
            let missing = self.reclaim_at.max(1) - self.common.ring.free();
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
    fn release(&self) {
        if let Some(mut queue) = self.try_lock()
            && let Err(error) = queue.release_jumbos()
        {
            // The ring is poisoned: whoever uses it next gets the error.
            log::debug!("no buffers from a transmit queue: {error}");
        }
    }
}

#[cold]
fn jumbos_among(ids: &[BufferId], pool: &Pool) -> usize {
    ids.iter().filter(|&&id| pool.is_jumbo(id)).count()
}

/// A finished buffer goes back to where it came from.
#[inline]
fn sort(token: u32, stash: &mut Vec<BufferId>, magazine: &mut Option<Magazine>) {
    match magazine {
        Some(magazine) if token & FROM_MAGAZINE != 0 => {
            magazine.ready.push_back(token & !FROM_MAGAZINE);
        }
        _ => stash.push(token),
    }
}
