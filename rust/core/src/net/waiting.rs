//! Waiting for a queue: polling for a while where that is likely to pay, then asleep.

use super::bring_up::PairEvents;
use super::pair::{Mode, QueuePair};
use super::queue::{RxQueue, TxQueue};
use super::slot::{Reclaim, Slot};
use super::spin::Spin;
use super::stats::LiveQueueStats;
use super::wakeup::{Interrupts, Wakeup};
use crate::notify::EventFd;
use crate::{Error, Result};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Without interrupts a wait looks at the ring this often.
const POLL_INTERVAL: Duration = Duration::from_micros(50);
/// A wait without interrupts returns this often, so that the caller can look at its signals.
const POLL_SLICE: Duration = Duration::from_millis(50);
/// Looks at the ring between two looks at the clock.
const LOOKS: usize = 16;

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// There may be frames.
    Ready,
    /// The time is over.
    Timeout,
    /// A signal came, or it is time to look for one; wait again.
    Signal,
}

impl QueuePair {
    /// Waits until [`Self::recv`] may find a frame.
    ///
    /// # Errors
    /// As for [`Self::recv`].
    pub fn wait(&self, timeout: Option<Duration>) -> Result<Wake> {
        self.device.check()?;
        let event = self.events.as_ref().map(|events| events.rx.as_ref());
        self.rx_waiting.wait(&self.rx, event, timeout, &self.stats.rx, &|| self.moving())
    }

    /// Waits until half of the transmit queue is free.
    ///
    /// # Errors
    /// As for [`Self::recv`].
    pub fn wait_writable(&self, timeout: Option<Duration>) -> Result<Wake> {
        self.device.check()?;
        let event = self.events.as_ref().map(|events| events.tx.as_ref());
        let stats = &self.stats.tx;
        let wake = self.tx_waiting.wait(&self.tx, event, timeout, stats, &|| self.moving())?;
        // An interrupt line is shared: the interrupt may have been for something else.
        let ready = wake != Wake::Ready || self.tx.lock()?.ready();
        Ok(if ready { wake } else { Wake::Signal })
    }

    /// For how long [`Self::wait`] polls the ring before it sleeps, where recent waits were
    /// no longer than that; zero: it never polls.
    ///
    /// # Errors
    /// [`Error::Invalid`] for more than a tenth of a second.
    pub fn set_spin(&self, limit: Duration) -> Result<()> {
        self.rx_waiting.spin.set(limit)
    }

    /// What was set by [`Self::set_spin`].
    pub fn spin(&self) -> Duration {
        self.rx_waiting.spin.limit()
    }

    /// Keeps interrupts enabled from now on, so that the receive eventfd is readable
    /// whenever [`Self::recv`] would find frames, or an error.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the port has no interrupts, [`Error::Closed`] in a forked child.
    pub fn arm(&self) -> Result<&Arc<EventFd>> {
        let event = &self.interrupting()?.rx;
        let over = || self.moving().is_err();
        self.rx_waiting.wakeup.arm(&mut *self.rx.lock()?, event.as_ref(), over);
        Ok(event)
    }

    /// The same for the transmit eventfd: readable when half of the queue is free, or since
    /// it last was until a send does not take all.
    ///
    /// # Errors
    /// As for [`Self::arm`].
    pub fn arm_tx(&self) -> Result<&Arc<EventFd>> {
        let event = &self.interrupting()?.tx;
        let over = || self.moving().is_err();
        self.tx_waiting.wakeup.arm(&mut *self.tx.lock()?, event.as_ref(), over);
        Ok(event)
    }

    fn interrupting(&self) -> Result<&PairEvents> {
        self.device.at_home()?;
        self.events.as_ref().ok_or_else(|| {
            Error::Invalid(
                "the port was opened without interrupts (interrupts=\"none\"), so there is no descriptor to wait on"
                    .to_owned(),
            )
        })
    }

    /// An error where there is nothing to wait for, because the queues move nothing.
    fn moving(&self) -> Result<()> {
        self.device.alive()?;
        match self.mode() {
            Mode::Active => Ok(()),
            mode => Err(self.unusable(mode)),
        }
    }

    /// A call found the receive queue empty: from now on the eventfd says when it no longer is.
    #[inline]
    pub(super) fn received_all(&self, rx: &mut RxQueue) {
        if let Some(events) = &self.events {
            let over = || self.moving().is_err();
            if self.rx_waiting.wakeup.exhausted(rx, events.rx.as_ref(), over) {
                self.stats.rx.interrupts.add_shared(1);
            }
        }
    }

    /// A send did not take all: from now on the transmit eventfd says when there is room.
    pub(super) fn sent_in_part(&self, tx: &mut TxQueue) {
        if let Some(events) = &self.events {
            let over = || self.moving().is_err();
            self.tx_waiting.wakeup.exhausted(tx, events.tx.as_ref(), over);
        }
    }

    /// Wakes those who wait for this pair.
    pub(super) fn signal(&self) {
        if let Some(events) = &self.events {
            events.rx.signal();
            events.tx.signal();
        }
    }
}

/// How one queue is waited for.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub(super) wakeup: Wakeup,
    spin: Spin,
}

impl Waiting {
    /// Waits until the queue may be ready. `running` is an error once it never will be.
    fn wait<Q: Interrupts + Reclaim>(
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
            // The order matters: what ends the port strikes the bell after it is over.
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

/// Looks at the queue again and again; whether it became ready.
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
