//! The driver side of a packed virtqueue (VIRTIO 1.3, section 2.8).
//!
//! There is one ring of descriptors: the driver writes available ones, the device overwrites them with
//! used ones. Two flag bits and a wrap counter, which changes with every lap, tell them apart. The
//! second half of a descriptor (length, id, flags) is read and written as one aligned 64-bit word.

mod pop;

use super::flags::{
    AVAIL, DESC, DISABLE, ENABLE, EVENT_FLAGS, EVENT_WRAP, INDIRECT, NEXT, USED, WRITE,
};
use super::indirect::Tables;
use super::shared::{LINE, Memory, Window};
use super::slots::{MAX_CHAIN, Slot, Slots, shape};
use super::{Follower, Ring, RingOptions, Violation, event, fifo::Fifo};
use crate::Result;
use crate::memory::{Iova, Region};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU16, fence};

/// Byte offsets of the event suppression areas and the end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) driver: usize,
    pub(super) device: usize,
    len: usize,
}

impl Layout {
    pub(super) fn new(size: u16) -> Self {
        // A power of two of descriptors, so that indices can be masked.
        let driver = (16 * usize::from(size).next_power_of_two()).next_multiple_of(LINE);
        Self { driver, device: driver + LINE, len: driver + 2 * LINE }
    }
}

/// The driver side of a packed virtqueue.
#[derive(Debug)]
pub struct PackedRing {
    pub(super) size: u16,
    event_idx: bool,
    in_order: bool,

    /// Two words per descriptor: the address; length, id and flags.
    pub(super) descriptors: Window<u64>,
    driver_event: Window<u32>,
    device_event: Window<u32>,

    pub(super) free: Fifo,
    pub(super) slots: Slots,
    tables: Option<Tables>,
    /// Number of free descriptors.
    pub(super) free_descriptors: usize,
    /// The place of the next available descriptor, and the flags of available ones in this lap.
    next_avail: u16,
    avail_flags: u64,
    /// The place of the next used descriptor, and the flags of used ones in this lap.
    pub(super) next_used: u16,
    pub(super) used_flags: u64,
    /// The first descriptor since the last publish, 0 for none. It is written last, as the device only
    /// reads the others after it.
    held: u64,
    held_at: u16,
    /// Descriptors and chains added since the last publish.
    pub(super) added: u16,
    added_chains: u32,
    /// Descriptors published since the last `wants_kick`.
    unasked: u16,
    /// Chains with the device.
    pub(super) in_flight: usize,
    /// `free.taken()` at the last publish.
    pub(super) taken_published: u32,
    /// With IN_ORDER: the last buffer of the batch that is being popped, and its length.
    pub(super) batch: Option<(u16, u32)>,
    broken: Option<Violation>,

    /// The position of the next used descriptor and its wrap counter, for followers.
    popped: Arc<AtomicU16>,

    layout: Layout,
    /// Last, so that it outlives the windows.
    memory: Arc<Memory>,
}

impl PackedRing {
    #[cold]
    fn poison(&mut self, violation: Violation) -> Violation {
        self.broken = Some(violation);
        self.free.drain();
        self.free_descriptors = 0;
        violation
    }

    /// Writes the descriptor at `next_avail` and advances. `rest` is its second word without the lap's
    /// flags.
    #[inline(always)]
    fn put(&mut self, iova: Iova, rest: u64) {
        let at = usize::from(self.next_avail) * 2;
        let rest = rest | self.avail_flags;
        self.descriptors.store(at, iova.0, Relaxed);
        if self.held == 0 {
            // `rest` is not 0: one of the two flags is set in every lap.
            (self.held, self.held_at) = (rest, self.next_avail);
        } else {
            self.descriptors.store(at + 1, rest, Relaxed);
        }
        self.next_avail += 1;
        if self.next_avail == self.size {
            self.next_avail = 0;
            self.avail_flags ^= AVAIL | USED;
        }
    }

    #[inline]
    fn show_position(&self) {
        let (at, flags, _) = self.after_batch();
        let wrap = if flags & AVAIL != 0 { EVENT_WRAP } else { 0 };
        self.popped.store(at | wrap, Release);
        // A follower that sees a descriptor written after this must also see this.
        fence(Release);
    }

    fn start(&mut self) {
        self.free_descriptors = self.size.into();
        (self.next_avail, self.next_used) = (0, 0);
        // The wrap counters start at 1 (2.8.1).
        self.avail_flags = AVAIL;
        self.used_flags = AVAIL | USED;
        (self.held, self.held_at) = (0, 0);
        (self.added, self.added_chains, self.unasked) = (0, 0, 0);
        (self.in_flight, self.taken_published) = (0, 0);
        (self.batch, self.broken) = (None, None);
        self.show_position();
        self.disable_interrupts();
        fence(Release);
    }
}

