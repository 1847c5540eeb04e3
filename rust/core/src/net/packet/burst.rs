//! Frames that travel together.

use crate::memory::{BufferId, Pool};
use crate::net::packet::header;
use crate::net::packet::offload::Offload;
use std::cell::RefCell;
use std::sync::Arc;

/// Storage for so many bursts is kept by each thread, so that a loop over bursts allocates nothing.
const SPARE: usize = 16;
/// The frames a fresh burst has room for without growing.
const ROOM: usize = 256;

#[derive(Debug, Default)]
struct Storage {
    ids: Vec<BufferId>,
    lengths: Vec<u32>,
}

thread_local! {
    static STORAGE: RefCell<Vec<Storage>> = const { RefCell::new(Vec::new()) };
}

/// An owner of packet buffers, each with a frame in it.
///
/// Each buffer is exclusively the burst's until it is moved out or the burst is
/// dropped, which gives the buffers back to the pool.
#[derive(Debug)]
pub struct Burst {
    pool: Arc<Pool>,
    storage: Storage,
    /// Whether all frames have a hash in the header in front of them.
    hashed: bool,
    /// Bytes of the header in front of each frame that says what is left to do to it; 0 where
    /// there is nothing to know.
    pub(in crate::net) headers: u8,
    /// When its first frames were taken from the ring; 0 where nobody looked at the clock.
    taken: u64,
}

impl Burst {
    /// An empty burst of this pool.
    #[must_use]
    pub fn new(pool: Arc<Pool>) -> Self {
        let storage = STORAGE.with_borrow_mut(Vec::pop).unwrap_or_else(|| Storage {
            ids: Vec::with_capacity(ROOM),
            lengths: Vec::with_capacity(ROOM),
        });
        Self { pool, storage, hashed: false, headers: 0, taken: 0 }
    }
    /// How many frames.
    #[must_use]
    pub fn len(&self) -> usize {
        self.storage.ids.len()
    }
    /// Whether there is none.
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
    /// The frames' lengths, bytes.
    #[must_use]
    pub fn lengths(&self) -> &[u32] {
        &self.storage.lengths
    }
    /// The bytes of a frame: where they start and how many. Only for byte access;
    /// valid as long as the buffer is the burst's.
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
    /// The hash of each frame and what it was calculated over (`hash_value` and `hash_report`,
    /// section 5.1.6.4.4), in the order of the frames; `None` where the device reports none.
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
    /// What is left to do to each frame, as the device said when it received them (section
    /// 5.1.6.4); `None` where no offload of received frames was negotiated.
    #[must_use]
    pub fn offloads(&self) -> Option<Vec<Offload>> {
        (0..self.len())
            .map(|index| self.offload(index))
            .collect::<Option<_>>()
            .filter(|_| self.headers > 0)
    }
    /// What is left to do to one frame; `None` where there is nothing to know.
    #[must_use]
    pub fn offload(&self, index: usize) -> Option<Offload> {
        let id = *self.storage.ids.get(index).filter(|_| self.headers > 0)?;
        // SAFETY: the buffer is ours; its data is 64-byte aligned and has DATA_OFFSET (64) bytes
        // in front, more than any header.
        Some(unsafe { header::read(self.pool.data_ptr(id), self.headers.into()) })
    }
    /// When its frames were taken from the ring, nanoseconds since 1970; `None` where that was not
    /// asked for. Of several calls that added frames, the first counts.
    #[must_use]
    pub fn timestamp(&self) -> Option<u64> {
        (self.taken > 0 && !self.is_empty()).then_some(self.taken)
    }
    /// Says when frames that were just added were taken from the ring.
    #[inline]
    pub(in crate::net) fn stamp(&mut self, now: u64) {
        if self.taken == 0 {
            self.taken = now;
        }
    }
    /// Bytes of the header in front of each frame; 0 where they say nothing.
    #[inline]
    pub(in crate::net) fn headers(&self) -> usize {
        self.headers.into()
    }
    /// Says, while the burst is empty, that frames with a header of so many bytes come.
    #[inline]
    pub(in crate::net) fn expect_headers(&mut self, headers: u8) {
        debug_assert!(self.is_empty(), "frames of two kinds in one burst");
        self.headers = headers;
    }
    /// Says, while the burst is empty, that frames of another burst come.
    #[inline]
    pub(crate) fn expect_those_of(&mut self, other: &Self) {
        self.expect_headers(other.headers);
    }
    /// Moves all frames of another burst of this pool to the end, with what is left to do to them.
    #[cold]
    pub(in crate::net) fn append(&mut self, other: &mut Self) {
        let headers = self.headers.max(other.headers);
        for burst in [&*self, &*other] {
            if burst.headers == headers {
                continue;
            }
            for (index, &id) in burst.ids().iter().enumerate() {
                let offload = burst.offload(index).unwrap_or_default();
                // SAFETY: as in `offload`; nobody else writes there.
                unsafe { header::write(self.pool.data_ptr(id), headers.into(), offload) };
            }
        }
        self.headers = headers;
        self.storage.ids.extend_from_slice(other.ids());
        self.storage.lengths.extend_from_slice(other.lengths());
        self.stamp(other.taken);
        other.moved(usize::MAX);
    }
    /// Says, before frames are added, whether they have hashes.
    #[inline]
    pub(in crate::net) fn expect_hashes(&mut self, hashes: bool) {
        if self.hashed != hashes {
            self.hashed = hashes && self.is_empty();
        }
    }
    /// Adds a buffer that the caller owns. `length` is at most what it holds.
    #[inline]
    pub(crate) fn push(&mut self, id: BufferId, length: u32) {
        self.storage.ids.push(id);
        self.storage.lengths.push(length);
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
    /// Moves up to `count` frames to the end of another burst of the same pool; says how many.
    pub(in crate::net) fn hand_over(&mut self, count: usize, to: &mut Self) -> usize {
        let count = count.min(self.len());
        to.storage.ids.extend_from_slice(&self.storage.ids[..count]);
        to.storage.lengths.extend_from_slice(&self.storage.lengths[..count]);
        to.stamp(self.taken);
        self.moved(count);
        count
    }
    /// Gives the first `count` frames' buffers back to the pool.
    pub(crate) fn clear_front(&mut self, count: usize) {
        let count = count.min(self.len());
        self.pool.give(&self.storage.ids[..count]);
        self.moved(count);
    }
    /// The buffers, with access to the ids so that some can be exchanged for copies.
    pub(crate) fn ids_mut(&mut self) -> &mut [BufferId] {
        &mut self.storage.ids
    }
    /// Gives all buffers back to the pool.
    pub fn clear(&mut self) {
        if !self.is_empty() {
            self.pool.give(&self.storage.ids);
            self.moved(usize::MAX);
        }
    }
}

impl Drop for Burst {
    fn drop(&mut self) {
        self.clear();
        let storage = std::mem::take(&mut self.storage);
        // The thread may be ending: then the storage just goes.
        let _ = STORAGE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < SPARE {
                spare.push(storage);
            }
        });
    }
}
