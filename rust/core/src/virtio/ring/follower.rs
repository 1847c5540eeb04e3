//! Where a ring's device is, for those who are not its driver.

use super::flags::{AVAIL, ENABLE, EVENT_WRAP, USED};
use super::shared::{Memory, Window};
use std::sync::Arc;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// How often a look at a ring is repeated whose driver went on meanwhile.
const ATTEMPTS: usize = 64;

/// Follows a ring from another thread, without its lock.
///
/// A packed ring does not show how far its device has come to those who did not follow it.
/// Somebody who introduces a new device to the ring has to know: see
/// [`crate::vhost_user::Interposer::follow`].
#[derive(Debug)]
pub struct Follower {
    ring: Followed,
    size: u16,
    /// What stands for the length in a gap.
    gap: u32,
    /// Last, so that it outlives the windows.
    _memory: Option<Arc<Memory>>,
}

#[derive(Debug)]
enum Followed {
    Split {
        /// The index of the used ring.
        used_idx: Window<u16>,
        suppression: SplitSuppression,
    },
    Packed {
        descriptors: Window<u64>,
        /// The driver's `next_used` and its wrap counter.
        popped: Arc<AtomicU16>,
        /// The device event suppression area.
        suppression: Window<u32>,
    },
    /// There is no ring any more.
    None,
}

/// Where the device of a split ring says when it wants to be kicked.
#[derive(Debug)]
pub(super) struct SplitSuppression {
    pub(super) used_flags: Window<u16>,
    pub(super) avail_event: Window<u16>,
    /// What the event is compared with: how far the driver has come.
    pub(super) avail_idx: Window<u16>,
}

/// An index, and the wrap counter of its lap (VIRTIO 1.3, section 2.8.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    at: u16,
    wrap: bool,
}

impl Place {
    fn of(packed: u16) -> Self {
        Self { at: packed & !EVENT_WRAP, wrap: packed & EVENT_WRAP != 0 }
    }
    fn packed(self) -> u16 {
        self.at | if self.wrap { EVENT_WRAP } else { 0 }
    }
    fn next(self, size: u16) -> Self {
        match self.at + 1 {
            at if at < size => Self { at, ..self },
            _ => Self { at: 0, wrap: !self.wrap },
        }
    }
    /// Flags of a descriptor that the device has used in this lap.
    fn used(self) -> u64 {
        if self.wrap { AVAIL | USED } else { 0 }
    }
    /// Flags of a descriptor that the device may use in this lap.
    fn available(self) -> u64 {
        if self.wrap { AVAIL } else { USED }
    }
}

impl Follower {
    pub(super) fn of_split(
        size: u16,
        used_idx: Window<u16>,
        suppression: SplitSuppression,
        memory: &Arc<Memory>,
    ) -> Self {
        let _memory = Some(Arc::clone(memory));
        Self { ring: Followed::Split { used_idx, suppression }, size, gap: 0, _memory }
    }

    pub(super) fn of_packed(
        size: u16,
        descriptors: Window<u64>,
        popped: &Arc<AtomicU16>,
        suppression: Window<u32>,
        memory: &Arc<Memory>,
    ) -> Self {
        let ring = Followed::Packed { descriptors, popped: Arc::clone(popped), suppression };
        Self { ring, size, gap: 0, _memory: Some(Arc::clone(memory)) }
    }

    /// Follows a ring that is no more: nothing moves.
    pub(crate) fn of_none() -> Self {
        Self { ring: Followed::None, size: 0, gap: 0, _memory: None }
    }

    /// Closes gaps with this length: see [`Self::position`].
    #[must_use]
    pub fn closing_with(self, length: u32) -> Self {
        Self { gap: length, ..self }
    }

    /// How far the device has come: the index of a split ring's used ring; the index behind the last
    /// used descriptor of a packed one, and in bit 15 its lap's wrap counter.
    pub fn place(&self) -> u16 {
        match &self.ring {
            Followed::Split { used_idx, .. } => used_idx.load(0, Acquire),
            Followed::Packed { .. } => self.behind_last_used().map_or(0, |(_, end)| end.packed()),
            Followed::None => 0,
        }
    }

