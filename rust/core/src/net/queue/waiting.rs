//! Waiting for a queue: polling if that is likely to succeed, then sleeping.

use crate::net::interrupts::spin::Spin;
use crate::net::interrupts::wakeup::{Interrupts, Wakeup};
use crate::net::queue::claim::{Reclaim, Slot};
use crate::net::stats::LiveQueueStats;
use crate::notify::EventFd;
use crate::{Error, Result};
use std::time::{Duration, Instant};

/// Polling interval of a wait without interrupts.
const POLL_INTERVAL: Duration = Duration::from_micros(50);
/// A wait without interrupts returns this often, so that the caller can check for signals.
const POLL_SLICE: Duration = Duration::from_millis(50);
/// Polls of the ring between two readings of the clock.
const LOOKS: usize = 16;

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// There may be frames.
    Ready,
    /// The timeout expired.
    Timeout,
    /// A signal arrived, or may have; wait again.
    Signal,
}

/// How one queue is waited for.
#[derive(Debug, Default)]
pub(in crate::net) struct Waiting {
    pub(in crate::net) wakeup: Wakeup,
    pub(in crate::net) spin: Spin,
}

impl Waiting {
    /// Waits until the queue may be ready. `running` is an error once it never will be.
    pub(in crate::net) fn wait<Q: Interrupts + Reclaim>(
        &self,
        slot: &Slot<Q>,
        event: Option<&EventFd>,
        timeout: Option<Duration>,
        stats: &LiveQueueStats,
        running: &impl Fn() -> Result<()>,
    ) -> Result<Wake> {
        let Some(event) = event else { return wait_without(slot, timeout, running) };
        let spin = self.spin.limit();
        if spin.is_zero() {
            return self.sleep(slot, event, timeout, stats, running);
        }
        let start = Instant::now();
        let budget = self.spin.budget().min(timeout.unwrap_or(spin));
        if poll(slot, start, budget, running)? {
            stats.polls.add_shared(1);
            self.spin.record(start.elapsed());
            return Ok(Wake::Ready);
        }
        let left = timeout.map(|timeout| timeout.saturating_sub(start.elapsed()));
        let wake = self.sleep(slot, event, left, stats, running)?;
        self.spin.record(start.elapsed());
        Ok(wake)
    }

    fn sleep<Q: Interrupts + Reclaim>(
        &self,
        slot: &Slot<Q>,
        event: &EventFd,
        timeout: Option<Duration>,
        stats: &LiveQueueStats,
        running: &impl Fn() -> Result<()>,
    ) -> Result<Wake> {
        {
            let mut queue = slot.lock()?;
            let over = running().is_err();
            if self.wakeup.enter(&mut *queue, over) {
                drop(queue);
                running()?;
                return Ok(Wake::Ready);
            }
        }
        stats.sleeps.add_shared(1);
        let woken = event.wait(timeout);
        self.wakeup.leave();
        {
            let mut queue = slot.lock()?;
            // The order matters: whatever ends the port rings the bell after setting its state.
            self.wakeup.awake(&mut *queue, event, || running().is_err());
        }
        running()?;
        match woken {
            Ok(true) => {
                stats.interrupts.add_shared(1);
                Ok(Wake::Ready)
            }
            Ok(false) => Ok(Wake::Timeout),
            Err(Error::Os { errno, .. }) if errno == rustix::io::Errno::INTR.raw_os_error() => {
                Ok(Wake::Signal)
            }
            Err(error) => Err(error),
        }
    }
}

/// Polls the queue; whether it became ready.
fn poll<Q: Interrupts + Reclaim>(
    slot: &Slot<Q>,
    start: Instant,
    budget: Duration,
    running: &impl Fn() -> Result<()>,
) -> Result<bool> {
    while start.elapsed() < budget {
        running()?;
        for _ in 0..LOOKS {
            if slot.lock()?.ready() {
                return Ok(true);
            }
            std::hint::spin_loop();
        }
    }
    Ok(false)
}

/// A wait without interrupts.
fn wait_without<Q: Interrupts + Reclaim>(
    slot: &Slot<Q>,
    timeout: Option<Duration>,
    running: &impl Fn() -> Result<()>,
) -> Result<Wake> {
    let start = Instant::now();
    loop {
        if slot.lock()?.ready() {
            return Ok(Wake::Ready);
        }
        running()?;
        let waited = start.elapsed();
        if timeout.is_some_and(|timeout| waited >= timeout) {
            return Ok(Wake::Timeout);
        }
        if waited >= POLL_SLICE {
            return Ok(Wake::Signal);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}
