//! The device side of a packed virtqueue (VIRTIO 1.3, section 2.8).

use super::{Chain, Device, Field, Part, View, Width};
use crate::memory::{Iova, Region};
use crate::virtio::ring::RingOptions;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU64, fence};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// A position in the ring: an index and its wrap counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    index: u16,
    wrap: bool,
}

impl Position {
    fn advance(&mut self, by: u16, size: u16) {
        let index = u32::from(self.index) + u32::from(by);
        if index >= size.into() {
            self.wrap = !self.wrap;
        }
        self.index = (index % u32::from(size)) as u16;
    }

    /// In the format of event suppression: the offset, and the wrap counter in bit 15.
    fn encode(self) -> u16 {
        self.index | u16::from(self.wrap) << 15
    }
}

/// The device side of a packed virtqueue.
#[derive(Debug)]
pub struct PackedDevice {
    view: View,
    descriptors: Iova,
    driver: Iova,
    device: Iova,
    size: u16,
    event_idx: bool,
    next_avail: Position,
    next_used: Position,
    /// Unpublished used descriptors with their second words.
    unflushed: Vec<(Position, u64)>,
    /// The position of the first of them.
    flushed: Position,
}

impl PackedDevice {
    fn descriptor(&self, table: Iova, index: u16) -> (Part, u16, u16) {
        let at = table.plus(16 * u64::from(index));
        let flags: u16 = self.view.load(at.plus(14), Acquire);
        let iova = Iova(self.view.load(at, Relaxed));
        let len = self.view.load(at.plus(8), Relaxed);
        let id = self.view.load(at.plus(12), Relaxed);
        (Part { iova, len, writable: flags & WRITE != 0 }, flags, id)
    }

    fn is_available(&self, position: Position, flags: u16) -> bool {
        (flags & AVAIL != 0) == position.wrap && (flags & USED != 0) != position.wrap
    }

    fn waiting(&self) -> bool {
        let (_, flags, _) = self.descriptor(self.descriptors, self.next_avail.index);
        self.is_available(self.next_avail, flags)
    }
}

impl Device for PackedDevice {
    fn new(region: &Arc<Region>, addresses: (Iova, Iova, Iova), options: &RingOptions) -> Self {
        let (descriptors, driver, device) = addresses;
        let start = Position { index: 0, wrap: true };
        Self {
            view: View::new(region),
            descriptors,
            driver,
            device,
            size: options.size,
            event_idx: options.event_idx,
            next_avail: start,
            next_used: start,
            unflushed: Vec::new(),
            flushed: start,
        }
    }

    fn take(&mut self) -> Option<Chain> {
        if !self.waiting() {
            return None;
        }
        let mut position = self.next_avail;
        let mut parts = Vec::new();
        let (last_flags, id) = loop {
            let (part, flags, id) = self.descriptor(self.descriptors, position.index);
            assert!(
                self.is_available(position, flags),
                "the chain ends in an unavailable descriptor"
            );
            parts.push(part);
            assert!(parts.len() <= self.size.into(), "a chain longer than the queue");
            position.advance(1, self.size);
            if flags & NEXT == 0 {
                break (flags, id);
            }
        };
        let descriptors = parts.len() as u16;
        if last_flags & INDIRECT != 0 {
            assert!(parts.len() == 1, "a table inside a chain");
            let table = parts[0];
            assert!(table.len > 0 && table.len % 16 == 0, "a table of {} bytes", table.len);
            let count = (table.len / 16) as u16;
            assert!(count <= self.size, "a chain longer than the queue");
            parts = (0..count).map(|entry| self.descriptor(table.iova, entry).0).collect();
        }
        assert!(parts.is_sorted_by_key(|part| part.writable), "writable before readable");
        self.next_avail = position;
        Some(Chain { id, descriptors, parts })
    }

