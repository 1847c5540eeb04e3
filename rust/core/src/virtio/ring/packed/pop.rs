//! Popping used buffers from a packed ring.

use super::super::Violation;
use super::super::flags::{AVAIL, USED};
use super::super::slots::{PLAIN, Slot};
use super::PackedRing;
use std::sync::atomic::Ordering::Acquire;

impl PackedRing {
    /// The second word at `next_used` if the device has used it.
    #[inline(always)]
    pub(super) fn peek(&self) -> Option<u64> {
        // Acquire orders the packet's data after it.
        let word = self.descriptors.load(usize::from(self.next_used) * 2 + 1, Acquire);
        (word & (AVAIL | USED) == self.used_flags).then_some(word)
    }

    /// Completes one used chain. Returns its token and the bytes written.
    ///
    /// The length counts even without WRITE in the used descriptor, which section 2.8.6 requires but
    /// QEMU does not set.
    #[inline(always)]
    fn complete(&mut self, id: u32, len: u32) -> Result<(u32, u32), Violation> {
        let (slot, written) = self.slots.used(id, len)?;
        let (token, taken) = (slot.token, *slot);
        slot.shape = 0;
        self.free.put(id as u16);
        let count = if taken.shape == PLAIN { 1 } else { self.release(taken) };
        self.free_descriptors += usize::from(count);
        self.in_flight -= 1;
        // The next used descriptor follows the whole chain.
        self.next_used += count;
        if self.next_used >= self.size {
            self.next_used -= self.size;
            self.used_flags ^= AVAIL | USED;
        }
        Ok((token, written))
    }

    #[cold]
    fn release(&mut self, slot: Slot) -> u16 {
        if let (Some(table), Some(tables)) = (slot.table(), &mut self.tables) {
            tables.put(table);
        }
        slot.count()
    }

    /// One used descriptor stands for all buffers up to the one it names (section 2.8.9).
    #[inline(always)]
    pub(super) fn pop_in_order(
        &mut self,
        max: usize,
        used: &mut impl FnMut(u32, u32),
    ) -> Result<usize, Violation> {
        let mut done = 0;
        while done < max {
            done += match self.batch {
                None => self.pop_plain::<true>(max - done, used),
                Some((last, _)) => self.pop_batch(last, max - done, used),
            };
            if done == max {
                break;
            }
            // None left, the start or end of a batch, a chain, or a violation.
            match self.step_in_order(used)? {
                0 => break,
                stepped => done += stepped,
            }
        }
        Ok(done)
    }

    /// Takes single buffers of a batch up to its last buffer or to a chain.
    #[inline(always)]
    fn pop_batch(&mut self, last: u16, max: usize, used: &mut impl FnMut(u32, u32)) -> usize {
        let span = self.free.span();
        let (mut ids, mut put) = self.free.putting();
        let mut slots = self.slots.view();
        let mut done = 0;
        while done < max {
            let id = *ids.get(put.wrapping_sub(span) as usize);
            if id == last {
                break;
            }
            let slot = slots.get(id.into());
            let Some((token, written)) = slot.take_plain(slot.capacity) else { break };
            *ids.get(put as usize) = id;
            put = put.wrapping_add(1);
            done += 1;
            used(token, written);
        }
        self.free.set_put(put);
        self.free_descriptors += done;
        self.in_flight -= done;
        let next = usize::from(self.next_used) + done;
        let size = usize::from(self.size);
        // At most `size` buffers are in flight, so this wraps once at most.
        self.next_used = if next >= size { next - size } else { next } as u16;
        if next >= size {
            self.used_flags ^= AVAIL | USED;
        }
        done
    }

    /// Takes one buffer or chain. Returns 0 if there is none.
    #[cold]
    fn step_in_order(&mut self, used: &mut dyn FnMut(u32, u32)) -> Result<usize, Violation> {
        {
            let (last, len) = match self.batch {
                Some(batch) => batch,
                None => {
                    let Some(word) = self.peek() else { return Ok(0) };
                    let (id, len) = (word >> 32 & 0xffff, word as u32);
                    self.slots.used(id as u32, len)?;
                    (id as u16, len)
                }
            };
            let oldest = self.free.oldest();
            let (token, written) = if oldest == last {
                self.batch = None;
                self.complete(oldest.into(), len)?
            } else {
                // `last` is in flight and newer, so the batch ends there.
                self.batch = Some((last, len));
                let capacity = self.slots.get_mut(oldest).capacity;
                self.complete(oldest.into(), capacity)?
            };
            used(token, written);
        }
        Ok(1)
    }

    #[inline(always)]
    pub(super) fn pop_any_order(
        &mut self,
        max: usize,
        used: &mut impl FnMut(u32, u32),
    ) -> Result<usize, Violation> {
        let mut done = 0;
        while done < max {
            done += self.pop_plain::<false>(max - done, used);
            if done == max {
                break;
            }
            // None left, a chain, or a violation.
            match self.step(used)? {
                0 => break,
                stepped => done += stepped,
            }
        }
        Ok(done)
    }

    /// Takes one buffer or chain. Returns 0 if there is none.
    #[cold]
    fn step(&mut self, used: &mut dyn FnMut(u32, u32)) -> Result<usize, Violation> {
        let Some(word) = self.peek() else { return Ok(0) };
        let (token, written) = self.complete((word >> 32) as u32 & 0xffff, word as u32)?;
        used(token, written);
        Ok(1)
    }

    /// Takes single buffers up to a chain, a violation or the end of the lap; with `IN_ORDER` also up to
    /// one that is not the oldest.
    #[inline(always)]
    fn pop_plain<const IN_ORDER: bool>(
        &mut self,
        max: usize,
        used: &mut impl FnMut(u32, u32),
    ) -> usize {
        let span = self.free.span();
        let (descriptors, flags) = (self.descriptors, self.used_flags);
        let start = usize::from(self.next_used);
        let end = usize::from(self.size).min(start + max);
        let (mut ids, mut put) = self.free.putting();
        let mut slots = self.slots.view();
        let mut at = start;
        while at < end {
            let word = descriptors.load(at * 2 + 1, Acquire);
            if word & (AVAIL | USED) != flags {
                break;
            }
            let id = (word >> 32) as u16;
            if IN_ORDER && id != *ids.get(put.wrapping_sub(span) as usize) {
                break;
            }
            let Some(slot) = slots.checked(id.into()) else { break };
            let Some((token, written)) = slot.take_plain(word as u32) else { break };
            *ids.get(put as usize) = id;
            put = put.wrapping_add(1);
            at += 1;
            used(token, written);
        }
        self.free.set_put(put);
        let done = at - start;
        self.free_descriptors += done;
        self.in_flight -= done;
        self.next_used = at as u16;
        if self.next_used == self.size {
            self.next_used = 0;
            self.used_flags ^= AVAIL | USED;
        }
        done
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
