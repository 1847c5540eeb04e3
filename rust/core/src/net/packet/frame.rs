//! Frames being copied from the caller into buffers.

use crate::memory::{BufferId, Demand, Pool};
use crate::net::packet::offload::Offload;

/// Frames to be copied and sent, one after the other.
pub trait FrameSource {
    /// Whether there is another frame.
    fn more(&mut self) -> bool;
    /// How many there are, where that is known: so many buffers are got ready at once.
    fn left(&self) -> usize {
        usize::MAX
    }
    /// Writes the next frame into the buffer and says its length, or why it cannot be sent.
    ///
    /// # Errors
    /// A description.
    fn next(&mut self, buffer: &mut FrameBuffer<'_>) -> Result<usize, String>;
    /// Whether it has offload metadata for its frames.
    fn describes(&self) -> bool {
        false
    }
    /// The offload metadata of the last frame from [`Self::next`].
    fn offload(&self) -> Offload {
        Offload::NONE
    }
}

/// Frames with their offload metadata.
#[derive(Debug)]
pub(in crate::net) struct Described<'a> {
    frames: &'a [(Vec<u8>, Offload)],
    last: Offload,
}

impl<'a> Described<'a> {
    pub(in crate::net) fn new(frames: &'a [(Vec<u8>, Offload)]) -> Self {
        Self { frames, last: Offload::NONE }
    }
}

impl FrameSource for Described<'_> {
    fn more(&mut self) -> bool {
        !self.frames.is_empty()
    }
    fn left(&self) -> usize {
        self.frames.len()
    }
    fn next(&mut self, buffer: &mut FrameBuffer<'_>) -> Result<usize, String> {
        let Some(((frame, offload), rest)) = self.frames.split_first() else {
            return Err("no frame is left".to_owned());
        };
        self.frames = rest;
        self.last = *offload;
        buffer.fill(frame)
    }
    fn describes(&self) -> bool {
        true
    }
    fn offload(&self) -> Offload {
        self.last
    }
}

impl<T: AsRef<[u8]>> FrameSource for &[T] {
    fn more(&mut self) -> bool {
        !self.is_empty()
    }
    fn left(&self) -> usize {
        self.len()
    }
    fn next(&mut self, buffer: &mut FrameBuffer<'_>) -> Result<usize, String> {
        let Some((first, rest)) = self.split_first() else {
            return Err("no frame is left".to_owned());
        };
        *self = rest;
        buffer.fill(first.as_ref())
    }
}

/// A buffer to write one frame into: a common one, or a jumbo buffer if the frame needs it.
#[derive(Debug)]
pub struct FrameBuffer<'a> {
    pool: &'a Pool,
    demand: &'a Demand,
    common: BufferId,
    jumbo: Option<BufferId>,
    starved: bool,
}

impl<'a> FrameBuffer<'a> {
    /// `common` is lent by the caller.
    pub(in crate::net) fn new(pool: &'a Pool, demand: &'a Demand, common: BufferId) -> Self {
        Self { pool, demand, common, jumbo: None, starved: false }
    }
    /// The buffer with the frame; it belongs to the caller if it is a jumbo buffer.
    pub(in crate::net) fn finish(mut self) -> BufferId {
        self.jumbo.take().unwrap_or(self.common)
    }
    /// The address of the frame.
    pub(in crate::net) fn data(&self) -> *mut u8 {
        self.pool.data_ptr(self.jumbo.unwrap_or(self.common))
    }
    /// Whether the frame was refused for lack of a jumbo buffer.
    pub(in crate::net) fn starved(&self) -> bool {
        self.starved
    }