    fn put_batch(&mut self, chains: &[Chain], written: u32) {
        if let Some(last) = chains.last() {
            let descriptors = chains.iter().map(|chain| chain.descriptors).sum();
            self.put_raw(last.id.into(), written, descriptors);
        }
    }

    fn put_raw(&mut self, id: u32, len: u32, descriptors: u16) {
        let lap = if self.next_used.wrap { AVAIL | USED } else { 0 };
        let flags = lap | if len > 0 { WRITE } else { 0 };
        let word = u64::from(len) | u64::from(id as u16) << 32 | u64::from(flags) << 48;
        self.unflushed.push((self.next_used, word));
        self.next_used.advance(descriptors, self.size);
    }

    fn flush(&mut self) -> bool {
        // The first is written last, as the driver reads the others after it.
        for (i, &(position, word)) in self.unflushed.iter().enumerate().rev() {
            let order = if i == 0 { Release } else { Relaxed };
            self.view.store(self.descriptors.plus(16 * u64::from(position.index) + 8), word, order);
        }
        if self.unflushed.is_empty() {
            return false;
        }
        self.unflushed.clear();
        let (mut old, new) = (self.flushed, self.next_used);
        self.flushed = new;
        fence(SeqCst);
        let preference: u16 = self.view.load(self.driver, Relaxed);
        match self.view.load::<u16>(self.driver.plus(2), Relaxed) {
            0 => true,
            2 if self.event_idx => {
                // Compared one by one, as a check of the driver's arithmetic.
                while old != new {
                    if old.encode() == preference {
                        return true;
                    }
                    old.advance(1, self.size);
                }
                false
            }
            _ => false,
        }
    }

    fn echo(&mut self, max: usize) -> usize {
        let size = usize::from(self.size);
        let halves = self.view.words::<u64>(self.descriptors, 2 * size);
        for done in 0..max {
            let half = usize::from(self.next_avail.index) * 2 + 1;
            // SAFETY: positions are less than `size`, which `words` checked.
            let half = unsafe { AtomicU64::from_ptr(halves.add(half)) };
            let word = half.load(Acquire);
            let flags = (word >> 48) as u16;
            if !self.is_available(self.next_avail, flags) {
                return done;
            }
            let lap = if self.next_used.wrap { AVAIL | USED } else { 0 };
            let len = if flags & WRITE != 0 { word & 0xffff_ffff } else { 0 };
            let id = word & 0xffff << 32;
            half.store(len | id | u64::from(lap | flags & WRITE) << 48, Release);
            let next = &mut self.next_avail;
            next.index += 1;
            if next.index == self.size {
                *next = Position { index: 0, wrap: !next.wrap };
            }
            self.next_used = self.next_avail;
            self.flushed = self.next_avail;
        }
        max
    }

    fn enable_kicks(&mut self) -> bool {
        if self.event_idx {
            self.view.store(self.device, self.next_avail.encode(), Relaxed);
            self.view.store(self.device.plus(2), 2u16, Release);
        } else {
            self.view.store(self.device.plus(2), 0u16, Relaxed);
        }
        fence(SeqCst);
        self.waiting()
    }

    fn disable_kicks(&mut self) {
        self.view.store(self.device.plus(2), 1u16, Relaxed);
    }

    fn view(&self) -> &View {
        &self.view
    }

    fn fields(&self) -> Vec<Field> {
        let field = |name, index, iova, width| Field { name, index, iova, width };
        let mut fields = vec![
            field("device_event.desc", 0, self.device, Width::Two),
            field("device_event.flags", 0, self.device.plus(2), Width::Two),
        ];
        for index in 0..self.size {
            let at = self.descriptors.plus(16 * u64::from(index));
            fields.push(field("desc.addr", index, at, Width::Eight));
            fields.push(field("desc.len", index, at.plus(8), Width::Four));
            fields.push(field("desc.id", index, at.plus(12), Width::Two));
            fields.push(field("desc.flags", index, at.plus(14), Width::Two));
        }
        fields
    }
}
