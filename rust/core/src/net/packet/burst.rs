//! Frames that are handled together.

use crate::memory::{BufferId, Pool};
use crate::net::packet::header::{self, Front};
use crate::net::packet::offload::Offload;
use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::sync::Arc;

/// Each thread keeps storage for this many bursts, so that a loop over bursts does not allocate.
const SPARE: usize = 16;
/// Initial capacity of a burst in frames.
const ROOM: usize = 256;

#[derive(Debug, Default)]
struct Storage {
    ids: Vec<BufferId>,
    lengths: Vec<u32>,
}

thread_local! {
    static STORAGE: RefCell<Vec<Storage>> = const { RefCell::new(Vec::new()) };
}

/// An owner of packet buffers with frames.
///
/// Each buffer is exclusively the burst's until it is moved out or the burst is dropped, which
/// returns the buffers to the pool.
#[derive(Debug)]
pub struct Burst {
    pool: Arc<Pool>,
    storage: Storage,
    /// Whether all frames have a hash in their header.
    hashed: bool,
    pub(in crate::net) front: Front,
    /// When its first frames were taken from the ring; 0 where nobody looked at the clock.
    taken: u64,
}

impl Burst {
    /// Creates an empty burst of a pool.
    #[must_use]
    pub fn new(pool: Arc<Pool>) -> Self {
        let storage = STORAGE.with_borrow_mut(Vec::pop).unwrap_or_else(|| Storage {
            ids: Vec::with_capacity(ROOM),
            lengths: Vec::with_capacity(ROOM),
        });
        Self { pool, storage, hashed: false, front: Front::NONE, taken: 0 }
    }
    /// Number of frames.
    #[must_use]
    pub fn len(&self) -> usize {
        self.storage.ids.len()
    }
    /// Whether there are no frames.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.storage.ids.is_empty()
    }
    /// The pool that the buffers belong to.
    #[must_use]
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }
    /// The buffers, in order.
    #[must_use]
    pub fn ids(&self) -> &[BufferId] {
        &self.storage.ids
    }
    /// The frames' lengths in bytes.
    #[must_use]
    pub fn lengths(&self) -> &[u32] {
        &self.storage.lengths
    }
    /// The address and length of a frame. Only for byte access; valid as long as the buffer is the
    /// burst's.
    #[must_use]
    pub fn frame(&self, index: usize) -> Option<(*mut u8, usize)> {
        let id = *self.storage.ids.get(index)?;
        let length = *self.storage.lengths.get(index)?;
        Some((self.pool.data_ptr(id), length as usize))
    }
    /// Copies a frame out; `None` past the end.
    #[must_use]
    pub fn copy_out(&self, index: usize) -> Option<Vec<u8>> {
        let (from, length) = self.frame(index)?;
        let mut out = Vec::with_capacity(length);
        // SAFETY: `length` bytes lie in the buffer, which is ours; `out` has room for them.
        unsafe {
            std::ptr::copy_nonoverlapping(from, out.as_mut_ptr(), length);
            out.set_len(length);
        }
        Some(out)
    }
    /// The hash of each frame and what it covers (`hash_value` and `hash_report`, section
    /// 5.1.6.4.4), in the order of the frames; `None` if the device reports none.
    #[must_use]
    pub fn hashes(&self) -> Option<Vec<(u32, u16)>> {
        if !self.hashed {
            return None;
        }
        let hash = |&id: &BufferId| {
            // SAFETY: the buffer is ours; its data is 64-byte aligned and has DATA_OFFSET (64)
            // bytes in front.
            unsafe { header::hash(self.pool.data_ptr(id)) }
        };
        Some(self.storage.ids.iter().map(hash).collect())
    }
    /// The offload metadata of each frame, as written by the device (section 5.1.6.4); `None` if no
    /// offload of received frames was negotiated.
    #[must_use]
    pub fn offloads(&self) -> Option<Vec<Offload>> {
        (0..self.len())
            .map(|index| self.offload(index))
            .collect::<Option<_>>()
            .filter(|_| self.front.has_offloads())
    }
    /// The offload metadata of one frame; `None` if there is none.
    #[must_use]
    pub fn offload(&self, index: usize) -> Option<Offload> {
        self.header(index).filter(|_| self.front.has_offloads())
    }
    /// What a receiver has to know of a frame's checksum. Without negotiated offloads, that is only
    /// whether the device has verified it: some devices report that in any case, and leave the
    /// checksum itself unset. Linux's driver looks at it in any case, too.
    #[must_use]
    pub fn receive_offload(&self, index: usize) -> Offload {
        let Some(header) = self.header(index) else { return Offload::NONE };
        if self.front.has_offloads() {
            return header;
        }
        Offload { flags: header.flags & Offload::DATA_VALID, ..Offload::NONE }
    }
    /// The front of a frame's header.
    fn header(&self, index: usize) -> Option<Offload> {
        let id = *self.storage.ids.get(index)?;
        let length = self.front.len();
        // SAFETY: the buffer is ours; its data is 64-byte aligned and has DATA_OFFSET (64) bytes
        // in front, more than any header.
        (length > 0).then(|| unsafe { header::read(self.pool.data_ptr(id), length) })
    }
    /// When its frames were taken from the ring, in nanoseconds since 1970; `None` unless requested.
    /// If several calls added frames, the time of the first.
    #[must_use]
    pub fn timestamp(&self) -> Option<u64> {
        (self.taken > 0 && !self.is_empty()).then_some(self.taken)
    }
    /// Sets when the frames just added were taken from the ring.
    #[inline]
    pub(in crate::net) fn stamp(&mut self, now: u64) {
        if self.taken == 0 {
            self.taken = now;
        }
    }
    /// Bytes of the header with offload metadata in front of each frame; 0 if there is none.
    #[inline]
    pub(in crate::net) fn headers(&self) -> usize {
        if self.front.has_offloads() { self.front.len() } else { 0 }
    }
    /// Sets what is in front of the frames to come, while the burst is empty.
    #[inline]
    pub(in crate::net) fn expect(&mut self, front: Front) {
        debug_assert!(self.is_empty(), "frames of two kinds in one burst");
        self.front = front;
    }
    /// Prepares for frames of another burst, while this one is empty.
    #[inline]
    pub(crate) fn expect_those_of(&mut self, other: &Self) {
        self.expect(other.front);
    }
    /// Moves all frames of another burst of this pool to the end, with their offload metadata.
    #[cold]
    pub(in crate::net) fn append(&mut self, other: &mut Self) {
        let front = self.front.max(other.front);
        for burst in [&*self, &*other] {
            if burst.front == front {
                continue;
            }
            for (index, &id) in burst.ids().iter().enumerate() {
                let offload = burst.receive_offload(index);
                // SAFETY: as in `header`; nobody else writes there.
                unsafe { header::write(self.pool.data_ptr(id), front.len(), offload) };
            }
        }
        self.front = front;
        self.storage.ids.extend_from_slice(other.ids());
        self.storage.lengths.extend_from_slice(other.lengths());
        self.stamp(other.taken);
        other.moved(usize::MAX);
    }
    /// Sets whether frames to be added have hashes.
    #[inline]
    pub(in crate::net) fn expect_hashes(&mut self, hashes: bool) {
        if self.hashed != hashes {
            self.hashed = hashes && self.is_empty();
        }
    }
    /// Adds a buffer that the caller owns. `length` is at most its size.
    #[inline]
    pub(crate) fn push(&mut self, id: BufferId, length: u32) {
        self.storage.ids.push(id);
        self.storage.lengths.push(length);
    }
    /// Adds up to `most` buffers that the caller owns, by what `add` puts; says what that returns.
    #[inline]
    pub(crate) fn fill<T>(&mut self, most: usize, add: impl FnOnce(&mut Filling<'_>) -> T) -> T {
        let Storage { ids, lengths } = &mut self.storage;
        ids.reserve(most);
        lengths.reserve(most);
        let mut filling = Filling {
            ids: ids.spare_capacity_mut(),
            lengths: lengths.spare_capacity_mut(),
            filled: 0,
        };
        let result = add(&mut filling);
        let filled = filling.filled;
        // SAFETY: so many of the spare places, in a row from the first, were written in both.
        unsafe {
            ids.set_len(ids.len() + filled);
            lengths.set_len(lengths.len() + filled);
        }
        result
    }
    /// Forgets the first `count` frames, whose buffers have a new owner.
    pub(crate) fn moved(&mut self, count: usize) {
        if count >= self.len() {
            self.taken = 0;
            self.storage.ids.clear();
            self.storage.lengths.clear();
        } else {
            self.storage.ids.drain(..count);
            self.storage.lengths.drain(..count);
        }
    }
    /// Moves up to `count` frames to the end of another burst of the same pool; returns their
    /// number.
    pub(in crate::net) fn hand_over(&mut self, count: usize, to: &mut Self) -> usize {
        let count = count.min(self.len());
        to.storage.ids.extend_from_slice(&self.storage.ids[..count]);
        to.storage.lengths.extend_from_slice(&self.storage.lengths[..count]);
        to.stamp(self.taken);
        self.moved(count);
        count
    }
    /// Returns the buffers of the first `count` frames to the pool.
    pub(crate) fn clear_front(&mut self, count: usize) {
        let count = count.min(self.len());
        self.pool.give(&self.storage.ids[..count]);
        self.moved(count);
    }
    /// The buffers' ids, to replace some with copies.
    pub(crate) fn ids_mut(&mut self) -> &mut [BufferId] {
        &mut self.storage.ids
    }
    /// Returns all buffers to the pool.
    pub fn clear(&mut self) {
        if !self.is_empty() {
            self.pool.give(&self.storage.ids);
            self.moved(usize::MAX);
        }
    }
}

/// Places at the end of a burst: see [`Burst::fill`].
#[derive(Debug)]
pub(crate) struct Filling<'a> {
    ids: &'a mut [MaybeUninit<BufferId>],
    lengths: &'a mut [MaybeUninit<u32>],
    filled: usize,
}

impl Filling<'_> {
    /// Adds a buffer; false where there is no place left. `length` is at most what it holds.
    #[inline(always)]
    pub(crate) fn push(&mut self, id: BufferId, length: u32) -> bool {
        let (Some(ids), Some(lengths)) =
            (self.ids.get_mut(self.filled), self.lengths.get_mut(self.filled))
        else {
            return false;
        };
        ids.write(id);
        lengths.write(length);
        self.filled += 1;
        true
    }
    /// How many were added.
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.filled
    }
}

impl Drop for Burst {
    fn drop(&mut self) {
        self.clear();
        let storage = std::mem::take(&mut self.storage);
        // If the thread is ending, the storage is just freed.
        let _ = STORAGE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < SPARE {
                spare.push(storage);
            }
        });
    }
}
