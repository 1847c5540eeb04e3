//! Reoffering the unused buffers of a lost device to the next one: see [`super::Ring::reoffer`].
//!
//! The unused buffers are those in flight, from private memory, minus the used ones. As the device may
//! use buffers out of order, their places in the ring do not follow from the number of used ones.

use super::flags::{AVAIL, USED, WRITE};
use super::packed::PackedRing;
use super::split::SplitRing;
use crate::memory::Iova;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::fence;

/// A set of identifiers.
struct Ids(Vec<bool>);

impl Ids {
    fn of(size: u16, ids: impl IntoIterator<Item = u16>) -> Self {
        let mut set = Self(vec![false; size.into()]);
        for id in ids {
            set.insert(id);
        }
        set
    }
    /// Returns whether the set changed.
    fn insert(&mut self, id: u16) -> bool {
        self.0.get_mut(usize::from(id)).is_some_and(|there| !std::mem::replace(there, true))
    }
    /// Returns whether the set changed.
    fn remove(&mut self, id: u16) -> bool {
        self.0.get_mut(usize::from(id)).is_some_and(std::mem::take)
    }
    fn iter(&self) -> impl Iterator<Item = u16> {
        (0..).zip(&self.0).filter_map(|(id, &there)| there.then_some(id))
    }
}

impl SplitRing {
    /// Rewrites the available ring: from the used index on, it lists the unused buffers, oldest first.
    #[cold]
    pub(super) fn reoffer_overwritten(&mut self) {
        let size = self.size;
        let end = self.areas.used_idx.load(0, Acquire);
        let used = end.wrapping_sub(self.popped);
        let with_device = self.published.wrapping_sub(self.popped);
        let Some(waiting) = with_device.checked_sub(used) else { return };
        let Some(in_flight) = self.slots.all_plain() else { return };
        let mut left = Ids::of(size, in_flight);
        // Without those that are not published.
        for at in 0..self.added.wrapping_sub(self.published) {
            left.remove(*self.avail_shadow.get(self.published.wrapping_add(at).into()));
        }
        for at in 0..used {
            let (id, _) = self.used_entry(self.popped.wrapping_add(at));
            if !u16::try_from(id).is_ok_and(|id| left.remove(id)) {
                return;
            }
        }
        if left.iter().count() != usize::from(waiting) {
            return;
        }
        // Latest first. Buffers whose entry was overwritten are older.
        let mut heads = Vec::with_capacity(waiting.into());
        for back in 1..=size {
            let head = *self.avail_shadow.get(self.published.wrapping_sub(back).into());
            if left.remove(head) {
                heads.push(head);
            }
        }
        heads.extend(left.iter());
        for (at, &head) in (0..).map(|at| end.wrapping_add(at)).zip(heads.iter().rev()) {
            *self.avail_shadow.view().into_get(at.into()) = head;
            self.areas.avail_ring.store(at.into(), head, Relaxed);
        }
        fence(Release);
    }
}

impl PackedRing {
    /// Rewrites the unused descriptors: first, used ones with the identifiers whose own descriptors were
    /// overwritten; then the intact available ones.
    #[cold]
    pub(super) fn reoffer_overwritten(
        &mut self,
        length: u32,
        posted: impl Fn(u32) -> Option<Iova>,
    ) {
        let Some(in_flight) = self.slots.all_plain() else { return };
        let mut left = Ids::of(self.size, in_flight);
        for at in 0..self.free.taken().wrapping_sub(self.taken_published) {
            left.remove(self.free.at(self.taken_published.wrapping_add(at)));
        }
        let with_device = usize::from(self.size)
            .saturating_sub(self.free_descriptors)
            .saturating_sub(self.added.into());
        // The unused places, and the flags of used descriptors there.
        let mut places = Vec::with_capacity(with_device);
        let (mut at, mut flags) = (self.next_used, self.used_flags);
        for _ in 0..with_device {
            let rest = self.descriptors.load(usize::from(at) * 2 + 1, Acquire);
            if rest & (AVAIL | USED) != flags {
                places.push((at, flags));
            } else if !left.remove((rest >> 32) as u16) {
                return;
            }
            at += 1;
            if at == self.size {
                (at, flags) = (0, flags ^ (AVAIL | USED));
            }
        }
        if left.iter().count() != places.len() {
            return;
        }
        let mut whole = Vec::with_capacity(places.len());
        for &(at, _) in &places {
            let iova = self.descriptors.load(usize::from(at) * 2, Relaxed);
            let rest = self.descriptors.load(usize::from(at) * 2 + 1, Relaxed);
            if self.is_whole(iova, rest, &posted) && left.remove((rest >> 32) as u16) {
                whole.push((iova, rest));
            }
        }
        if whole.len() == places.len() {
            return;
        }
        let mut places = places.into_iter();
        for (id, (at, flags)) in left.iter().zip(places.by_ref()) {
            let rest = u64::from(length) | u64::from(id) << 32 | flags;
            self.descriptors.store(usize::from(at) * 2 + 1, rest, Release);
        }
        // The parts of a moved descriptor that remain: length, id, WRITE.
        const KEPT: u64 = u32::MAX as u64 | 0xffff << 32 | WRITE;
        for ((iova, rest), (at, flags)) in whole.into_iter().zip(places) {
            // Available in this lap: USED is that of the previous lap.
            let available = flags ^ USED;
            self.descriptors.store(usize::from(at) * 2, iova, Relaxed);
            self.descriptors.store(usize::from(at) * 2 + 1, rest & KEPT | available, Release);
        }
    }