    /// Forgets when the last device wanted to be kicked: the next has not said yet that it does not
    /// want to be, and one that is driven by kicks does not say that it does (sections 2.7.10 and
    /// 2.8.14 let the driver start with an area of zeros).
    ///
    /// Only while the ring has no device: QEMU, which has it in between, leaves "no notifications".
    /// What the driver publishes meanwhile has to be kicked for when there is a device.
    pub fn welcome(&self) {
        match &self.ring {
            Followed::Split { suppression, .. } => {
                suppression.used_flags.store(0, 0, Relaxed);
                // The next buffer is worth a kick.
                suppression.avail_event.store(0, suppression.avail_idx.load(0, Relaxed), Relaxed);
            }
            Followed::Packed { suppression, .. } => suppression.store(0, ENABLE, Relaxed),
            Followed::None => {}
        }
    }

    /// Whether the ring is a packed one.
    pub fn is_packed(&self) -> bool {
        matches!(self.ring, Followed::Packed { .. })
    }

    /// How many descriptors lie from one [place](Self::place) to a later one; no more than the
    /// ring has.
    pub fn distance(&self, from: u16, to: u16) -> u16 {
        match &self.ring {
            Followed::Split { .. } | Followed::None => to.wrapping_sub(from).min(self.size),
            Followed::Packed { .. } => {
                let (from, to, size) = (Place::of(from), Place::of(to), i32::from(self.size));
                let lap = if from.wrap == to.wrap { 0 } else { size };
                (i32::from(to.at) - i32::from(from.at) + lap).clamp(0, size) as u16
            }
        }
    }

    /// Where the next device of a packed ring goes on, as [`Self::place`] says it. `None` for a
    /// split ring, which shows that itself.
    ///
    /// Only while the ring has no device. One that died may have left gaps: descriptors that it
    /// has not used before others that it has. So does QEMU, which takes a ring over from a
    /// vhost-user backend that is gone at a place where the ring was long ago, and drops what it
    /// finds there. A new device would stop behind the gap for ever. So gaps are closed:
    /// what is in them is used, with the length of [`Self::closing_with`], else 0.
    ///
    /// Right for rings whose chains are of one descriptor each, as a network device's are.
    pub fn position(&self) -> Option<u16> {
        let (mut here, end) = self.behind_last_used()?;
        let Followed::Packed { descriptors, .. } = &self.ring else { return None };
        while here != end {
            let word = usize::from(here.at) * 2 + 1;
            let rest = descriptors.load(word, Acquire);
            // What is neither was taken back, and made available for the next lap, meanwhile.
            if rest & (AVAIL | USED) == here.available() {
                // The driver knows the descriptor by its id, and that stays.
                let id = rest & 0xffff << 32;
                descriptors.store(word, id | u64::from(self.gap) | here.used(), Release);
            }
            here = here.next(self.size);
        }
        Some(end.packed())
    }

    /// Where the driver is in a packed ring, and the place behind the last used descriptor.
    fn behind_last_used(&self) -> Option<(Place, Place)> {
        let Followed::Packed { descriptors, popped, .. } = &self.ring else { return None };
        let mut found = None;
        // The driver may take back what was used. With no device that comes to an end.
        for _ in 0..ATTEMPTS {
            let before = popped.load(Acquire);
            let start = Place::of(before);
            let (mut here, mut end) = (start, start);
            for _ in 0..self.size {
                let flags = descriptors.load(usize::from(here.at) * 2 + 1, Acquire);
                let used = flags & (AVAIL | USED) == here.used();
                if !used && flags & (AVAIL | USED) != here.available() {
                    break;
                }
                here = here.next(self.size);
                if used {
                    end = here;
                }
            }
            found = Some((start, end));
            if popped.load(Acquire) == before {
                break;
            }
        }
        found
    }
}
