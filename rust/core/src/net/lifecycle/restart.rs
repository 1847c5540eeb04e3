//! Restarting a device that needs a reset, or was lost with its QEMU (sections 2.1.1 and 2.1.2).
//!
//! The port's queues keep their memory, locks, eventfds and counters. They are suspended
//! ([`Port::suspend`]: received frames are kept, buffers return to the pool, frames to be sent are
//! counted as lost), and continue when there is a device with the settings of the last one
//! ([`Port::reattach`]).

use crate::net::config::NetConfig;
use crate::net::control::journal::{Entry, Journal};
use crate::net::interruptible::Interruptible;
use crate::net::interrupts::intx::IntxDispatcher;
use crate::net::port::Port;
use crate::net::queue::pair::Mode;
use crate::notify::Doorbell;
use crate::virtio::Status;
use crate::virtio::transport::Transport;
use crate::{Error, Result};
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};

impl Port {
    pub(in crate::net) fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An error if no reply of the device should be waited for.
    pub(in crate::net) fn answering(&self) -> Result<()> {
        self.device.check()?;
        if self.device.is_away() {
            return Err(Error::Timeout("the device is away".to_owned()));
        }
        self.device.transport().alive()
    }

    /// Retries while the attempt fails because the device is away.
    pub(in crate::net) fn persist<T>(&self, attempt: impl Fn() -> Result<T>) -> Result<T> {
        loop {
            if self.device.is_away() {
                self.not_changing()?; // it would wait for itself
            }
            self.device.await_back()?;
            match attempt() {
                Err(_) if self.device.is_away() => {}
                done => return done,
            }
        }
    }

    /// Sets whether the end of QEMU is an outage instead of an error: [`Self::reattach`] will
    /// follow. Meanwhile receiving finds nothing, sending behaves as with a full ring, waits
    /// continue, and commands wait for the device (up to 30 s).
    pub fn set_recoverable(&self, on: bool) {
        self.device.set_recoverable(on);
    }
    /// Gives up: from now on every call returns this error.
    pub fn abandon(&self, why: &str) {
        if self.device.check_resettable().is_err() {
            return;
        }
        // Before any caller gets the error, so that the link is seen as down then.
        self.link.store(false, Ordering::Relaxed);
        if self.device.transport().alive().is_ok() {
            self.device.fail(why.to_owned());
        }
        self.device.set_recoverable(false);
    }
    /// Whether the device was lost and may come back, or is being reset.
    pub fn is_away(&self) -> bool {
        self.device.is_away()
    }
    /// How often the device was restarted.
    pub fn restarts(&self) -> u64 {
        self.restarts.load(Ordering::Relaxed)
    }

    /// Suspends the queues, for a device that is gone and no longer writes to memory, or that is
    /// about to be unplugged: that one is first reset, and then not accessed again. Frames that had
    /// arrived are still received; those with the device are counted as
    /// [`lost`](crate::net::QueueStats::lost).
    ///
    /// # Errors
    /// Those of a device that cannot be reset: its queues are not suspended.
    pub fn suspend(&self) -> Result<()> {
        if self.device.check_resettable().is_err() {
            return Ok(());
        }
        self.device.set_away(true);
        let Ok(_change) = self.change() else {
            return Ok(()); // interrupted, or in a change that will set them aside
        };
        let transport = self.device.transport();
        if self.device.is_unplugged() {
            return Ok(());
        }
        match transport.set_status(Status::empty()) {
            Ok(()) => {
                self.device.unplug();
                self.dispatch_again()?;
            }
            Err(error) if transport.alive().is_ok() => {
                self.device.set_away(false);
                return Err(error);
            }
            Err(_) => {} // gone
        }
        self.set_aside();
        Ok(())
    }

    /// An error if a loop of this thread has one of the queues.
    fn not_ours(&self) -> Result<()> {
        self.pairs.iter().try_for_each(crate::net::QueuePair::not_ours)
    }

    fn set_aside(&self) {
        // One queue at a time: a loop may have several, and lends one after the other.
        for pair in &self.pairs {
            pair.rx.borrow().suspend();
            pair.tx.borrow().suspend();
        }
        self.link.store(false, Ordering::Relaxed);
    }

    /// Continues with another device like the last one, after [`Self::suspend`]; it may lack
    /// features that the port can do without ([`Self::dispensable`]).
    ///
    /// # Errors
    /// [`Error::Device`] if it differs, [`Error::Refused`] if it refuses settings of the last one,
    /// [`Error::QemuDied`]: the port is still away, and this can be retried. [`Error::Closed`].
    pub fn reattach(&self, transport: Arc<dyn Transport>) -> Result<()> {
        self.device.check_resettable()?;
        self.not_ours()?;
        let _change = self.change()?;
        self.device.check_resettable()?;
        self.device.set_away(true);
        transport.set_status(Status::empty())?;
        self.device.set_transport(transport.clone());
        // Does nothing unless there was an earlier attempt.
        self.set_aside();
        self.start_again(transport.as_ref())
    }

    /// Resets the device and restarts it with the same queues and settings. Also for a broken port.
    ///
    /// # Errors
    /// [`Error::Device`], [`Error::Refused`]: the port is broken then. [`Error::QemuDied`],
    /// [`Error::Closed`].
    pub fn restart(&self) -> Result<()> {
        self.device.check_resettable()?;
        self.not_ours()?;
        let _change = self.change()?;
        self.device.check_resettable()?;
        if self.device.is_unplugged() {
            return Err(Error::Timeout("the device is away".to_owned()));
        }
        self.device.set_away(true);
        let transport = self.device.transport();
        let result = transport.set_status(Status::empty()).and_then(|()| {
            self.set_aside();
            self.start_again(transport.as_ref())
        });
        if let Err(error) = &result
            && transport.alive().is_ok()
        {
            self.device.set_away(false);
            self.device.fail(format!("the device was reset, but not brought up again: {error}"));
        }
        // Where it was closed meanwhile, that is why.
        result.or_else(|error| self.device.check_resettable().and(Err(error)))
    }

