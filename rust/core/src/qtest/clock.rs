//! When QEMU's virtual clock is stepped: see [`super::stepping`].

use super::sync::{Condvar, Mutex, lock, wait};
use std::time::{Duration, Instant};

/// When the clock thread steps, and whether it shall go on.
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
    /// Sets the period; says whether the thread must be started.
    pub(super) fn set(&self, period: Duration) -> bool {
        let first = lock(&self.state).period.replace(period).is_none();
        self.changed.notify_all();
        first
    }

    /// Takes back a first [`Self::set`]: the thread could not be started, or ended.
    pub(super) fn unset(&self) {
        lock(&self.state).period = None;
    }

    /// Makes the thread go.
    pub(super) fn stop(&self) {
        lock(&self.state).stopped = true;
        self.changed.notify_all();
    }

    /// Sleeps for a period that begins at `since`; `false` when the thread shall go.
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
