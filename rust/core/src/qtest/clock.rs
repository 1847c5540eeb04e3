//! Steps QEMU's virtual clock in real time, for the qtest accelerator.
//!
//! With that accelerator the virtual clock stands still; slirp's timers and the
//! device's own need it to run. A step is as long as the time that really passed,
//! and the next begins only when QEMU has answered the last, so steps never pile up.

use super::connection::Connection;
use super::sync::{Condvar, Mutex, lock, wait};
use super::wire::Command;
use crate::Error;
use crate::process::background;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The longest single step: QEMU runs each timer on the way, and must be able to
/// answer others in between.
const LONGEST_STEP: Duration = Duration::from_secs(1);

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
    fn sleep(&self, since: Instant) -> bool {
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

/// Starts the thread; [`Clock::set`] was called before.
pub(super) fn start(connection: &Arc<Connection>) -> Result<JoinHandle<()>, std::io::Error> {
    let connection = Arc::clone(connection);
    background("virtnic-clock", move || run(&connection))
}

fn run(connection: &Connection) {
    let mut stepped = Instant::now();
    while connection.clock.sleep(stepped) {
        let step = stepped.elapsed().min(LONGEST_STEP);
        let ns = u64::try_from(step.as_nanos()).unwrap_or(u64::MAX);
        match connection.ask_for_ever(Command::ClockStep { ns: Some(ns) }) {
            Ok(_) => stepped += step,
            Err(Error::QemuDied(_) | Error::Closed(_)) => return,
            Err(error) => {
                log::warn!("QEMU's virtual clock is not stepped any more: {error}");
                return connection.clock.unset();
            }
        }
    }
}
