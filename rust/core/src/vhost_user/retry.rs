//! How a backend that went is looked for.

use std::time::{Duration, Instant};

/// No pause is longer.
const DAY: Duration = Duration::from_secs(86_400);

/// How often, and after which pauses, a backend that went is looked for.
///
/// The first attempt is made at once. A backend that stays for no longer than `longest` counts
/// as one more attempt that failed: one that goes as soon as it has come costs nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Attempts in a row that may fail; with 0 it is over when the backend goes. `None`: for ever.
    pub attempts: Option<u32>,
    /// The pause after the first that failed; each is twice as long as the one before.
    pub pause: Duration,
    /// The longest pause, at most a day.
    pub longest: Duration,
}

impl Default for Retry {
    /// For ever, every 100 ms.
    fn default() -> Self {
        let pause = Duration::from_millis(100);
        Self { attempts: None, pause, longest: pause }
    }
}

impl Retry {
    /// The pause after so many failures in a row.
    fn after(&self, failures: u32) -> Duration {
        match failures.checked_sub(1) {
            None => Duration::ZERO,
            Some(before) => {
                let doubled = 1u32.checked_shl(before).unwrap_or(u32::MAX);
                self.pause.saturating_mul(doubled).min(self.longest).min(DAY)
            }
        }
    }
}

/// The attempts that were made.
#[derive(Debug)]
pub(super) struct Attempts {
    retry: Retry,
    /// How many in a row failed.
    failures: u32,
    /// When the next is made, at the earliest where we listen.
    due: Instant,
}

impl Attempts {
    pub(super) fn new(retry: Retry) -> Self {
        Self { retry, failures: 0, due: Instant::now() }
    }

    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    pub(super) fn due(&self) -> Instant {
        self.due
    }

    pub(super) fn is_due(&self) -> bool {
        Instant::now() >= self.due
    }

    /// Whether nobody counts them.
    pub(super) fn are_endless(&self) -> bool {
        self.retry.attempts.is_none()
    }

    /// Whether there is to be none at all.
    pub(super) fn are_none(&self) -> bool {
        self.retry.attempts == Some(0)
    }

    /// Whether there is to be another.
    pub(super) fn left(&self) -> bool {
        self.retry.attempts.is_none_or(|attempts| self.failures < attempts)
    }

    /// One failed: the next is made after a pause.
    pub(super) fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
        self.due = Instant::now() + self.retry.after(self.failures);
    }

    /// What came of one has ended after so long: the next is made at once if that was long enough.
    pub(super) fn ended(&mut self, lasted: Duration) {
        if lasted > self.retry.longest {
            self.failures = 0;
            self.due = Instant::now();
        } else {
            self.failed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn pauses_double_up_to_the_longest() {
        let retry = Retry { attempts: Some(5), pause: 50 * MS, longest: 300 * MS };
        let pauses = [0, 1, 2, 3, 4, 40, u32::MAX].map(|n| retry.after(n).as_millis());
        assert_eq!(pauses, [0, 50, 100, 200, 300, 300, 300]);
    }

    #[test]
    fn attempts_are_counted_until_one_lasts() {
        let mut attempts = Attempts::new(Retry { attempts: Some(2), pause: MS, longest: 10 * MS });
        assert!(attempts.is_due() && attempts.left() && !attempts.are_endless());
        attempts.failed();
        assert!(attempts.left());
        attempts.ended(10 * MS); // not long enough
        assert!(!attempts.left());
        attempts.ended(11 * MS);
        assert!(attempts.left() && attempts.is_due() && attempts.failures() == 0);
    }

    #[test]
    fn none_are_made_and_as_many_as_you_like() {
        let mut none = Attempts::new(Retry { attempts: Some(0), ..Retry::default() });
        none.ended(Duration::MAX);
        assert!(!none.left());
        let mut endless = Attempts::new(Retry::default());
        (0..1000).for_each(|_| endless.failed());
        assert!(endless.left() && endless.are_endless() && !endless.is_due());
    }
}
