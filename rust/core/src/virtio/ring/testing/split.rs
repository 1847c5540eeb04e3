//! The device side of a split virtqueue (VIRTIO 1.3, section 2.7).

use super::{Chain, Device, Field, Part, View, Width};
use crate::memory::{Iova, Region};
use crate::virtio::ring::RingOptions;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, fence};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// The device side of a split virtqueue.
#[derive(Debug)]
pub struct SplitDevice {
    view: View,
    descriptors: Iova,
    avail: Iova,
    used: Iova,
    size: u16,
    event_idx: bool,
    /// The next entry to read from the available ring, modulo 2^16.
    next_avail: u16,
    /// The next entry to write to the used ring, and the last published `used.idx`.
    next_used: u16,
    flushed: u16,
}

impl SplitDevice {
    fn part(&self, table: Iova, index: u16) -> (Part, u16, u16) {
        let at = table.plus(16 * u64::from(index));
        let iova = Iova(self.view.load(at, Relaxed));
        let len = self.view.load(at.plus(8), Relaxed);
        let flags: u16 = self.view.load(at.plus(12), Relaxed);
        let next = self.view.load(at.plus(14), Relaxed);
        (Part { iova, len, writable: flags & WRITE != 0 }, flags, next)
    }

    fn walk(&self, table: Iova, size: usize, head: u16) -> Vec<(Part, u16)> {
        let mut parts = Vec::new();
        let mut index = head;
        loop {
            assert!(usize::from(index) < size, "descriptor {index} of {size}");
            let (part, flags, next) = self.part(table, index);
            parts.push((part, flags));
            assert!(parts.len() <= size, "the chain at {head} has no end");
            if flags & NEXT == 0 {
                return parts;
            }
            index = next;
        }
    }

    fn avail_idx(&self) -> u16 {
        self.view.load(self.avail.plus(2), Acquire)
    }

    fn avail_event(&self) -> Iova {
        self.used.plus(4 + 8 * u64::from(self.size))
    }
}

impl Device for SplitDevice {
    fn new(region: &Arc<Region>, addresses: (Iova, Iova, Iova), options: &RingOptions) -> Self {
        let (descriptors, avail, used) = addresses;
        Self {
            view: View::new(region),
            descriptors,
            avail,
            used,
            size: options.size,
            event_idx: options.event_idx,
            next_avail: 0,
            next_used: 0,
            flushed: 0,
        }
    }

    fn take(&mut self) -> Option<Chain> {
        let waiting = self.avail_idx().wrapping_sub(self.next_avail);
        assert!(waiting <= self.size, "avail.idx is {waiting} ahead of the device");
        if waiting == 0 {
            return None;
        }
        let slot = u64::from(self.next_avail % self.size);
        let id: u16 = self.view.load(self.avail.plus(4 + 2 * slot), Relaxed);
        self.next_avail = self.next_avail.wrapping_add(1);

        let mut parts = self.walk(self.descriptors, self.size.into(), id);
        let descriptors = parts.len() as u16;
        if let [(table, flags)] = parts[..]
            && flags & INDIRECT != 0
        {
            assert!(table.len > 0 && table.len % 16 == 0, "a table of {} bytes", table.len);
            parts = self.walk(table.iova, table.len as usize / 16, 0);
            assert!(parts.len() <= usize::from(self.size), "a chain longer than the queue");
        }
        assert!(parts.iter().all(|(_, flags)| flags & INDIRECT == 0), "a table inside a chain");
        let parts: Vec<Part> = parts.into_iter().map(|(part, _)| part).collect();
        assert!(parts.is_sorted_by_key(|part| part.writable), "writable before readable");
        Some(Chain { id, descriptors, parts })
    }

    fn put_batch(&mut self, chains: &[Chain], written: u32) {
        if let Some(last) = chains.last() {
            let start = self.next_used;
            self.put(last, written);
            self.next_used = start.wrapping_add(chains.len() as u16);
        }
    }

