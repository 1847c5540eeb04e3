//! The driver side of a split virtqueue (VIRTIO 1.3, section 2.7).
//!
//! It has three areas: the descriptor table, the available ring (driver area) and the used ring (device
//! area), in the layout of the legacy interface (2.7.2: the used ring is on a page of its own), which
//! modern devices accept. Driver and device then write to different cache lines.

mod pop;

use super::follower::SplitSuppression;
use super::indirect::Tables;
use super::shared::{Memory, Window};
use super::slots::{MAX_CHAIN, Slot, Slots, shape};
use super::table::Table;
use super::{Follower, MAX_SIZE, Ring, RingOptions, Violation, event, fifo::Fifo};
use crate::Result;
use crate::memory::{Iova, Region};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::fence;

/// The alignment of the legacy interface; modern devices need 16, 2 and 4.
const ALIGN: usize = 4096;

/// Descriptor flags (2.7.5), shifted to their place in the second word.
const NEXT: u64 = 1 << 32;
const WRITE: u64 = 2 << 32;
const INDIRECT: u64 = 4 << 32;
/// `avail.flags` (2.7.6) and `used.flags` (2.7.8): notifications are suppressed.
const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;

/// Byte offsets of the three areas and the end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) avail: usize,
    pub(super) used: usize,
    pub(super) len: usize,
}

impl Layout {
    pub(super) fn new(size: u16) -> Self {
        let size = usize::from(size);
        let avail = 16 * size;
        let used = (avail + 6 + 2 * size).next_multiple_of(ALIGN);
        Self { avail, used, len: used + 6 + 8 * size }
    }
}

/// The fields of the three areas.
#[derive(Clone, Copy, Debug)]
pub(super) struct Areas {
    /// Two words per descriptor: the address; length, flags and next.
    descriptors: Window<u64>,
    avail_flags: Window<u16>,
    avail_idx: Window<u16>,
    pub(super) avail_ring: Window<u16>,
    used_event: Window<u16>,
    used_flags: Window<u16>,
    pub(super) used_idx: Window<u16>,
    /// Two words per entry: id, length.
    used_ring: Window<u32>,
    avail_event: Window<u16>,
}

impl Areas {
    /// # Safety
    /// The memory must be kept as long as the result is used.
    unsafe fn new(memory: &Memory, layout: Layout, count: usize) -> Self {
        let Layout { avail, used, .. } = layout;
        // SAFETY: guaranteed by the caller.
        unsafe {
            Self {
                descriptors: memory.window(0, count * 2),
                avail_flags: memory.window(avail, 1),
                avail_idx: memory.window(avail + 2, 1),
                avail_ring: memory.window(avail + 4, count),
                used_event: memory.window(avail + 4 + 2 * count, 1),
                used_flags: memory.window(used, 1),
                used_idx: memory.window(used + 2, 1),
                used_ring: memory.window(used + 4, count * 2),
                avail_event: memory.window(used + 4 + 8 * count, 1),
            }
        }
    }
}

/// The driver side of a split virtqueue.
#[derive(Debug)]
pub struct SplitRing {
    pub(super) size: u16,
    event_idx: bool,
    in_order: bool,

    pub(super) areas: Areas,
    free: Fifo,
    pub(super) slots: Slots,
    tables: Option<Tables>,
    /// A copy of the available ring. An entry that does not change is not written, so its cache line
    /// stays with the device.
    pub(super) avail_shadow: Table<u16>,
    /// Chains added, published and popped, modulo 2^16.
    pub(super) added: u16,
    pub(super) published: u16,
    pub(super) popped: u16,
    /// Chains published since the last `wants_kick`.
    unasked: u16,
    /// `free.taken()` at the last publish.
    taken_published: u32,
    /// With IN_ORDER: the last buffer of the batch that is being popped, and its length.
    batch: Option<(u16, u32)>,
    broken: Option<Violation>,

    layout: Layout,
    /// Last, so that it outlives the windows.
    memory: Arc<Memory>,
}

impl SplitRing {
    #[cold]
    fn poison(&mut self, violation: Violation) -> Violation {
        self.broken = Some(violation);
        self.free.drain();
        violation
    }

    /// Adds a chain's head to the available ring.
    #[inline(always)]
    fn offer(&mut self, head: u16) {
        let at = usize::from(self.added);
        let shadow = self.avail_shadow.view().into_get(at);
        if *shadow != head {
            *shadow = head;
            self.areas.avail_ring.store(at, head, Relaxed);
        }
        self.added = self.added.wrapping_add(1);
    }

    fn start(&mut self) {
        for (at, shadow) in self.avail_shadow.iter_mut().enumerate() {
            *shadow = at as u16;
            self.areas.avail_ring.store(at, at as u16, Relaxed);
        }
        self.disable_interrupts();
        fence(Release);
    }
}

