//! Whether polling before a sleep is worthwhile.

use crate::{Error, Result};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Most polling time before a sleep; more is a mistake in the unit.
const LONGEST: Duration = Duration::from_millis(100);

/// Whether polling before a sleep is worthwhile: if waits are shorter than the limit.
///
/// The length of the next wait is predicted as a moving average of the previous ones, each counted
/// as at most four times the limit, so that two long waits end polling and five short ones resume
/// it.
#[derive(Debug, Default)]
pub(in crate::net) struct Spin {
    limit_ns: AtomicU64,
    expected_ns: AtomicU64,
}

impl Spin {
    pub(in crate::net) fn set(&self, limit: Duration) -> Result<()> {
        if limit > LONGEST {
            return Err(Error::Invalid(format!(
                "a wait can poll for at most {LONGEST:?} before it sleeps, not {limit:?}"
            )));
        }
        self.limit_ns.store(limit.as_nanos() as u64, Relaxed);
        self.expected_ns.store(0, Relaxed);
        Ok(())
    }

    pub(in crate::net) fn limit(&self) -> Duration {
        Duration::from_nanos(self.limit_ns.load(Relaxed))
    }

    /// How long the next wait polls.
    pub(in crate::net) fn budget(&self) -> Duration {
        let limit = self.limit_ns.load(Relaxed);
        let pays = self.expected_ns.load(Relaxed) <= limit;
        Duration::from_nanos(if pays { limit } else { 0 })
    }

    /// Records the duration of a wait.
    pub(in crate::net) fn record(&self, took: Duration) {
        let limit = self.limit_ns.load(Relaxed);
        let took = (took.as_nanos() as u64).min(4 * limit);
        // Another thread's update may be lost: it is an estimate anyway.
        let before = self.expected_ns.load(Relaxed);
        self.expected_ns.store(before - before / 4 + took / 4, Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LIMIT: Duration = Duration::from_micros(50);

    #[test]
    fn long_waits_end_the_polling_and_short_ones_resume_it() {
        let spin = Spin::default();
        assert_eq!(spin.budget(), Duration::ZERO);
        spin.set(LIMIT).unwrap();
        assert_eq!(spin.budget(), LIMIT);
        spin.record(Duration::from_secs(1));
        spin.record(Duration::from_secs(1));
        assert_eq!(spin.budget(), Duration::ZERO);
        for _ in 0..20 {
            spin.record(Duration::from_secs(3600));
        }
        let mut short = 0;
        while spin.budget().is_zero() {
            spin.record(Duration::from_micros(5));
            short += 1;
        }
        assert!((3..=8).contains(&short), "{short}");
    }

    #[test]
    fn a_limit_in_the_wrong_unit_is_refused() {
        let spin = Spin::default();
        assert!(matches!(spin.set(Duration::from_secs(50)), Err(Error::Invalid(_))));
        assert_eq!(spin.limit(), Duration::ZERO);
    }
}
