//! `Follower`: observes a device's progress in a ring from outside the driver.

use super::flags::{AVAIL, ENABLE, EVENT_WRAP, USED};
use super::shared::{Memory, Window};
use std::sync::Arc;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// How often a scan is repeated if the driver pops meanwhile.
const ATTEMPTS: usize = 64;

/// Observes a ring from another thread, without its lock.
///
/// A new device of a packed ring must be told where the last one stopped, which the ring itself does
/// not show: see [`crate::vhost_user::Interposer::follow`].
#[derive(Debug)]
pub struct Follower {
    ring: Followed,
    size: u16,
    /// The length of descriptors in a gap.
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
        /// Whether one used descriptor may report a batch (VIRTIO 1.3, section 2.8.9).
        in_order: bool,
        /// Where the driver expects the next used descriptor, and its wrap counter.
        popped: Arc<AtomicU16>,
        /// The device event suppression area.
        suppression: Window<u32>,
    },
    /// The ring does not exist any more.
    None,
}

/// The notification suppression fields of a split ring.
#[derive(Debug)]
pub(super) struct SplitSuppression {
    pub(super) used_flags: Window<u16>,
    pub(super) avail_event: Window<u16>,
    /// The driver's index, with which the event is compared.
    pub(super) avail_idx: Window<u16>,
}

/// A position in a packed ring: an index and its wrap counter (VIRTIO 1.3, section 2.8.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    at: u16,
    wrap: bool,
}

impl Position {
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
    /// Flags of a used descriptor in this lap.
    fn used(self) -> u64 {
        if self.wrap { AVAIL | USED } else { 0 }
    }
    /// Flags of an available descriptor in this lap.
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
        (size, in_order): (u16, bool),
        descriptors: Window<u64>,
        popped: &Arc<AtomicU16>,
        suppression: Window<u32>,
        memory: &Arc<Memory>,
    ) -> Self {
        let ring =
            Followed::Packed { descriptors, in_order, popped: Arc::clone(popped), suppression };
        Self { ring, size, gap: 0, _memory: Some(Arc::clone(memory)) }
    }

    /// A follower of a ring that does not exist any more.
    pub(crate) fn of_none() -> Self {
        Self { ring: Followed::None, size: 0, gap: 0, _memory: None }
    }

    /// Sets the length of descriptors in gaps: see [`Self::close_gaps`].
    #[must_use]
    pub fn with_gap_length(self, length: u32) -> Self {
        Self { gap: length, ..self }
    }

    /// The device's position: the used index of a split ring, or the index after the last used
    /// descriptor of a packed ring with the wrap counter in bit 15.
    pub fn position(&self) -> u16 {
        match &self.ring {
            Followed::Split { used_idx, .. } => used_idx.load(0, Acquire),
            Followed::Packed { .. } => self.after_last_used().map_or(0, |(_, end)| end.packed()),
            Followed::None => 0,
        }
    }

    /// Enables kicks, for a new device: one that waits for kicks may not enable them itself, as it may
    /// assume that the area is zero (sections 2.7.10 and 2.8.14). QEMU, which has the ring between two
    /// backends, leaves kicks disabled.
    ///
    /// Only while the ring has no device. The caller kicks the new device for what was published
    /// meanwhile.
    pub fn enable_kicks(&self) {
        match &self.ring {
            Followed::Split { suppression, .. } => {
                suppression.used_flags.store(0, 0, Relaxed);
                // Kick for the next buffer.
                suppression.avail_event.store(0, suppression.avail_idx.load(0, Relaxed), Relaxed);
            }
            Followed::Packed { suppression, .. } => suppression.store(0, ENABLE, Relaxed),
            Followed::None => {}
        }
    }

    /// Whether the ring is packed.
    pub fn is_packed(&self) -> bool {
        matches!(self.ring, Followed::Packed { .. })
    }

    /// The number of descriptors from one [position](Self::position) to a later one, at most the size of
    /// the ring.
    pub fn distance(&self, from: u16, to: u16) -> u16 {
        match &self.ring {
            Followed::Split { .. } | Followed::None => to.wrapping_sub(from).min(self.size),
            Followed::Packed { .. } => {
                let (from, to, size) = (Position::of(from), Position::of(to), i32::from(self.size));
                let lap = if from.wrap == to.wrap { 0 } else { size };
                (i32::from(to.at) - i32::from(from.at) + lap).clamp(0, size) as u16
            }
        }
    }

    /// Closes gaps and returns the [position](Self::position) where the next device of a packed ring
    /// starts; `None` for a split ring, which shows it itself.
    ///
    /// Only while the ring has no device. A device that died may have left gaps: unused descriptors
    /// before used ones. So does QEMU, which takes over the ring of a lost vhost-user backend at an old
    /// position and drops the buffers there. The driver would wait at a gap forever. Therefore the
    /// descriptors in gaps are marked as used, with the length of [`Self::with_gap_length`], by
    /// default 0.
    ///
    /// Only for rings whose chains have one descriptor each.
    pub fn close_gaps(&self) -> Option<u16> {
        let (mut here, end) = self.after_last_used()?;
        let Followed::Packed { descriptors, .. } = &self.ring else { return None };
        while here != end {
            let word = usize::from(here.at) * 2 + 1;
            let rest = descriptors.load(word, Acquire);
            // Any other descriptor was popped and made available in the next lap meanwhile.
            if rest & (AVAIL | USED) == here.available() {
                // Keep the id, by which the driver identifies the descriptor.
                let id = rest & 0xffff << 32;
                descriptors.store(word, id | u64::from(self.gap) | here.used(), Release);
            }
            here = here.next(self.size);
        }
        Some(end.packed())
    }

    /// The driver's position in a packed ring, and the position after the last used descriptor.
    fn after_last_used(&self) -> Option<(Position, Position)> {
        let Followed::Packed { descriptors, in_order, popped, .. } = &self.ring else {
            return None;
        };
        let mut found = None;
        // The driver may pop meanwhile. Without a device that comes to an end.
        for _ in 0..ATTEMPTS {
            let before = popped.load(Acquire);
            let start = Position::of(before);
            let (mut here, mut end) = (start, start);
            let mut left = self.size;
            while left > 0 {
                let rest = descriptors.load(usize::from(here.at) * 2 + 1, Acquire);
                let used = rest & (AVAIL | USED) == here.used();
                if !used && rest & (AVAIL | USED) != here.available() {
                    break;
                }
                here = here.next(self.size);
                left -= 1;
                if used {
                    if *in_order {
                        self.skip_batch(*descriptors, (rest >> 32) as u16, &mut here, &mut left);
                    }
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

    /// Moves to the position after the descriptor that made the last buffer of a batch available.
    /// The device has not written the descriptors between that and the used one.
    fn skip_batch(&self, descriptors: Window<u64>, last: u16, here: &mut Position, left: &mut u16) {
        let mut at = *here;
        for after in 1..=*left {
            let rest = descriptors.load(usize::from(at.at) * 2 + 1, Acquire);
            if rest & (AVAIL | USED) != at.available() {
                break;
            }
            at = at.next(self.size);
            if (rest >> 32) as u16 == last {
                *here = at;
                *left -= after;
                break;
            }
        }
    }
}