impl Ring for SplitRing {
    fn new(region: &Arc<Region>, options: &RingOptions) -> Result<Self> {
        options.check(true)?;
        let size = options.size;
        let count = usize::from(size);
        let layout = Layout::new(size);
        let memory = Arc::new(Memory::new(region, layout.len, ALIGN)?);
        // SAFETY: the ring keeps the memory as long as the windows.
        let areas = unsafe { Areas::new(&memory, layout, count) };
        let mut ring = Self {
            size,
            event_idx: options.event_idx,
            in_order: options.in_order,
            areas,
            free: Fifo::new(size),
            slots: Slots::new(size),
            tables: options.indirect.then(|| Tables::new(region, size)).transpose()?,
            avail_shadow: Table::new(size),
            added: 0,
            published: 0,
            popped: 0,
            unasked: 0,
            taken_published: 0,
            batch: None,
            broken: None,
            layout,
            memory,
        };
        ring.start();
        Ok(ring)
    }

    fn size(&self) -> u16 {
        self.size
    }

    fn addresses(&self) -> (Iova, Iova, Iova) {
        let Layout { avail, used, .. } = self.layout;
        (self.memory.iova(0), self.memory.iova(avail), self.memory.iova(used))
    }

    #[inline]
    fn free(&self) -> usize {
        self.free.len()
    }

    #[inline]
    fn in_flight(&self) -> usize {
        self.published.wrapping_sub(self.popped).into()
    }

    #[inline]
    fn add(
        &mut self,
        writable: bool,
        count: usize,
        mut buffer: impl FnMut(usize) -> (u32, Iova, u32),
    ) -> usize {
        let count = count.min(self.free.len());
        let (flags, writes) = if writable { (WRITE, u32::MAX) } else { (0, 0) };
        // Locals, so that the loop keeps them in registers.
        let (descriptors, avail_ring) = (self.areas.descriptors, self.areas.avail_ring);
        let (mut ids, mut taken) = self.free.taking();
        let mut slots = self.slots.view();
        let mut shadows = self.avail_shadow.view();
        let mut added = usize::from(self.added);
        for i in 0..count {
            let (token, iova, len) = buffer(i);
            let id = *ids.get(taken as usize);
            taken = taken.wrapping_add(1);
            slots.get(id.into()).set_plain(token, len & writes);
            let at = usize::from(id) * 2;
            // Always both words: the cache line is written anyway.
            descriptors.store(at, iova.0, Relaxed);
            descriptors.store(at + 1, u64::from(len) | flags, Relaxed);
            let shadow = shadows.get(added);
            if *shadow != id {
                *shadow = id;
                avail_ring.store(added, id, Relaxed);
            }
            added += 1;
        }
        self.free.set_taken(taken);
        self.added = added as u16;
        count
    }

    fn add_chain(
        &mut self,
        token: u32,
        readable: &[(Iova, u32)],
        writable: &[(Iova, u32)],
    ) -> bool {
        let parts = readable.len() + writable.len();
        let free = self.free.len();
        if parts == 0 || free == 0 {
            return false;
        }
        let capacity = writable.iter().fold(0u32, |sum, &(_, len)| sum.saturating_add(len));
        let descriptors = readable
            .iter()
            .map(|&(iova, len)| (iova, u64::from(len)))
            .chain(writable.iter().map(|&(iova, len)| (iova, u64::from(len) | WRITE)));
        let table = self.tables.as_mut().and_then(|tables| tables.take(parts));

        if let (Some(table), Some(tables)) = (table, &self.tables) {
            for (entry, (iova, rest)) in descriptors.enumerate() {
                let next = (entry + 1) as u64;
                let more = if entry + 1 < parts { NEXT | next << 48 } else { 0 };
                tables.set(table, entry, iova, rest | more);
            }
            let id = self.free.take();
            let at = usize::from(id) * 2;
            self.areas.descriptors.store(at, tables.iova(table).0, Relaxed);
            self.areas.descriptors.store(at + 1, (parts * 16) as u64 | INDIRECT, Relaxed);
            *self.slots.get_mut(id) =
                Slot { token, capacity, shape: shape(1, Some(table)), next: 0 };
            self.offer(id);
            return true;
        }

        if parts > free || parts > MAX_CHAIN {
            return false;
        }
        let head = self.free.at(self.free.taken());
        for (part, (iova, rest)) in descriptors.enumerate() {
            let id = self.free.take();
            let next = self.free.at(self.free.taken());
            let more = if part + 1 < parts { NEXT | u64::from(next) << 48 } else { 0 };
            let at = usize::from(id) * 2;
            self.areas.descriptors.store(at, iova.0, Relaxed);
            self.areas.descriptors.store(at + 1, rest | more, Relaxed);
            // Only the head may be reported as used: shape 0 rejects the others.
            let count = if part == 0 { parts } else { 0 };
            *self.slots.get_mut(id) = Slot { token, capacity, shape: shape(count, None), next };
        }
        self.offer(head);
        true
    }

