//! A device that has to be reset, or was lost with its QEMU, and is brought up again (sections
//! 2.1.1 and 2.1.2).
//!
//! The port stays what it is: its queues keep their memory, locks, eventfds and counters. They
//! are set aside ([`Port::suspend`]: what had arrived is kept, buffers go back to the pool, what
//! was to be sent is counted as lost), and go on when there is a device again that has been
//! told all that the last one was told ([`Port::reattach`]).

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

    /// An error where no answer of the device is to be waited for.
    pub(in crate::net) fn answering(&self) -> Result<()> {
        self.device.check()?;
        if self.device.is_away() {
            return Err(Error::Timeout("the device is away".to_owned()));
        }
        self.device.transport().alive()
    }

    /// Tries until it is not the device's absence that makes it fail.
    pub(in crate::net) fn persist<T>(&self, attempt: impl Fn() -> Result<T>) -> Result<T> {
        loop {
            self.device.await_back()?;
            match attempt() {
                Err(_) if self.device.is_away() => {}
                done => return done,
            }
        }
    }

    /// Whether the end of QEMU is an outage from now on, and not an error: [`Self::reattach`]
    /// will follow. Receiving finds nothing meanwhile, sending is as with a full ring, waiting
    /// goes on, commands wait for the device (up to 30 s).
    pub fn set_recoverable(&self, patient: bool) {
        self.device.set_recoverable(patient);
    }
    /// There will be no other device: from now on every call says why.
    pub fn abandon(&self, why: &str) {
        if self.device.check_resettable().is_err() {
            return;
        }
        // Before anybody gets the error: who looks at the link then sees that it is down.
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
    /// How often the device was brought up again.
    pub fn restarts(&self) -> u64 {
        self.restarts.load(Ordering::Relaxed)
    }

    /// Sets the queues aside: for a device that is gone, and writes to memory no more, or is about
    /// to be unplugged: that is reset first, and not touched again. Frames that had arrived are
    /// still received; those that were with the device are counted as
    /// [`lost`](crate::net::QueueStats::lost).
    ///
    /// # Errors
    /// Of a device that is there and cannot be reset: its queues are not set aside.
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

    /// An error where a loop of this thread has one of the queues.
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

    /// Goes on with another device that is like the last one, after [`Self::suspend`]; or has less,
    /// where the port can do without that ([`Self::dispensable`]).
    ///
    /// # Errors
    /// [`Error::Device`] where it is not like that, [`Error::Refused`] where it refuses what the
    /// last one was told, [`Error::QemuDied`]: the port is still away, and this can be tried
    /// again. [`Error::Closed`].
    pub fn reattach(&self, transport: Arc<dyn Transport>) -> Result<()> {
        self.device.check_resettable()?;
        self.not_ours()?;
        let _change = self.change()?;
        self.device.check_resettable()?;
        self.device.set_away(true);
        transport.set_status(Status::empty())?;
        self.device.set_transport(transport.clone());
        // Nothing, but after another attempt.
        self.set_aside();
        self.start_again(transport.as_ref())
    }

    /// Resets the device and brings it up again as it was: its queues, and all that it was told.
    /// Also for a port that is broken.
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
        result
    }

    /// [`Self::restart`] where the device says that it needs that (DEVICE_NEEDS_RESET, section
    /// 2.1); whether it did.
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

    /// Brings a device up that was reset. In a [`Self::change`].
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
        let _asking = self.asking.enter(|| transport.patience())?;
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
        // Before there is a buffer to receive into: the first frame finds all filters in place.
        self.tell_again(transport)?;
        self.device.mended();
        for pair in &self.pairs {
            self.resume(pair, transport)?;
        }
        transport.alive()?;
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
        // One lock after the other: each may be waited for.
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

    /// An error where the device is not like the one that the port was made for.
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
            let patient = Interruptible::new(transport);
            let alive = || transport.alive().and_then(|()| patient.ask());
            control.run(alive, *command, payload, arguments, &mut None)?;
        }
        Ok(())
    }
}