    /// The number of outstanding buffers in the batch being popped: the device has used them.
    #[cold]
    fn left_of_batch(&self, last: u16) -> u32 {
        let mut outstanding = 0..self.in_flight as u32;
        outstanding.position(|n| self.free.outstanding(n) == last).map_or(0, |at| at as u32 + 1)
    }

    /// The position of the next used descriptor, its flags, and the number of buffers in the batch
    /// before that. Chains count as one descriptor.
    #[inline]
    pub(super) fn after_batch(&self) -> (u16, u64, u32) {
        let Some((last, _)) = self.batch else { return (self.next_used, self.used_flags, 0) };
        let left = self.left_of_batch(last);
        let at = u32::from(self.next_used) + left;
        match at.checked_sub(self.size.into()) {
            Some(at) => (at as u16, self.used_flags ^ (AVAIL | USED), left),
            None => (at as u16, self.used_flags, left),
        }
    }

    /// The same for a device with `IN_ORDER`: the position says which buffer is outstanding. An
    /// overwritten descriptor is marked as used, with its own identifier; later ones are intact.
    #[cold]
    pub(super) fn reoffer_in_order(&mut self, length: u32, posted: impl Fn(u32) -> Option<Iova>) {
        if self.slots.all_plain().is_none() {
            return;
        }
        let with_device = u32::from(self.size)
            .saturating_sub(self.free_descriptors as u32)
            .saturating_sub(self.added.into());
        let (mut at, mut flags, mut n) = self.after_batch();
        // The last buffer of the used batch at this position.
        let mut batch = None;
        while n < with_device {
            let id = self.free.outstanding(n);
            let iova = self.descriptors.load(usize::from(at) * 2, Relaxed);
            let rest = self.descriptors.load(usize::from(at) * 2 + 1, Acquire);
            if batch.is_none() && rest & (AVAIL | USED) == flags {
                batch = Some((rest >> 32) as u16);
            }
            match batch {
                Some(last) if last == id => batch = None,
                Some(_) => {}
                None if (rest >> 32) as u16 == id && self.is_whole(iova, rest, &posted) => return,
                None => {
                    let rest = u64::from(length) | u64::from(id) << 32 | flags;
                    self.descriptors.store(usize::from(at) * 2 + 1, rest, Release);
                }
            }
            n += 1;
            at += 1;
            if at == self.size {
                (at, flags) = (0, flags ^ (AVAIL | USED));
            }
        }
    }

    /// Whether an available descriptor is intact. A device writes id and length of a used descriptor
    /// before its flags, and may end in between.
    fn is_whole(&self, iova: u64, rest: u64, posted: impl Fn(u32) -> Option<Iova>) -> bool {
        let (id, length) = ((rest >> 32) as u16, rest as u32);
        let Some(slot) = self.slots.plain(id) else { return false };
        // The length of a readable buffer is not recorded; it was not 0.
        let intact = if slot.capacity == 0 { length != 0 } else { length == slot.capacity };
        intact && posted(slot.token).is_none_or(|there| there.0 == iova)
    }
}
