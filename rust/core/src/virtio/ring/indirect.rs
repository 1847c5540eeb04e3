//! Tables of indirect descriptors (sections 2.7.5.3 and 2.8.7).
//!
//! A ring has a fixed number of tables. If all are in use, or a chain is too long for one, it is added
//! as a direct chain.

use super::shared::{Memory, Window};
use crate::Result;
use crate::memory::{Iova, Region};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// The most tables of a ring. Few packets are chains.
const TABLES: usize = 128;
/// Descriptors of a table: enough for a 64 KiB frame in buffers of 2 KiB and its header.
const ENTRIES: usize = 64;

/// The tables of one ring.
#[derive(Debug)]
pub(super) struct Tables {
    memory: Memory,
    words: Window<u64>,
    free: Vec<u16>,
    tables: u16,
    /// The longest chain: at most the queue size (section 2.7.5.3.1).
    longest: usize,
}

impl Tables {
    pub(super) fn new(region: &Arc<Region>, size: u16) -> Result<Self> {
        let tables = usize::from(size).next_power_of_two().min(TABLES);
        let memory = Memory::new(region, tables * ENTRIES * 16, 64)?;
        // SAFETY: `Tables` keeps the memory as long as the window.
        let words = unsafe { memory.window(0, tables * ENTRIES * 2) };
        let tables = tables as u16;
        let free = (0..tables).rev().collect();
        Ok(Self { memory, words, free, tables, longest: ENTRIES.min(size.into()) })
    }

    /// Takes a free table for a chain of this many descriptors.
    pub(super) fn take(&mut self, descriptors: usize) -> Option<u16> {
        if descriptors < 2 || descriptors > self.longest { None } else { self.free.pop() }
    }

    pub(super) fn put(&mut self, table: u16) {
        self.free.push(table);
    }

    /// Makes all tables free.
    pub(super) fn fill(&mut self) {
        self.free.clear();
        self.free.extend((0..self.tables).rev());
    }

    /// Sets one descriptor: its address and its second word in the format of the ring.
    pub(super) fn set(&self, table: u16, entry: usize, iova: Iova, rest: u64) {
        let at = (usize::from(table) * ENTRIES + entry) * 2;
        self.words.store(at, iova.0, Relaxed);
        self.words.store(at + 1, rest, Relaxed);
    }

    pub(super) fn iova(&self, table: u16) -> Iova {
        self.memory.iova(usize::from(table) * ENTRIES * 16)
    }
}
