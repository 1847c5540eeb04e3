//! The list of a pool's free buffers.

use super::BufferId;
use super::demand::Threshold;

/// A stack, most recently used last.
#[derive(Debug)]
pub(super) struct Free {
    pub(super) ids: Vec<BufferId>,
    /// When to tell a starved queue.
    pub(super) threshold: Threshold,
    /// The lowest id.
    #[cfg(debug_assertions)]
    pub(super) first: BufferId,
    /// The ids in it, to detect double frees.
    #[cfg(debug_assertions)]
    pub(super) present: Vec<bool>,
}

impl Free {
    pub(super) fn new(first: BufferId, count: u32) -> Self {
        Self {
            ids: (first..first + count).collect(),
            threshold: Threshold::new(),
            #[cfg(debug_assertions)]
            first,
            #[cfg(debug_assertions)]
            present: vec![true; count as usize],
        }
    }

    /// The same, but leaves some buffers.
    #[inline]
    pub(super) fn take_above(
        &mut self,
        kept: usize,
        out: &mut Vec<BufferId>,
        wanted: usize,
    ) -> usize {
        self.take(out, wanted.min(self.ids.len().saturating_sub(kept)))
    }

    #[inline]
    pub(super) fn take(&mut self, out: &mut Vec<BufferId>, wanted: usize) -> usize {
        let rest = self.ids.len().saturating_sub(wanted);
        let taken = &self.ids[rest..];
        #[cfg(debug_assertions)]
        for &id in taken {
            self.present[(id - self.first) as usize] = false;
        }
        let count = taken.len();
        out.extend_from_slice(taken);
        self.ids.truncate(rest);
        count
    }

    /// `ids` must be in range. The capacity is that of all buffers, so nothing is allocated.
    /// Returns whether a starved queue must be told, outside the lock.
    #[inline]
    #[must_use]
    pub(super) fn give(&mut self, ids: &[BufferId]) -> bool {
        #[cfg(debug_assertions)]
        for &id in ids {
            let twice = std::mem::replace(&mut self.present[(id - self.first) as usize], true);
            assert!(!twice, "buffer {id} was given back twice");
        }
        // In a release build, a surplus is the only sign of a double free.
        let room = self.ids.capacity() - self.ids.len();
        if ids.len() > room {
            log::error!("{} buffers too many were given back: dropped", ids.len() - room);
        }
        self.ids.extend_from_slice(&ids[..ids.len().min(room)]);
        self.threshold.reached(self.ids.len())
    }
}
