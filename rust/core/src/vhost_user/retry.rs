//! When to reconnect to a lost backend.

use std::time::{Duration, Instant};

/// The longest pause.
const DAY: Duration = Duration::from_secs(86_400);

/// How often and after which pauses to reconnect to a lost backend.
///
/// The first attempt is made at once. A backend that stays for at most `longest` counts as a failed
/// attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// The number of consecutive failed attempts; with 0, there is no attempt. `None`: no limit.
    pub attempts: Option<u32>,
    /// The pause after the first failed attempt. It doubles with each attempt.
    pub pause: Duration,
    /// The longest pause, at most a day.
    pub longest: Duration,
}

impl Default for Retry {
    /// Forever, every 100 ms.
    fn default() -> Self {
        let pause = Duration::from_millis(100);
        Self { attempts: None, pause, longest: pause }
    }
}

impl Retry {
    /// The pause after this many consecutive failures.
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

/// The attempts to reconnect.
#[derive(Debug)]
pub(super) struct Attempts {
    retry: Retry,
    /// The number of consecutive failed attempts.
    failures: u32,
    /// The time of the next attempt; the earliest time if the backend connects to us.
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

    /// Whether their number is not limited.
    pub(super) fn are_endless(&self) -> bool {
        self.retry.attempts.is_none()
    }

    /// Whether no attempt is allowed.
    pub(super) fn are_none(&self) -> bool {
        self.retry.attempts == Some(0)
    }

    /// Whether another attempt is allowed.
    pub(super) fn left(&self) -> bool {
        self.retry.attempts.is_none_or(|attempts| self.failures < attempts)
    }

    /// Records a failed attempt: the next is made after a pause.
    pub(super) fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
        self.due = Instant::now() + self.retry.after(self.failures);
    }

    /// Records the end of a connection: the next attempt is made at once if it lasted long enough.
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
    fn no_attempts_and_unlimited_attempts() {
        let mut none = Attempts::new(Retry { attempts: Some(0), ..Retry::default() });
        none.ended(Duration::MAX);
        assert!(!none.left());
        let mut endless = Attempts::new(Retry::default());
        (0..1000).for_each(|_| endless.failed());
        assert!(endless.left() && endless.are_endless() && !endless.is_due());
    }
}
