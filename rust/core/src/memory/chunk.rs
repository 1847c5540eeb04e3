//! An exclusive part of a region.

use super::{Iova, Region};
use std::sync::Arc;

/// An exclusive, aligned part of a [`Region`], released on drop.
///
/// The pages remain mapped: a device that still runs would write into a part that now belongs to
/// something else. Reset the device (or its queue) before dropping.
#[derive(Debug)]
pub struct Chunk {
    region: Arc<Region>,
    offset: usize,
    len: usize,
}

impl Chunk {
    /// Wraps a part that the region's arena allocated.
    pub(super) fn new(region: Arc<Region>, offset: usize, len: usize) -> Self {
        Self { region, offset, len }
    }
    /// The region that it is part of.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }
    /// Its offset in bytes in the region's file.
    pub fn offset(&self) -> usize {
        self.offset
    }
    /// Its length in bytes; never zero.
    #[allow(clippy::len_without_is_empty, reason = "a chunk is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }
    /// The device address of its first byte.
    pub fn iova(&self) -> Iova {
        self.region.iova().plus(self.offset as u64)
    }
    /// Our address of its first byte. Only for volatile or atomic access, or byte copies, within
    /// `len` bytes; valid as long as the chunk exists.
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        //  SAFETY: the arena only returns offsets inside the region.
        unsafe { self.region.base().add(self.offset) }
    }
    /// Sets every byte to zero.
    pub fn zero(&self) {
        // SAFETY: the `len` bytes are in the mapping and exclusively ours; a byte copy, as allowed
        // for shared memory.
        unsafe { self.as_ptr().write_bytes(0, self.len) };
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.region.release(self.offset, self.len);
    }
}