    #[inline]
    fn publish_quiet(&mut self) {
        if self.published != self.added {
            self.areas.avail_idx.store(0, self.added, Release);
            // If it saturates, `wants_kick` returns true, which is right.
            self.unasked = self.unasked.saturating_add(self.added.wrapping_sub(self.published));
            self.published = self.added;
            self.taken_published = self.free.taken();
        }
    }

    #[inline]
    fn wants_kick(&mut self) -> bool {
        let new_chains = std::mem::take(&mut self.unasked);
        if new_chains == 0 {
            return false;
        }
        // The index must be visible before the device's preference is read: the device writes the
        // preference, then checks the index once more before it sleeps.
        fence(SeqCst);
        if self.event_idx {
            let new = self.published;
            event::passed(
                self.areas.avail_event.load(0, Relaxed),
                new,
                new.wrapping_sub(new_chains),
            )
        } else {
            self.areas.used_flags.load(0, Relaxed) & NO_NOTIFY == 0
        }
    }

    fn next_available(&self) -> u16 {
        self.published
    }

    #[inline]
    fn pop(&mut self, max: usize, mut used: impl FnMut(u32, u32)) -> Result<usize, Violation> {
        if let Some(violation) = self.broken {
            return Err(violation);
        }
        let index = self.areas.used_idx.load(0, Acquire);
        let ready = index.wrapping_sub(self.popped);
        if ready == 0 {
            return Ok(0);
        }
        let in_flight = self.in_flight();
        if usize::from(ready) > in_flight {
            let violation = Violation::UsedIndex { from: self.popped, to: index, in_flight };
            return Err(self.poison(violation));
        }
        let count = ready.min(max.min(usize::from(u16::MAX)) as u16);
        let unpublished = self.added != self.published;
        if unpublished {
            self.mark_unpublished(true);
        }
        let result = if self.in_order {
            self.pop_in_order(ready, count, &mut used)
        } else {
            self.pop_any_order(count, &mut used)
        };
        if unpublished {
            self.mark_unpublished(false);
        }
        match result {
            Ok(()) => Ok(count.into()),
            Err(violation) => Err(self.poison(violation)),
        }
    }

    #[inline]
    fn has_used(&self) -> bool {
        self.areas.used_idx.load(0, Acquire) != self.popped
    }

    fn used(&self) -> usize {
        usize::from(self.areas.used_idx.load(0, Acquire).wrapping_sub(self.popped))
    }

    fn enable_interrupts(&mut self) -> bool {
        self.enable_interrupts_after(1)
    }

    fn enable_interrupts_after(&mut self, n: u16) -> bool {
        let mut wanted = 1;
        if self.event_idx {
            wanted = n.clamp(1, self.published.wrapping_sub(self.popped).max(1));
            self.areas.used_event.store(0, self.popped.wrapping_add(wanted - 1), Relaxed);
        } else {
            self.areas.avail_flags.store(0, 0, Relaxed);
        }
        // As in `wants_kick`, from the other side: write the preference, then check once more.
        fence(SeqCst);
        self.areas.used_idx.load(0, Acquire).wrapping_sub(self.popped) >= wanted
    }

    fn disable_interrupts(&mut self) {
        if self.event_idx {
            // Beyond all buffers in flight: passed once in 65,536 buffers.
            self.areas.used_event.store(0, self.popped.wrapping_add(MAX_SIZE), Relaxed);
        } else {
            self.areas.avail_flags.store(0, NO_INTERRUPT, Relaxed);
        }
    }

    fn reset(&mut self, returned: impl FnMut(u32)) {
        self.slots.clear(returned);
        self.free.fill();
        if let Some(tables) = &mut self.tables {
            tables.fill();
        }
        (self.added, self.published, self.popped, self.unasked) = (0, 0, 0, 0);
        self.taken_published = 0;
        (self.batch, self.broken) = (None, None);
        self.memory.zero();
        self.start();
    }

    fn reoffer(&mut self, _: u32, _: impl Fn(u32) -> Option<Iova>) {
        if self.broken.is_none() && !self.in_order {
            self.reoffer_overwritten();
        }
    }

    fn poisoned(&self) -> Option<Violation> {
        self.broken
    }

    fn follower(&self) -> Follower {
        let Areas { used_idx, used_flags, avail_event, avail_idx, .. } = self.areas;
        let preference = SplitSuppression { used_flags, avail_event, avail_idx };
        Follower::of_split(self.size, used_idx, preference, &self.memory)
    }
}
