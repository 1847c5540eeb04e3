//! Memory of the program that is sent from or received into.

/// Bytes of the program, which other threads may read and write at any time.
#[derive(Clone, Copy, Debug)]
pub struct Area {
    start: *mut u8,
    length: usize,
}

// SAFETY: the caller of `new` guaranteed that address and length stay valid.
unsafe impl Send for Area {}

impl Area {
    /// An area of `length` bytes.
    ///
    /// # Safety
    /// While it or a part of it is in use, `length` bytes at `start` must be readable, and writable
    /// if something is received into them.
    #[must_use]
    pub unsafe fn new(start: *mut u8, length: usize) -> Self {
        Self { start, length }
    }
    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }
    /// Whether it is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
    /// The area without its first `count` bytes.
    #[must_use]
    pub fn skip(self, count: usize) -> Self {
        let count = count.min(self.length);
        Self { start: self.start.wrapping_add(count), length: self.length - count }
    }
    pub(super) fn read(self, to: &mut [u8]) -> usize {
        let count = to.len().min(self.length);
        // SAFETY: readable, by the contract of `new`; `to` is private memory with that much room.
        unsafe { std::ptr::copy(self.start, to.as_mut_ptr(), count) };
        count
    }
    pub(super) fn write(self, from: &[u8]) -> usize {
        let count = from.len().min(self.length);
        // SAFETY: writable, by the contract of `new`; `from` is private memory of that length.
        unsafe { std::ptr::copy(from.as_ptr(), self.start, count) };
        count
    }
}