    fn put_raw(&mut self, id: u32, len: u32, _: u16) {
        let at = self.used.plus(4 + 8 * u64::from(self.next_used % self.size));
        self.view.store(at, id, Relaxed);
        self.view.store(at.plus(4), len, Relaxed);
        self.next_used = self.next_used.wrapping_add(1);
    }

    fn flush(&mut self) -> bool {
        let (old, new) = (self.flushed, self.next_used);
        if old == new {
            return false;
        }
        self.view.store(self.used.plus(2), new, Release);
        self.flushed = new;
        fence(SeqCst);
        if self.event_idx {
            let event: u16 = self.view.load(self.avail.plus(4 + 2 * u64::from(self.size)), Relaxed);
            // Whether the event is in old..new.
            event.wrapping_sub(old) < new.wrapping_sub(old)
        } else {
            self.view.load::<u16>(self.avail, Relaxed) & 1 == 0
        }
    }

    fn echo(&mut self, max: usize) -> usize {
        let waiting = self.avail_idx().wrapping_sub(self.next_avail).min(self.size);
        let count = usize::from(waiting).min(max);
        let size = usize::from(self.size);
        let heads = self.view.words::<u16>(self.avail.plus(4), size);
        let halves = self.view.words::<u64>(self.descriptors, 2 * size);
        let entries = self.view.words::<u32>(self.used.plus(4), 2 * size);
        for _ in 0..count {
            let at = usize::from(self.next_avail) & (size - 1);
            // SAFETY: `at` is less than `size`, which `words` checked.
            let id = unsafe { AtomicU16::from_ptr(heads.add(at)) }.load(Relaxed);
            let half = (usize::from(id) & (size - 1)) * 2 + 1;
            // SAFETY: as above; `half` is masked.
            let rest = unsafe { AtomicU64::from_ptr(halves.add(half)) }.load(Relaxed);
            let len = if rest >> 32 & u64::from(WRITE) != 0 { rest as u32 } else { 0 };
            let entry = (usize::from(self.next_used) & (size - 1)) * 2;
            // SAFETY: as above; `entry` is masked.
            unsafe {
                AtomicU32::from_ptr(entries.add(entry)).store(id.into(), Relaxed);
                AtomicU32::from_ptr(entries.add(entry + 1)).store(len, Relaxed);
            }
            self.next_avail = self.next_avail.wrapping_add(1);
            self.next_used = self.next_used.wrapping_add(1);
        }
        self.view.store(self.used.plus(2), self.next_used, Release);
        self.flushed = self.next_used;
        count
    }

    fn enable_kicks(&mut self) -> bool {
        if self.event_idx {
            self.view.store(self.avail_event(), self.next_avail, Relaxed);
        } else {
            self.view.store(self.used, 0u16, Relaxed);
        }
        fence(SeqCst);
        self.avail_idx() != self.next_avail
    }

    fn disable_kicks(&mut self) {
        if self.event_idx {
            // Beyond all buffers that can be available.
            self.view.store(self.avail_event(), self.next_avail.wrapping_add(0x8000), Relaxed);
        } else {
            self.view.store(self.used, 1u16, Relaxed);
        }
    }

    fn view(&self) -> &View {
        &self.view
    }

    fn fields(&self) -> Vec<Field> {
        let field = |name, index, offset: u64, width| Field {
            name,
            index,
            iova: self.used.plus(offset),
            width,
        };
        let mut fields = vec![
            field("used.flags", 0, 0, Width::Two),
            field("used.idx", 0, 2, Width::Two),
            field("used.avail_event", 0, 4 + 8 * u64::from(self.size), Width::Two),
        ];
        for index in 0..self.size {
            let at = 4 + 8 * u64::from(index);
            fields.push(field("used.ring.id", index, at, Width::Four));
            fields.push(field("used.ring.len", index, at + 4, Width::Four));
        }
        fields
    }
}
