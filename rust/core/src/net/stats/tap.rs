//! Copies of the frames that a queue moves, for somebody who looks at them in another thread.
//!
//! Between the two is a ring of bytes, of fixed size (the crate `rtrb`). The queue never waits: what
//! does not fit is left out and counted.

use crate::memory::{BufferId, Pool, prefetch};
use crate::net::stats::Counter;
use rtrb::{Consumer, Producer, RingBuffer};
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What is in front of a frame in the ring: the time, its length, and how much of it follows.
const HEAD: usize = 16;
/// The first bytes of so many frames are on their way into the cache before they are copied.
const AHEAD: usize = 4;

/// What a tap has seen so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TapCounts {
    /// Frames that the queue moved.
    pub frames: u64,
    /// Those of them that found no room.
    pub dropped: u64,
}

#[derive(Debug, Default)]
struct Counts {
    frames: Counter,
    dropped: Counter,
}

/// The queue's end.
#[derive(Debug)]
pub(crate) struct Tap {
    number: u64,
    ring: Producer<u8>,
    /// Bytes of each frame that are copied, at most.
    snap: u32,
    counts: Arc<Counts>,
}

/// The end of who looks.
#[derive(Debug)]
pub struct TapReader {
    number: u64,
    ring: Consumer<u8>,
    counts: Arc<Counts>,
    head: Option<TapRecord>,
}

/// A frame that passed a tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TapRecord {
    /// When, nanoseconds since 1970.
    pub timestamp: u64,
    /// The frame's bytes.
    pub length: u32,
    /// How many of them there are here.
    pub held: u32,
}

/// Both ends of a tap: a ring of so many bytes, and how much of each frame goes into it.
pub(crate) fn tap(bytes: usize, snap: u32) -> (Tap, TapReader) {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Relaxed);
    let (producer, consumer) = RingBuffer::new(bytes);
    let counts = Arc::<Counts>::default();
    let reader = TapReader { number, ring: consumer, counts: counts.clone(), head: None };
    (Tap { number, ring: producer, snap, counts }, reader)
}

impl Tap {
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Copies as many of these frames as there is room for, and counts all.
    pub(crate) fn record(
        &mut self,
        now: u64,
        pool: &Pool,
        frames: usize,
        frame: impl Fn(usize) -> (BufferId, u32),
    ) {
        let held = |i| {
            let (id, length) = frame(i);
            (id, length, length.min(self.snap))
        };
        let wanted = |i| HEAD + held(i).2 as usize;
        let all: usize = (0..frames).map(wanted).sum();
        let (mut fits, mut bytes) = (frames, all);
        if all > self.ring.slots() {
            let room = self.ring.slots();
            (fits, bytes) = (0, 0);
            while fits < frames && bytes + wanted(fits) <= room {
                bytes += wanted(fits);
                fits += 1;
            }
        }
        self.counts.frames.add(frames as u64);
        if fits < frames {
            self.counts.dropped.add((frames - fits) as u64);
        }
        let Ok(mut chunk) = self.ring.write_chunk_uninit(bytes) else { return };
        let (first, second) = chunk.as_mut_slices();
        let mut room = Room { first, second };
        for i in 0..fits {
            if i + AHEAD < fits {
                prefetch(pool.data_ptr(held(i + AHEAD).0));
            }
            let (id, length, held) = held(i);
            let mut head = [0; HEAD];
            head[..8].copy_from_slice(&now.to_ne_bytes());
            head[8..12].copy_from_slice(&length.to_ne_bytes());
            head[12..].copy_from_slice(&held.to_ne_bytes());
            // SAFETY: `head` is readable, and so are `held` bytes of a buffer that has at least as
            // many, which is the queue's or with a device that may read it; a copy, whatever the
            // device does meanwhile.
            unsafe {
                room.put(head.as_ptr(), HEAD);
                room.put(pool.data_ptr(id), held as usize);
            }
        }
        // SAFETY: `fits` frames were written, which are all `bytes`.
        unsafe { chunk.commit_all() };
    }
}

/// Room in the ring, which goes on at its start where it ends.
struct Room<'a> {
    first: &'a mut [MaybeUninit<u8>],
    second: &'a mut [MaybeUninit<u8>],
}

