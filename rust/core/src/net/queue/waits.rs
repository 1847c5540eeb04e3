//! Waiting for a pair, and waking the waiters.

use crate::net::interrupts::PairEvents;
use crate::net::interrupts::wakeup::Interrupts;
use crate::net::queue::pair::{Mode, QueuePair};
use crate::net::queue::waiting::Wake;
use crate::net::queue::{RxQueue, TxQueue};
use crate::notify::EventFd;
use crate::{Error, Result};
use std::sync::Arc;
use std::time::Duration;

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

    /// Sets how long [`Self::wait`] polls the ring before it sleeps, if recent waits were no longer
    /// than that; zero: never.
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

    /// Keeps interrupts enabled from now on, so that the receive eventfd is readable whenever
    /// [`Self::recv`] would find frames or an error.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the port has no interrupts, [`Error::Closed`] in a forked child.
    pub fn arm(&self) -> Result<&Arc<EventFd>> {
        let event = &self.interrupting()?.rx;
        let over = || self.moving().is_err();
        self.rx_waiting.wakeup.arm(&mut *self.rx.lock()?, event.as_ref(), over);
        Ok(event)
    }

    /// The same for the transmit eventfd: readable once half of the queue is free, until a send
    /// does not take all.
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

    /// An error if there is nothing to wait for, because the queues are not active.
    fn moving(&self) -> Result<()> {
        self.device.alive()?;
        match self.mode() {
            Mode::Active => Ok(()),
            mode => Err(self.unusable(mode)),
        }
    }

    /// A call found the receive queue empty: from now on the eventfd reports when it no longer is.
    #[inline]
    pub(in crate::net) fn received_all(&self, rx: &mut RxQueue) {
        if let Some(events) = &self.events {
            let over = || self.moving().is_err();
            if self.rx_waiting.wakeup.exhausted(rx, events.rx.as_ref(), over) {
                self.stats.rx.interrupts.add_shared(1);
            }
        }
    }

    /// A send did not take all: from now on the transmit eventfd reports when there is room.
    pub(in crate::net) fn sent_in_part(&self, tx: &mut TxQueue) {
        if let Some(events) = &self.events {
            let over = || self.moving().is_err();
            self.tx_waiting.wakeup.exhausted(tx, events.tx.as_ref(), over);
        }
    }

    /// Wakes those who wait for this pair.
    pub(in crate::net) fn signal(&self) {
        if let Some(events) = &self.events {
            events.rx.signal();
            events.tx.signal();
        }
    }
}