impl Ring for PackedRing {
    fn new(region: &Arc<Region>, options: &RingOptions) -> Result<Self> {
        options.check(false)?;
        let size = options.size;
        let layout = Layout::new(size);
        let memory = Arc::new(Memory::new(region, layout.len, LINE)?);
        // SAFETY: the ring keeps the memory as long as the windows.
        let (descriptors, driver_event, device_event) = unsafe {
            (
                memory.window(0, usize::from(size).next_power_of_two() * 2),
                memory.window(layout.driver, 1),
                memory.window(layout.device, 1),
            )
        };
        let mut ring = Self {
            size,
            event_idx: options.event_idx,
            in_order: options.in_order,
            descriptors,
            driver_event,
            device_event,
            free: Fifo::new(size),
            slots: Slots::new(size),
            tables: options.indirect.then(|| Tables::new(region, size)).transpose()?,
            free_descriptors: 0,
            next_avail: 0,
            avail_flags: 0,
            next_used: 0,
            used_flags: 0,
            held: 0,
            held_at: 0,
            added: 0,
            added_chains: 0,
            unasked: 0,
            in_flight: 0,
            taken_published: 0,
            batch: None,
            broken: None,
            popped: Arc::default(),
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
        let Layout { driver, device, .. } = self.layout;
        (self.memory.iova(0), self.memory.iova(driver), self.memory.iova(device))
    }

    #[inline]
    fn free(&self) -> usize {
        self.free_descriptors
    }

    #[inline]
    fn in_flight(&self) -> usize {
        self.in_flight
    }

    #[inline]
    fn add(
        &mut self,
        writable: bool,
        count: usize,
        mut buffer: impl FnMut(usize) -> (u32, Iova, u32),
    ) -> usize {
        // At least as many identifiers are free as descriptors.
        let count = count.min(self.free_descriptors);
        let (flags, writes) = if writable { (WRITE, u32::MAX) } else { (0, 0) };
        // Locals, so that the loop keeps them in registers. The device ignores these descriptors until
        // the held word is written.
        let (descriptors, size) = (self.descriptors, usize::from(self.size));
        let (mut ids, mut taken) = self.free.taking();
        let mut slots = self.slots.view();
        let (mut at, mut lap) = (usize::from(self.next_avail), self.avail_flags | flags);
        let (mut held, mut held_at) = (self.held, usize::from(self.held_at));
        let mut done = 0;
        while done < count {
            let until = count.min(done + size - at);
            for i in done..until {
                let (token, iova, len) = buffer(i);
                let id = *ids.get(taken as usize);
                taken = taken.wrapping_add(1);
                slots.get(id.into()).set_plain(token, len & writes);
                let rest = u64::from(len) | u64::from(id) << 32 | lap;
                descriptors.store(at * 2, iova.0, Relaxed);
                if held == 0 {
                    (held, held_at) = (rest, at);
                } else {
                    descriptors.store(at * 2 + 1, rest, Relaxed);
                }
                at += 1;
            }
            done = until;
            if at == size {
                at = 0;
                lap ^= AVAIL | USED;
            }
        }
        self.free.set_taken(taken);
        (self.next_avail, self.avail_flags) = (at as u16, lap & (AVAIL | USED));
        (self.held, self.held_at) = (held, held_at as u16);
        self.free_descriptors -= count;
        self.added += count as u16;
        self.added_chains += count as u32;
        count
    }

    fn add_chain(
        &mut self,
        token: u32,
        readable: &[(Iova, u32)],
        writable: &[(Iova, u32)],
    ) -> bool {
        let parts = readable.len() + writable.len();
        if parts == 0 || self.free_descriptors == 0 {
            return false;
        }
        let capacity = writable.iter().fold(0u32, |sum, &(_, len)| sum.saturating_add(len));
        let descriptors = readable
            .iter()
            .map(|&(iova, len)| (iova, u64::from(len)))
            .chain(writable.iter().map(|&(iova, len)| (iova, u64::from(len) | WRITE)));
        let table = self.tables.as_mut().and_then(|tables| tables.take(parts));
        let count = if table.is_some() { 1 } else { parts };
        if count > self.free_descriptors || count > MAX_CHAIN {
            return false;
        }
        let id = self.free.take();
        *self.slots.get_mut(id) = Slot { token, capacity, shape: shape(count, table), next: 0 };
        let tag = u64::from(id) << 32;
        if let (Some(table), Some(tables)) = (table, &self.tables) {
            for (entry, (iova, rest)) in descriptors.enumerate() {
                tables.set(table, entry, iova, rest);
            }
            let iova = tables.iova(table);
            self.put(iova, (parts * 16) as u64 | tag | INDIRECT);
        } else {
            for (part, (iova, rest)) in descriptors.enumerate() {
                let more = if part + 1 < parts { NEXT } else { 0 };
                self.put(iova, rest | tag | more);
            }
        }
        self.free_descriptors -= count;
        self.added += count as u16;
        self.added_chains += 1;
        true
    }

    #[inline]
    fn publish_quiet(&mut self) {
        if self.held != 0 {
            self.descriptors.store(usize::from(self.held_at) * 2 + 1, self.held, Release);
            self.held = 0;
            self.in_flight += self.added_chains as usize;
            self.unasked = self.unasked.saturating_add(self.added);
            (self.added, self.added_chains) = (0, 0);
            self.taken_published = self.free.taken();
        }
    }

    #[inline]
    fn wants_kick(&mut self) -> bool {
        let new_descriptors = std::mem::take(&mut self.unasked);
        if new_descriptors == 0 {
            return false;
        }
        // The descriptors must be visible before the device's preference is read: the device writes the
        // preference, then checks the ring once more before it sleeps.
        fence(SeqCst);
        let preference = self.device_event.load(0, Relaxed);
        if !self.event_idx || preference & EVENT_FLAGS != DESC {
            return preference & EVENT_FLAGS != DISABLE;
        }
        if new_descriptors > self.size {
            // More than a lap was published, so the position was passed.
            return true;
        }
        // If the wrap counters differ, the position is in the previous lap (2.8.10).
        let wrap = self.avail_flags & AVAIL != 0;
        let mut at = preference as u16 & !EVENT_WRAP;
        if (preference as u16 & EVENT_WRAP != 0) != wrap {
            at = at.wrapping_sub(self.size);
        }
        let new = self.next_avail;
        event::passed(at, new, new.wrapping_sub(new_descriptors))
    }

    fn next_available(&self) -> u16 {
        let wrap = if self.avail_flags & AVAIL != 0 { EVENT_WRAP } else { 0 };
        self.next_avail | wrap
    }

    #[inline]
    fn pop(&mut self, max: usize, mut used: impl FnMut(u32, u32)) -> Result<usize, Violation> {
        if let Some(violation) = self.broken {
            return Err(violation);
        }
        // At most as many as are in flight, whatever flags the device writes.
        let max = max.min(self.in_flight);
        let unpublished = self.held != 0;
        if unpublished {
            self.mark_unpublished(true);
        }
        let result = if self.in_order {
            self.pop_in_order(max, &mut used)
        } else {
            self.pop_any_order(max, &mut used)
        };
        if unpublished {
            self.mark_unpublished(false);
        }
        self.show_position();
        result.map_err(|violation| self.poison(violation))
    }

    #[inline]
    fn has_used(&self) -> bool {
        self.in_flight > 0 && (self.batch.is_some() || self.peek().is_some())
    }

    #[cold]
    fn used(&self) -> usize {
        let (mut at, mut flags, mut used) = (self.next_used, self.used_flags, 0);
        for looked_at in 1..=self.in_flight {
            let word = self.descriptors.load(usize::from(at) * 2 + 1, Acquire);
            if word & (AVAIL | USED) == flags {
                used = looked_at;
            }
            at += 1;
            if at == self.size {
                (at, flags) = (0, flags ^ (AVAIL | USED));
            }
        }
        used
    }

    fn enable_interrupts(&mut self) -> bool {
        self.enable_interrupts_after(1)
    }

    fn enable_interrupts_after(&mut self, n: u16) -> bool {
        let preference = if self.event_idx {
            // Counted in descriptors: with chains, the interrupt comes earlier, never later.
            let ahead = usize::from(n).clamp(1, self.in_flight.max(1)) - 1;
            let mut at = usize::from(self.next_used) + ahead;
            let mut wrap = self.used_flags & AVAIL != 0;
            if at >= usize::from(self.size) {
                at -= usize::from(self.size);
                wrap = !wrap;
            }
            at as u32 | if wrap { u32::from(EVENT_WRAP) } else { 0 } | DESC
        } else {
            ENABLE
        };
        self.driver_event.store(0, preference, Relaxed);
        // As in `wants_kick`, from the other side: write the preference, then check once more.
        fence(SeqCst);
        self.has_used()
    }

    fn disable_interrupts(&mut self) {
        self.driver_event.store(0, DISABLE, Relaxed);
    }

    fn reset(&mut self, returned: impl FnMut(u32)) {
        self.slots.clear(returned);
        self.free.fill();
        if let Some(tables) = &mut self.tables {
            tables.fill();
        }
        self.memory.zero();
        self.start();
    }

    fn reoffer(&mut self, length: u32, posted: impl Fn(u32) -> Option<Iova>) {
        match self.broken {
            Some(_) => {}
            None if self.in_order => self.reoffer_in_order(length, posted),
            None => self.reoffer_overwritten(length, posted),
        }
    }

    fn poisoned(&self) -> Option<Violation> {
        self.broken
    }

    fn follower(&self) -> Follower {
        Follower::of_packed(
            (self.size, self.in_order),
            self.descriptors,
            &self.popped,
            self.device_event,
            &self.memory,
        )
    }
}
