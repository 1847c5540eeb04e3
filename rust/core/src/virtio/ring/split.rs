//! The split virtqueue, driver side (VIRTIO 1.3, section 2.7).
//!
//! Three parts: the descriptor table, the available ring (driver area), the
//! used ring (device area). They lie as the legacy interface wants them (2.7.2:
//! the first two in a row, the used ring on the next page), which modern
//! devices take as well and which keeps the sides off each other's lines.

use super::follower::SplitSuppression;
use super::indirect::Tables;
use super::shared::{Memory, Window};
use super::slots::{MAX_CHAIN, PLAIN, Slot, Slots, shape};
use super::table::Table;
use super::{Follower, MAX_SIZE, Ring, RingOptions, Violation, event, fifo::Fifo};
use crate::Result;
use crate::memory::{Iova, Region};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::fence;

/// The alignment of the legacy interface; modern devices need 16, 2 and 4.
const ALIGN: usize = 4096;

/// Descriptor flags (2.7.5), where they lie in a descriptor's second half.
const NEXT: u64 = 1 << 32;
const WRITE: u64 = 2 << 32;
const INDIRECT: u64 = 4 << 32;
/// `avail.flags` (2.7.6) and `used.flags` (2.7.8): the other side need not notify.
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
    /// Two words a descriptor: address, then length, flags and next.
    descriptors: Window<u64>,
    avail_flags: Window<u16>,
    avail_idx: Window<u16>,
    pub(super) avail_ring: Window<u16>,
    used_event: Window<u16>,
    used_flags: Window<u16>,
    pub(super) used_idx: Window<u16>,
    /// Two words an entry: id, length.
    used_ring: Window<u32>,
    avail_event: Window<u16>,
}