impl Room<'_> {
    /// Copies bytes in, as many as there is room for.
    ///
    /// # Safety
    /// `count` bytes at `from` must be readable.
    unsafe fn put(&mut self, from: *const u8, count: usize) {
        let before = count.min(self.first.len());
        // SAFETY: the caller's, and within the slice.
        unsafe { fill(&mut self.first, from, before) };
        let rest = (count - before).min(self.second.len());
        // SAFETY: as above; `before` bytes were taken already.
        unsafe { fill(&mut self.second, from.add(before), rest) };
    }
}

/// Copies bytes to the start of a slice, which is shorter by them afterwards.
///
/// # Safety
/// `count` bytes at `from` must be readable, and the slice as long at least.
unsafe fn fill(room: &mut &mut [MaybeUninit<u8>], from: *const u8, count: usize) {
    // SAFETY: the caller's; private memory and another's do not overlap.
    unsafe { std::ptr::copy_nonoverlapping(from, room.as_mut_ptr().cast(), count) };
    *room = &mut std::mem::take(room)[count..];
}

impl TapReader {
    /// What tells this tap from others.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }
    /// What it has seen so far, also what was not read yet.
    #[must_use]
    pub fn counts(&self) -> TapCounts {
        TapCounts { frames: self.counts.frames.get(), dropped: self.counts.dropped.get() }
    }
    /// The next frame, whose bytes [`Self::take`] gives; `None` when there is none now.
    #[inline]
    pub fn peek(&mut self) -> Option<TapRecord> {
        if self.head.is_none() {
            let mut head = [0; HEAD];
            let chunk = self.ring.read_chunk(HEAD).ok()?;
            let (first, second) = chunk.as_slices();
            head[..first.len()].copy_from_slice(first);
            head[first.len()..].copy_from_slice(second);
            chunk.commit_all();
            let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = head;
            self.head = Some(TapRecord {
                timestamp: u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
                length: u32::from_ne_bytes([i, j, k, l]),
                held: u32::from_ne_bytes([m, n, o, p]),
            });
        }
        self.head
    }
    /// Appends the bytes of the frame that [`Self::peek`] told of; the next may be looked at.
    #[inline]
    pub fn take(&mut self, out: &mut Vec<u8>) {
        let Some(head) = self.head.take() else { return };
        // A burst is published with all its bytes.
        if let Ok(chunk) = self.ring.read_chunk(head.held as usize) {
            let (first, second) = chunk.as_slices();
            out.extend_from_slice(first);
            out.extend_from_slice(second);
            chunk.commit_all();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::memory::{PageRequest, PageSize, Placement, Region, RegionOptions};

    #[test]
    fn frames_come_out_as_they_went_in_or_are_counted() {
        let region = Region::new(&RegionOptions {
            size: 1 << 20,
            pages: PageRequest::Exactly(PageSize::Base),
            placement: Placement::Virtual,
            node: None,
            directory: None,
            buffer_size: 2048,
            jumbo_buffers: None,
            jumbo_size: None,
        });
        let pool = region.unwrap().pool();
        let mut ids = Vec::new();
        assert_eq!(pool.take(&mut ids, 8), 8);
        for &id in &ids {
            // SAFETY: the buffer is ours and has 2048 bytes.
            unsafe { pool.data_ptr(id).write_bytes(id as u8, 2048) };
        }
        let (mut tap, mut reader) = tap(1000, 100);
        let lengths = [60, 100, 101, 1500, 14, 1, 99, 2048];
        let (mut out, mut next, mut moved) = (Vec::new(), 0, 0);
        for round in 1..2000_u64 {
            // As many as fit, in groups of which some end within the ring and some around its end.
            let count = (round % 3) as usize + 1;
            tap.record(round, &pool, count, |i| {
                let i = (next + i) % 8;
                (ids[i], lengths[i])
            });
            for i in 0..count {
                let at = (next + i) % 8;
                let held = lengths[at].min(100);
                let record = TapRecord { timestamp: round, length: lengths[at], held };
                assert_eq!(reader.peek(), Some(record));
                out.clear();
                reader.take(&mut out);
                assert_eq!(out, vec![ids[at] as u8; held as usize]);
            }
            assert_eq!(reader.peek(), None);
            next += count;
            moved += count as u64;
        }
        assert_eq!(reader.counts(), TapCounts { frames: moved, dropped: 0 });

        // Eight of 16 and 100 bytes find room, and no more.
        tap.record(1, &pool, 8, |i| (ids[i], 1500));
        tap.record(2, &pool, 8, |i| (ids[i], 1500));
        assert_eq!(reader.counts(), TapCounts { frames: moved + 16, dropped: 8 });
        pool.give(&ids);
    }
}