    /// Length in bytes of the longest possible frame.
    #[must_use]
    pub fn room(&self) -> usize {
        self.pool.largest_frame()
    }
    /// Copies the frame; returns its length, or why it cannot be sent.
    ///
    /// # Errors
    /// A description, for an empty frame or one longer than any buffer.
    pub fn fill(&mut self, frame: &[u8]) -> Result<usize, String> {
        // SAFETY: `frame` is readable for its length.
        unsafe { self.fill_raw(frame.as_ptr(), frame.len()) }
    }
    /// The same from a raw pointer, for bytes that may be written to concurrently.
    ///
    /// # Errors
    /// As for [`Self::fill`].
    ///
    /// # Safety
    /// `length` bytes at `from` must be readable.
    pub unsafe fn fill_raw(&mut self, from: *const u8, length: usize) -> Result<usize, String> {
        if length == 0 {
            return Err("the frame is empty".to_owned());
        }
        if length > self.pool.capacity() && self.jumbo.is_none() {
            self.jumbo = Some(self.exchange(length)?);
        }
        let id = self.jumbo.unwrap_or(self.common);
        let room = self.pool.capacity_of(id);
        if length > room {
            return Err(format!("the frame has {length} bytes, the largest buffer holds {room}"));
        }
        // SAFETY: the buffer has that much room and is ours (`jumbo`) or lent to us; the source
        // is readable (above) and never inside a free buffer. `copy` allows overlap.
        unsafe { std::ptr::copy(from, self.pool.data_ptr(id), length) };
        Ok(length)
    }

    /// Takes a jumbo buffer for a frame of this length.
    #[cold]
    fn exchange(&mut self, length: usize) -> Result<BufferId, String> {
        let room = self.room();
        if length > room {
            return Err(format!("the frame has {length} bytes, the largest buffer holds {room}"));
        }
        self.pool.take_jumbo_to_send(self.demand).ok_or_else(|| {
            self.starved = true;
            format!("no jumbo buffer is free for a frame of {length} bytes")
        })
    }
}

impl Drop for FrameBuffer<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.jumbo {
            self.pool.give(&[id]);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::memory::{PageRequest, PageSize, Placement, Region, RegionOptions};

    #[test]
    fn a_long_frame_gets_a_jumbo_buffer_and_a_refused_one_costs_none() {
        let region = Region::new(&RegionOptions {
            size: 1 << 20,
            pages: PageRequest::Exactly(PageSize::Base),
            placement: Placement::Virtual,
            node: None,
            directory: None,
            buffer_size: 2048,
            jumbo_buffers: Some(1),
            jumbo_size: None,
        });
        let pool = region.unwrap().pool();
        let demand = pool.demand_to_send();
        let room = pool.largest_frame();
        let bytes: Vec<u8> = (0..=room).map(|i| (i % 251) as u8).collect();

        for length in [1, 2048] {
            let mut buffer = FrameBuffer::new(&pool, &demand, 3);
            assert_eq!(buffer.fill(&bytes[..length]), Ok(length));
            assert_eq!(buffer.finish(), 3);
        }
        for length in [2049, room] {
            let mut buffer = FrameBuffer::new(&pool, &demand, 3);
            assert_eq!(buffer.fill(&bytes[..length]), Ok(length));
            let id = buffer.finish();
            assert!(pool.is_jumbo(id));
            let mut out = vec![0; length];
            // SAFETY: the buffer is ours and holds that much.
            unsafe { pool.data_ptr(id).copy_to_nonoverlapping(out.as_mut_ptr(), length) };
            assert!(out == bytes[..length]);
            pool.give(&[id]);
        }
        for (length, words) in [(0, "empty"), (room + 1, "largest buffer holds")] {
            let mut buffer = FrameBuffer::new(&pool, &demand, 3);
            assert!(buffer.fill(&bytes[..length]).unwrap_err().contains(words));
            assert!(!buffer.starved());
        }
        assert_eq!(pool.jumbo_free(), 1);
        let mut dropped = FrameBuffer::new(&pool, &demand, 3);
        dropped.fill(&bytes[..3000]).unwrap();
        let mut starved = FrameBuffer::new(&pool, &demand, 4);
        assert!(starved.fill(&bytes[..3000]).unwrap_err().contains("no jumbo buffer is free"));
        assert!(starved.starved());
        drop(dropped);
        assert_eq!(pool.jumbo_free(), 1);
    }
}