impl Areas {
    /// # Safety
    /// The memory is kept for as long as the result is used.
    unsafe fn new(memory: &Memory, layout: Layout, count: usize) -> Self {
        let Layout { avail, used, .. } = layout;
        // SAFETY: the caller's promise.
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

/// The driver's side of a split virtqueue.
#[derive(Debug)]
pub struct SplitRing {
    pub(super) size: u16,
    event_idx: bool,
    in_order: bool,

    pub(super) areas: Areas,
    free: Fifo,
    pub(super) slots: Slots,
    tables: Option<Tables>,
    /// What the available ring holds: an entry that is right already is not
    /// written, and its cache line stays with the device.
    pub(super) avail_shadow: Table<u16>,
    /// Chains added, published and popped; modulo 2^16.
    pub(super) added: u16,
    pub(super) published: u16,
    pub(super) popped: u16,
    /// Chains published since `wants_kick`.
    unasked: u16,
    /// `free.taken()` when last published.
    taken_published: u32,
    /// In order: the last buffer of the batch being taken, and its length.
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

    /// Frees the descriptors of a chain that is longer than one or has a table.
    #[cold]
    fn release(&mut self, head: u16, slot: Slot) {
        if let (Some(table), Some(tables)) = (slot.table(), &mut self.tables) {
            tables.put(table);
        }
        let mut id = head;
        for _ in 0..slot.count() {
            self.free.put(id);
            id = self.slots.get_mut(id).next;
        }
    }

    /// Takes one used chain off the books; the token and what was written.
    #[inline(always)]
    fn complete(&mut self, id: u32, len: u32) -> Result<(u32, u32), Violation> {
        let (slot, written) = self.slots.used(id, len)?;
        let (token, taken) = (slot.token, *slot);
        slot.shape = 0;
        if taken.shape == PLAIN {
            self.free.put(id as u16);
        } else {
            self.release(id as u16, taken);
        }
        Ok((token, written))
    }

    #[inline(always)]
    pub(super) fn used_entry(&self, index: u16) -> (u32, u32) {
        let at = usize::from(index) * 2;
        (self.areas.used_ring.load(at, Relaxed), self.areas.used_ring.load(at + 1, Relaxed))
    }

    /// One entry stands for all buffers up to the one it names (section 2.7.9).
    #[inline(always)]
    fn pop_in_order(
        &mut self,
        ready: u16,
        count: u16,
        used: &mut impl FnMut(u32, u32),
    ) -> Result<(), Violation> {
        let all = self.popped.wrapping_add(ready);
        let end = self.popped.wrapping_add(count);
        while self.popped != end {
            match self.batch {
                None => self.pop_plain::<true>(end, used),
                // The last one of all is left: it is looked at whether it ends the batch.
                Some((last, _)) if end == all => self.pop_batch(last, end.wrapping_sub(1), used),
                Some((last, _)) => self.pop_batch(last, end, used),
            }
            if self.popped == end {
                break;
            }
            // The begin or end of a batch, or something out of the ordinary.
            self.step_in_order((all, ready), used)?;
        }
        Ok(())
    }

    /// Takes single buffers of a batch up to its last, or the first that is anything else: the
    /// device said nothing of them.
    #[inline(always)]
    fn pop_batch(&mut self, last: u16, end: u16, used: &mut impl FnMut(u32, u32)) {
        let span = self.free.span();
        let (mut ids, mut put) = self.free.putting();
        let mut slots = self.slots.view();
        let mut popped = self.popped;
        while popped != end {
            let id = *ids.get(put.wrapping_sub(span) as usize);
            if id == last {
                break;
            }
            let slot = slots.get(id.into());
            let Some((token, written)) = slot.take_plain(slot.capacity) else { break };
            *ids.get(put as usize) = id;
            put = put.wrapping_add(1);
            popped = popped.wrapping_add(1);
            used(token, written);
        }
        self.free.set_put(put);
        self.popped = popped;
    }

    /// Takes one buffer or chain, whatever it is, of those that the device has used: where these
    /// end, and how many there were.
    #[cold]
    fn step_in_order(
        &mut self,
        (all, ready): (u16, u16),
        used: &mut dyn FnMut(u32, u32),
    ) -> Result<(), Violation> {
        {
            let left = all.wrapping_sub(self.popped);
            let (last, len) = match self.batch {
                Some(batch) => batch,
                None => {
                    let (id, len) = self.used_entry(self.popped);
                    self.slots.used(id, len)?;
                    (id as u16, len)
                }
            };
            let oldest = self.free.oldest();
            let (token, written) = if oldest == last {
                self.batch = None;
                self.complete(oldest.into(), len)?
            } else if left == 1 {
                return Err(Violation::OutOfOrder { id: last.into(), count: ready });
            } else {
                self.batch = Some((last, len));
                let capacity = self.slots.get_mut(oldest).capacity;
                self.complete(oldest.into(), capacity)?
            };
            self.popped = self.popped.wrapping_add(1);
            used(token, written);
        }
        Ok(())
    }

    #[inline(always)]
    fn pop_any_order(
        &mut self,
        count: u16,
        used: &mut impl FnMut(u32, u32),
    ) -> Result<(), Violation> {
        let end = self.popped.wrapping_add(count);
        while self.popped != end {
            self.pop_plain::<false>(end, used);
            if self.popped == end {
                break;
            }
            // Something out of the ordinary.
            self.step(used)?;
        }
        Ok(())
    }

    /// Takes one buffer or chain, whatever it is.
    #[cold]
    fn step(&mut self, used: &mut dyn FnMut(u32, u32)) -> Result<(), Violation> {
        let (id, len) = self.used_entry(self.popped);
        let (token, written) = self.complete(id, len)?;
        self.popped = self.popped.wrapping_add(1);
        used(token, written);
        Ok(())
    }

    /// Takes single buffers up to the first that is anything else; `IN_ORDER`: up to the first that
    /// is not the oldest.
    #[inline(always)]
    fn pop_plain<const IN_ORDER: bool>(&mut self, end: u16, used: &mut impl FnMut(u32, u32)) {
        let span = self.free.span();
        let used_ring = self.areas.used_ring;
        let (mut ids, mut put) = self.free.putting();
        let mut slots = self.slots.view();
        let mut popped = self.popped;
        while popped != end {
            let at = usize::from(popped) * 2;
            let (id, len) = (used_ring.load(at, Relaxed), used_ring.load(at + 1, Relaxed));
            if IN_ORDER && id != u32::from(*ids.get(put.wrapping_sub(span) as usize)) {
                break;
            }
            let Some(slot) = slots.checked(id as usize) else { break };
            let Some((token, written)) = slot.take_plain(len) else { break };
            *ids.get(put as usize) = id as u16;
            put = put.wrapping_add(1);
            popped = popped.wrapping_add(1);
            used(token, written);
        }
        self.free.set_put(put);
        self.popped = popped;
    }

    /// Marks what the device cannot have used yet, or takes the marks off.
    #[cold]
    fn mark_unpublished(&mut self, unpublished: bool) {
        let Self { slots, free, taken_published, .. } = self;
        let count = free.taken().wrapping_sub(*taken_published);
        let ids = (0..count).map(|i| free.at(taken_published.wrapping_add(i)));
        slots.mark_unpublished(ids, unpublished);
    }

    /// Puts a head into the available ring.
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
        // Everything the loop needs in registers.
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
            // Both halves always: the address makes the line ours anyway.
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
            // Only the head can come back: shape 0 refuses the others.
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
            // Saturates, and then the answer is yes, as it should be.
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
        // The index must be out before the device's preference is read: it writes the
        // preference, then looks at the index a last time before it sleeps.
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
        // The mirror image of `wants_kick`: our preference first, then a last look.
        fence(SeqCst);
        self.areas.used_idx.load(0, Acquire).wrapping_sub(self.popped) >= wanted
    }

    fn disable_interrupts(&mut self) {
        if self.event_idx {
            // Out of reach of all that is in flight: passed once in 65,536 buffers.
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
