//! A number of frames that several threads have in common.

use super::BURST;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Frames that all threads together may move, taken by each in parts.
#[derive(Debug)]
pub(super) struct Budget {
    total: u64,
    taken: AtomicU64,
    done: AtomicU64,
}

impl Budget {
    pub(super) fn new(total: u64) -> Self {
        Self { total, taken: AtomicU64::new(0), done: AtomicU64::new(0) }
    }
    fn take(&self, wanted: u64) -> u64 {
        let mut got = 0;
        let _ = self.taken.fetch_update(Relaxed, Relaxed, |taken| {
            got = wanted.min(self.total.saturating_sub(taken));
            Some(taken + got)
        });
        got
    }
}

/// One thread's part of a [`Budget`].
#[derive(Debug)]
pub(super) struct Share<'a> {
    budget: &'a Budget,
    /// How many frames it may move in all, as taken so far, and how many it has told of.
    quota: u64,
    told: u64,
}

impl<'a> Share<'a> {
    pub(super) fn new(budget: &'a Budget) -> Self {
        Self { budget, quota: 0, told: 0 }
    }
    fn tell(&mut self, done: u64) {
        if done > self.told {
            self.budget.done.fetch_add(done - self.told, Relaxed);
            self.told = done;
        }
    }
    /// How many more it may move, of which `done` were.
    pub(super) fn left(&mut self, done: u64) -> u64 {
        self.tell(done);
        let have = self.quota.saturating_sub(done);
        let more = self.budget.take((BURST as u64).saturating_sub(have));
        self.quota += more;
        have + more
    }
    /// Whether all were moved, by whomever. What it has not moved is for others.
    pub(super) fn is_spent(&mut self, done: u64) -> bool {
        self.tell(done);
        let unused = self.quota.saturating_sub(done);
        self.quota -= unused;
        self.budget.taken.fetch_sub(unused, Relaxed);
        self.budget.done.load(Relaxed) >= self.budget.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_a_budget_are_no_more_than_all_and_none_is_lost() {
        let budget = Budget::new(100);
        let (mut a, mut b) = (Share::new(&budget), Share::new(&budget));
        assert_eq!(a.left(0), 64);
        assert_eq!(b.left(0), 36);
        // One had nothing to do: the other may have its part.
        assert!(!a.is_spent(0));
        assert_eq!(b.left(36), 64);
        assert_eq!(a.left(0), 0);
        assert!(!b.is_spent(99));
        assert_eq!((a.left(0), b.left(99)), (1, 0));
        assert!(a.is_spent(1));
        assert!(b.is_spent(99));
    }
}
