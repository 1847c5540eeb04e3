//! Access to a region by device address. Panics if out of bounds.

use crate::memory::{Iova, Region};
use crate::virtio::ring::shared::Word;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

/// The size of a [`Field`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 16 bits.
    Two,
    /// 32 bits.
    Four,
    /// 64 bits.
    Eight,
}

/// A field of a ring that a device can write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name in the specification.
    pub name: &'static str,
    /// Its index in an array.
    pub index: u16,
    /// Its address.
    pub iova: Iova,
    /// Its size.
    pub width: Width,
}

/// Access to a region by device address.
#[derive(Clone, Debug)]
pub struct View {
    region: Arc<Region>,
}

impl View {
    /// A view of this region.
    #[must_use]
    pub fn new(region: &Arc<Region>) -> Self {
        Self { region: Arc::clone(region) }
    }

    fn pointer(&self, iova: Iova, len: usize) -> *mut u8 {
        let offset = self.region.offset_of(iova, len);
        assert!(offset.is_some(), "the driver gave {len} bytes at {iova}, outside the region");
        std::ptr::with_exposed_provenance_mut(self.region.address() + offset.unwrap_or_default())
    }

    /// `count` aligned words, for loops without a check per word.
    pub(super) fn words<T: Word>(&self, iova: Iova, count: usize) -> *mut T {
        let at = self.pointer(iova, count * size_of::<T>());
        assert!(at.addr().is_multiple_of(align_of::<T>()), "{iova} is not aligned");
        at.cast()
    }

    pub(super) fn load<T: Word>(&self, iova: Iova, order: Ordering) -> T {
        // SAFETY: inside the region, which the view keeps, and aligned (`words`).
        unsafe { T::load(self.words(iova, 1), order) }
    }

    pub(super) fn store<T: Word>(&self, iova: Iova, value: T, order: Ordering) {
        // SAFETY: inside the region, which the view keeps, and aligned (`words`).
        unsafe { T::store(self.words(iova, 1), value, order) }
    }

    /// The value of a field.
    #[must_use]
    pub fn get(&self, field: Field) -> u64 {
        match field.width {
            Width::Two => self.load::<u16>(field.iova, Ordering::SeqCst).into(),
            Width::Four => self.load::<u32>(field.iova, Ordering::SeqCst).into(),
            Width::Eight => self.load(field.iova, Ordering::SeqCst),
        }
    }

    /// Sets a field; the value is cut to its width.
    pub fn set(&self, field: Field, value: u64) {
        match field.width {
            Width::Two => self.store(field.iova, value as u16, Ordering::SeqCst),
            Width::Four => self.store(field.iova, value as u32, Ordering::SeqCst),
            Width::Eight => self.store(field.iova, value, Ordering::SeqCst),
        }
    }

    /// Copies bytes out.
    #[must_use]
    pub fn read(&self, iova: Iova, len: usize) -> Vec<u8> {
        let at = self.pointer(iova, len);
        // SAFETY: `len` bytes inside the region, which the view keeps; accessed atomically, byte by
        // byte.
        (0..len).map(|i| unsafe { AtomicU8::from_ptr(at.add(i)) }.load(Ordering::Relaxed)).collect()
    }

    /// Copies bytes in.
    pub fn write(&self, iova: Iova, bytes: &[u8]) {
        let at = self.pointer(iova, bytes.len());
        for (i, &byte) in bytes.iter().enumerate() {
            // SAFETY: as for `read`.
            unsafe { AtomicU8::from_ptr(at.add(i)) }.store(byte, Ordering::Relaxed);
        }
    }
}