    /// [`Self::restart`] if the device needs it (DEVICE_NEEDS_RESET, section 2.1); whether it did.
    ///
    /// # Errors
    /// As for [`Self::restart`].
    pub fn restart_if_needed(&self) -> Result<bool> {
        self.device.check_resettable()?;
        if self.device.is_away() {
            return Ok(false);
        }
        let status = self.device.transport().status()?;
        if !status.contains(Status::DEVICE_NEEDS_RESET) {
            return Ok(false);
        }
        log::warn!("the device met an error and needs a reset (status {:#x})", status.bits());
        self.restart()?;
        Ok(true)
    }

    /// Starts a device that was reset. In a [`Self::change`].
    fn start_again(&self, transport: &dyn Transport) -> Result<()> {
        let mut status = Status::ACKNOWLEDGE | Status::DRIVER;
        transport.set_status(status)?;
        let accepted = self.renegotiate(transport.device_features()?)?;
        transport.set_driver_features(accepted)?;
        if !transport.is_legacy() {
            status |= Status::FEATURES_OK;
            transport.set_status(status)?;
            if !transport.status()?.contains(Status::FEATURES_OK) {
                return Err(Error::Device(format!(
                    "the device came back and refused the features {accepted}"
                )));
            }
        }
        let config = self.same(NetConfig::read(transport, accepted, self.setup.config.mac)?)?;
        if let Some(vector) = self.setup.config_vector {
            transport.set_config_vector(vector)?;
        }
        for pair in &self.pairs {
            for (queue, addresses) in (2 * pair.index..).zip(pair.addresses()) {
                transport.setup_queue(queue, &addresses)?;
            }
        }
        if transport.pairs().is_some() {
            transport.enable_pairs(self.active_pairs())?;
        }
        let _asking = self.asking.enter(|| transport.check_signals())?;
        self.journal().steering_unknown = false;
        if let Some(control) = &self.control {
            let index = control.index();
            control.restart(transport.doorbell(index)?);
            transport.setup_queue(index, &control.addresses())?;
        }
        self.dispatch_again()?;
        transport.set_status(status | Status::DRIVER_OK)?;
        for pair in self.pairs.iter().filter(|pair| pair.mode().is_off()) {
            transport.reset_queue(2 * pair.index)?;
            transport.reset_queue(2 * pair.index + 1)?;
            pair.set_mode(Mode::Stopped);
        }
        // Before there are receive buffers, so that filters apply from the first frame on.
        self.tell_again(transport)?;
        self.device.mended();
        for pair in &self.pairs {
            self.resume(pair, transport)?;
        }
        transport.settled()?;
        self.link.store(config.link, Ordering::Relaxed);
        self.restarts.fetch_add(1, Ordering::Relaxed);
        self.device.set_away(false);
        Ok(())
    }

    fn resume(&self, pair: &crate::net::QueuePair, transport: &dyn Transport) -> Result<()> {
        let doorbell = |queue: u16, now: Doorbell| -> Result<Doorbell> {
            if self.setup.doorbells_given {
                return now.or(|| transport.doorbell(queue));
            }
            transport.doorbell(queue)
        };
        // One lock after the other, as each may have to be waited for.
        let rx = pair.rx.borrow().doorbell();
        let tx = pair.tx.borrow().doorbell();
        let (rx_doorbell, tx_doorbell) =
            (doorbell(2 * pair.index, rx)?, doorbell(2 * pair.index + 1, tx)?);
        let mut rx = pair.rx.borrow();
        rx.resume(rx_doorbell);
        if !pair.mode().is_off() {
            rx.refill();
        }
        pair.received_all(&mut rx);
        drop(rx);
        let mut tx = pair.tx.borrow();
        tx.resume(tx_doorbell);
        pair.sent_in_part(&mut tx);
        Ok(())
    }

    /// An error if the device differs from the one that the port was made for.
    fn same(&self, config: NetConfig) -> Result<NetConfig> {
        let before = &self.setup.config;
        if config.max_pairs == before.max_pairs && config.mtu <= before.mtu {
            return Ok(config);
        }
        Err(Error::Device(format!(
            "the device came back with {} queue pairs and an MTU of {}; it had {} and {}",
            config.max_pairs, config.mtu, before.max_pairs, before.mtu
        )))
    }

    /// Interrupts of the line are those of this device from now on.
    fn dispatch_again(&self) -> Result<()> {
        let mut intx = self.intx.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(events) = &self.device.events else { return Ok(()) };
        if let Some(before) = intx.take() {
            let line = before.line().clone();
            drop(before);
            *intx = Some(IntxDispatcher::start(line, self.device.transport(), events.clone())?);
        }
        Ok(())
    }

    fn tell_again(&self, transport: &dyn Transport) -> Result<()> {
        let Some(control) = &self.control else { return Ok(()) };
        let told: Vec<Entry> = self.journal().entries();
        for Entry { command, payload, arguments } in &told {
            let signals = Interruptible::new(transport);
            let alive = || transport.alive().and_then(|()| signals.check());
            control.run(alive, *command, payload, arguments, &mut None)?;
        }
        Ok(())
    }
}
