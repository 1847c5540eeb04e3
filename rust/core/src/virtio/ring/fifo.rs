//! A FIFO of free identifiers.
//!
//! If the device uses buffers in order, identifiers are then taken in sequence: descriptors are written
//! in memory order, the contents of the available ring do not change, and the driver meets the
//! requirement of `VIRTIO_F_IN_ORDER` (sections 2.7.9 and 2.8.9).

use super::table::{Masked, Table};

/// A queue of the identifiers `0..size`, each at most once.
#[derive(Debug)]
pub(super) struct Fifo {
    ids: Table<u16>,
    size: u32,
    /// Number of identifiers ever taken and ever put, modulo 2^32. If they are put back in the order of
    /// taking, `ids[tail - size..head]` (masked) are the taken ones in that order.
    head: u32,
    tail: u32,
}

impl Fifo {
    pub(super) fn new(size: u16) -> Self {
        let mut fifo = Self { ids: Table::new(size), size: size.into(), head: 0, tail: 0 };
        fifo.fill();
        fifo
    }

    /// Resets to `0..size`, all free.
    pub(super) fn fill(&mut self) {
        (self.head, self.tail) = (0, 0);
        for id in 0..self.size {
            self.put(id as u16);
        }
    }

    /// Removes all identifiers until `fill`, for a poisoned ring.
    pub(super) fn drain(&mut self) {
        self.head = self.tail;
    }

    #[inline(always)]
    pub(super) fn len(&self) -> usize {
        self.tail.wrapping_sub(self.head) as usize
    }

    /// The number of identifiers ever taken, modulo 2^32.
    #[inline(always)]
    pub(super) fn taken(&self) -> u32 {
        self.head
    }

    /// The identifier at a position, free or taken.
    #[inline(always)]
    pub(super) fn at(&self, position: u32) -> u16 {
        *self.ids.get(position as usize)
    }

    /// Takes the next. Requires `len() > 0`; otherwise the identifier is in range but in use.
    #[inline(always)]
    pub(super) fn take(&mut self) -> u16 {
        let id = self.at(self.head);
        self.head = self.head.wrapping_add(1);
        id
    }

    #[inline(always)]
    pub(super) fn put(&mut self, id: u16) {
        *self.ids.view().get(self.tail as usize) = id;
        self.tail = self.tail.wrapping_add(1);
    }

    /// For a loop that takes: the identifiers by position, and the next position. Call
    /// [`Fifo::set_taken`] afterwards.
    #[inline(always)]
    pub(super) fn taking(&mut self) -> (Masked<'_, u16>, u32) {
        (self.ids.view(), self.head)
    }

    #[inline(always)]
    pub(super) fn set_taken(&mut self, head: u32) {
        self.head = head;
    }

    /// For a loop that puts: the identifiers by position, and the next position. Call
    /// [`Fifo::set_put`] afterwards.
    #[inline(always)]
    pub(super) fn putting(&mut self) -> (Masked<'_, u16>, u32) {
        (self.ids.view(), self.tail)
    }

    #[inline(always)]
    pub(super) fn set_put(&mut self, tail: u32) {
        self.tail = tail;
    }

    /// For a loop that puts in order: the distance from the oldest taken identifier to the next position.
    #[inline(always)]
    pub(super) fn span(&self) -> u32 {
        self.size
    }

    /// The oldest taken identifier, if all are put back in order.
    #[inline(always)]
    pub(super) fn oldest(&self) -> u16 {
        self.outstanding(0)
    }

    /// The identifier that was taken `n` after that one.
    #[inline(always)]
    pub(super) fn outstanding(&self, n: u32) -> u16 {
        self.at(self.tail.wrapping_sub(self.size).wrapping_add(n))
    }
}
