//! A number of frames that several threads share.

use super::BURST;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The frames that all threads together may move. Each thread takes them in parts.
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
    /// Frames taken from the budget so far, and how many of them were reported as moved.
    quota: u64,
    reported: u64,
}

impl<'a> Share<'a> {
    pub(super) fn new(budget: &'a Budget) -> Self {
        Self { budget, quota: 0, reported: 0 }
    }
    fn report(&mut self, done: u64) {
        if done > self.reported {
            self.budget.done.fetch_add(done - self.reported, Relaxed);
            self.reported = done;
        }
    }
    /// How many more frames this thread may move after `done`.
    pub(super) fn left(&mut self, done: u64) -> u64 {
        self.report(done);
        let have = self.quota.saturating_sub(done);
        let more = self.budget.take((BURST as u64).saturating_sub(have));
        self.quota += more;
        have + more
    }
    /// Whether all threads together have moved the whole budget. Returns the frames that this
    /// thread has taken and not moved.
    pub(super) fn is_spent(&mut self, done: u64) -> bool {
        self.report(done);
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
    fn shares_add_up_to_the_budget() {
        let budget = Budget::new(100);
        let (mut a, mut b) = (Share::new(&budget), Share::new(&budget));
        assert_eq!(a.left(0), 64);
        assert_eq!(b.left(0), 36);
        // `a` moved nothing, so `b` may have its part.
        assert!(!a.is_spent(0));
        assert_eq!(b.left(36), 64);
        assert_eq!(a.left(0), 0);
        assert!(!b.is_spent(99));
        assert_eq!((a.left(0), b.left(99)), (1, 0));
        assert!(a.is_spent(1));
        assert!(b.is_spent(99));
    }
}
