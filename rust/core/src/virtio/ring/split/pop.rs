//! Popping used buffers from a split ring.

use super::super::Violation;
use super::super::slots::{PLAIN, Slot};
use super::SplitRing;
use std::sync::atomic::Ordering::Relaxed;

impl SplitRing {
    /// Frees the descriptors and the table of a chain.
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

    /// Completes one used chain. Returns its token and the bytes written.
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
    pub(in crate::virtio::ring) fn used_entry(&self, index: u16) -> (u32, u32) {
        let at = usize::from(index) * 2;
        (self.areas.used_ring.load(at, Relaxed), self.areas.used_ring.load(at + 1, Relaxed))
    }

    /// One entry stands for all buffers up to the one it names (section 2.7.9).
    #[inline(always)]
    pub(super) fn pop_in_order(
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
                // Leave the last one to `step_in_order`, which checks that it ends the batch.
                Some((last, _)) if end == all => self.pop_batch(last, end.wrapping_sub(1), used),
                Some((last, _)) => self.pop_batch(last, end, used),
            }
            if self.popped == end {
                break;
            }
            // The start or end of a batch, a chain, or a violation.
            self.step_in_order((all, ready), used)?;
        }
        Ok(())
    }

    /// Takes single buffers of a batch up to its last buffer or to a chain.
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

    /// Takes one buffer or chain. The arguments are the index after the used ones, and their number.
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
    pub(super) fn pop_any_order(
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
            // A chain or a violation.
            self.step(used)?;
        }
        Ok(())
    }

    /// Takes one buffer or chain.
    #[cold]
    fn step(&mut self, used: &mut dyn FnMut(u32, u32)) -> Result<(), Violation> {
        let (id, len) = self.used_entry(self.popped);
        let (token, written) = self.complete(id, len)?;
        self.popped = self.popped.wrapping_add(1);
        used(token, written);
        Ok(())
    }

    /// Takes single buffers up to a chain or a violation; with `IN_ORDER` also up to one that is not the
    /// oldest.
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

    /// Marks or unmarks unpublished chains, which the device cannot have used.
    #[cold]
    pub(super) fn mark_unpublished(&mut self, unpublished: bool) {
        let Self { slots, free, taken_published, .. } = self;
        let count = free.taken().wrapping_sub(*taken_published);
        let ids = (0..count).map(|i| free.at(taken_published.wrapping_add(i)));
        slots.mark_unpublished(ids, unpublished);
    }
}
