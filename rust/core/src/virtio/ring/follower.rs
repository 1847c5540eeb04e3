//! Where a packed ring's device is, for those who are not its driver.

use super::packed::{AVAIL, EVENT_WRAP, USED};
use super::shared::{Memory, Window};
use std::sync::Arc;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering::{Acquire, Release};

/// Follows a packed ring from another thread, without its lock.
///
/// A packed ring does not show how far its device has come to those who did not follow it.
/// Somebody who introduces a new device to the ring has to know: see
/// [`crate::vhost_user::Interposer::resume_at`].
#[derive(Debug)]
pub struct Follower {
    size: u16,
    descriptors: Window<u64>,
    /// The driver's `next_used` and its wrap counter.
    popped: Arc<AtomicU16>,
    /// Last, so that it outlives the window.
    _memory: Arc<Memory>,
}

/// An index, and the wrap counter of its lap (VIRTIO 1.3, section 2.8.1).
#[derive(Clone, Copy)]
struct Place {
    at: u16,
    wrap: bool,
}

impl Place {
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
    pub(super) fn new(
        size: u16,
        descriptors: Window<u64>,
        popped: &Arc<AtomicU16>,
        memory: &Arc<Memory>,
    ) -> Self {
        let (popped, memory) = (Arc::clone(popped), Arc::clone(memory));
        Self { size, descriptors, popped, _memory: memory }
    }

    /// The index behind the last used descriptor, and in bit 15 its lap's wrap counter.
    ///
    /// Only while the ring has no device. One that died may have left gaps: descriptors that it
    /// has not used before others that it has. So does QEMU, which takes a ring over from a
    /// vhost-user backend that is gone at a place where the ring was long ago, and drops what it
    /// finds there. A new device would stop behind the gap for ever. So gaps are closed:
    /// what is in them is used, with a length of 0.
    ///
    /// Right for rings whose chains are of one descriptor each, as a network device's are.
    pub fn position(&self) -> u16 {
        let popped = self.popped.load(Acquire);
        let mut here = Place { at: popped & !EVENT_WRAP, wrap: popped & EVENT_WRAP != 0 };
        for _ in 0..self.last_used(here) {
            let word = usize::from(here.at) * 2 + 1;
            let rest = self.descriptors.load(word, Acquire);
            if rest & (AVAIL | USED) != here.used() {
                // The driver knows the descriptor by its id, and that stays.
                let id = rest & 0xffff << 32;
                self.descriptors.store(word, id | here.used(), Release);
            }
            here = here.next(self.size);
        }
        here.at | if here.wrap { EVENT_WRAP } else { 0 }
    }

    /// How many descriptors there are from a place to the last used one.
    fn last_used(&self, mut here: Place) -> u16 {
        let mut last = 0;
        for distance in 1..=self.size {
            let flags = self.descriptors.load(usize::from(here.at) * 2 + 1, Acquire);
            match flags & (AVAIL | USED) {
                flags if flags == here.used() => last = distance,
                flags if flags == here.available() => {}
                _ => break,
            }
            here = here.next(self.size);
        }
        last
    }
}
