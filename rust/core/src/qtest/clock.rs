//! The timing of steps of QEMU's virtual clock: see [`super::stepping`].

use super::sync::{Condvar, Mutex, lock, wait};
use std::time::{Duration, Instant};

/// The period of the clock thread, and its end.
#[derive(Debug)]
pub(super) struct Clock {
    state: Mutex<ClockState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct ClockState {
    period: Option<Duration>,
    stopped: bool,
}

impl Default for Clock {
    fn default() -> Self {
        Self { state: Mutex::new(ClockState::default()), changed: Condvar::new() }
    }
}

impl Clock {
    /// Sets the period. Returns whether the thread must be started.
    pub(super) fn set(&self, period: Duration) -> bool {
        let first = lock(&self.state).period.replace(period).is_none();
        self.changed.notify_all();
        first
    }

    /// Undoes a first [`Self::set`]: the thread could not be started, or ended.
    pub(super) fn unset(&self) {
        lock(&self.state).period = None;
    }

    /// Ends the thread.
    pub(super) fn stop(&self) {
        lock(&self.state).stopped = true;
        self.changed.notify_all();
    }

    /// Sleeps until one period after `since`. Returns false if the thread has to end.
    pub(super) fn sleep(&self, since: Instant) -> bool {
        let mut state = lock(&self.state);
        loop {
            let (false, Some(period)) = (state.stopped, state.period) else { return false };
            let left = period.saturating_sub(since.elapsed());
            if left.is_zero() {
                return true;
            }
            state = wait(&self.changed, state, Some(left));
        }
    }
}
