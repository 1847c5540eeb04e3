//! Access to ring memory: atomic loads and stores with masked indices.
//!
//! The device can change any byte at any time, so there are no references to plain data. A [`Window`]
//! has a power of two of little-endian words and masks each index, so that no access is out of bounds.

use crate::Result;
use crate::memory::{Chunk, Iova, Region};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

/// Distance between fields that different sides write: two cache lines, as processors fetch lines in
/// pairs.
pub(super) const LINE: usize = 128;

/// A little-endian word of shared memory.
pub(super) trait Word: Copy {
    /// # Safety
    /// `at` is aligned for the word and valid for atomic access.
    unsafe fn load(at: *mut Self, order: Ordering) -> Self;
    /// # Safety
    /// `at` is aligned for the word and valid for atomic access.
    unsafe fn store(at: *mut Self, value: Self, order: Ordering);
}

macro_rules! word {
    ($value:ty, $atomic:ty) => {
        impl Word for $value {
            #[inline(always)]
            unsafe fn load(at: *mut Self, order: Ordering) -> Self {
                // SAFETY: guaranteed by the caller; an atomic tolerates any writer.
                Self::from_le(unsafe { <$atomic>::from_ptr(at) }.load(order))
            }
            #[inline(always)]
            unsafe fn store(at: *mut Self, value: Self, order: Ordering) {
                // SAFETY: guaranteed by the caller; an atomic tolerates any reader.
                unsafe { <$atomic>::from_ptr(at) }.store(value.to_le(), order);
            }
        }
    };
}

word!(u16, AtomicU16);
word!(u32, AtomicU32);
word!(u64, AtomicU64);

/// A power of two of words in shared memory.
#[derive(Debug)]
pub(super) struct Window<T> {
    base: *mut T,
    mask: usize,
}

impl<T> Clone for Window<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Window<T> {}

impl<T: Word> Window<T> {
    /// The word at `index`, modulo the window's length.
    #[inline(always)]
    pub(super) fn load(self, index: usize, order: Ordering) -> T {
        // SAFETY: `Memory::window` checked that the chunk has `mask + 1` aligned words at `base`, and
        // its caller keeps the chunk; the index is masked.
        unsafe { T::load(self.base.add(index & self.mask), order) }
    }

    /// Sets the word at `index`, modulo the window's length.
    #[inline(always)]
    pub(super) fn store(self, index: usize, value: T, order: Ordering) {
        // SAFETY: as for `load`.
        unsafe { T::store(self.base.add(index & self.mask), value, order) }
    }
}

/// The memory of one ring. Whoever creates windows into it must keep it.
#[derive(Debug)]
pub(super) struct Memory {
    chunk: Chunk,
}

// SAFETY: a window only makes atomic accesses.
unsafe impl<T> Send for Window<T> {}
// SAFETY: a window only makes atomic accesses.
unsafe impl<T> Sync for Window<T> {}

impl Memory {
    /// `len` zeroed bytes of the region, aligned to `align`.
    pub(super) fn new(region: &Arc<Region>, len: usize, align: usize) -> Result<Self> {
        let chunk = region.allocate(len, align)?;
        chunk.zero();
        Ok(Self { chunk })
    }

    /// The device's address of the byte at `offset`.
    pub(super) fn iova(&self, offset: usize) -> Iova {
        self.chunk.iova().plus(offset as u64)
    }

    /// `count` words (a power of two) starting at byte `offset`.
    ///
    /// # Safety
    /// The window and its copies must not be used after this memory is dropped.
    pub(super) unsafe fn window<T: Word>(&self, offset: usize, count: usize) -> Window<T> {
        let size = size_of::<T>();
        let base = self.chunk.as_ptr().wrapping_add(offset);
        assert!(count.is_power_of_two(), "a window of {count} words cannot be masked");
        assert!(offset + count * size <= self.chunk.len(), "a window ends outside its chunk");
        assert!(base.addr().is_multiple_of(align_of::<T>()), "a window is not aligned");
        Window { base: base.cast(), mask: count - 1 }
    }

    /// Zeroes the memory, which no device may access meanwhile.
    pub(super) fn zero(&self) {
        self.chunk.zero();
    }
}
