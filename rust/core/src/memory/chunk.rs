//! An exclusive part of a region.

use super::{Iova, Region};
use std::sync::Arc;

/// An exclusive, aligned part of a [`Region`]; given back when dropped.
///
/// The pages stay: a device that was not stopped first would write into a part
/// that somebody else has now. Reset the device (or its queue), then drop.
#[derive(Debug)]
pub struct Chunk {
    region: Arc<Region>,
    offset: usize,
    len: usize,
}

impl Chunk {
    /// A part that the region's arena gave out.
    pub(super) fn new(region: Arc<Region>, offset: usize, len: usize) -> Self {
        Self { region, offset, len }
    }
    /// The region it is part of.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }
    /// Its offset in the region's file, bytes.
    pub fn offset(&self) -> usize {
        self.offset
    }
    /// Its length, bytes; never zero.
    #[allow(clippy::len_without_is_empty, reason = "a chunk is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }
    /// Its first byte as the device addresses it.
    pub fn iova(&self) -> Iova {
        self.region.iova().plus(self.offset as u64)
    }
    /// Its first byte as we address it. Only for volatile or atomic access, or
    /// byte copies, within `len` bytes; valid as long as the chunk lives.
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        // SAFETY: the arena gives out offsets inside the region only.
        unsafe { self.region.base().add(self.offset) }
    }
    /// Sets every byte to zero.
    pub fn zero(&self) {
        // SAFETY: `len` bytes from there are in the mapping and exclusively ours;
        // a byte copy, as the rules of shared memory allow.
        unsafe { self.as_ptr().write_bytes(0, self.len) };
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.region.release(self.offset, self.len);
    }
}
