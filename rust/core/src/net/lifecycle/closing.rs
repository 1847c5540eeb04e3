//! The end of a port: its device is reset, and every buffer taken back.

use crate::net::port::Port;
use crate::virtio::Status;
use crate::{Error, Result};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

impl Port {
    /// Whether the port was stopped, or this is a forked child of the process that opened it.
    pub fn is_closed(&self) -> bool {
        self.device.is_closed()
    }

    /// Refuses what is asked from now on, with [`Error::Closed`], also to those who wait. Asks the
    /// device for nothing: [`Self::stop`] does the rest.
    pub fn refuse(&self) {
        self.device.close();
    }

    /// Resets the device and takes every buffer back. Waiting calls return [`Error::Closed`].
    /// A second call does nothing, nor does one in a forked child.
    pub fn stop(&self) {
        // An interruption is over once it was told.
        while self.try_stop().is_err() {}
    }

    /// The same; ends early where the caller is interrupted, and can be called again then.
    ///
    /// Called by a signal handler or callback that interrupts a change of this port, or by what a
    /// loop calls, it only marks the port: the end of what was interrupted does the rest.
    ///
    /// # Errors
    /// What the caller's check for signals returns ([`SignalCheck`](crate::qtest::SignalCheck)).
    pub fn try_stop(&self) -> Result<()> {
        self.device.close();
        if self.device.at_home().is_err() || self.ended.load(Ordering::Acquire) {
            return Ok(());
        }
        // Not while it is being brought up again.
        match self.last_change() {
            Ok(_change) => self.shut_down(),
            Err(Error::Busy(_)) => {
                self.ending.store(true, Ordering::Release);
                Ok(())
            }
            Err(interrupted) => Err(interrupted),
        }
    }

    /// Resets the device of a closed port and takes every buffer back, once. In a [`Self::change`].
    pub(in crate::net) fn shut_down(&self) -> Result<()> {
        if self.ended.load(Ordering::Acquire) {
            return Ok(());
        }
        let transport = self.device.transport();
        let intx = self.intx.lock().unwrap_or_else(PoisonError::into_inner).take();
        if self.withheld.load(Ordering::Acquire) {
            // By now another device may be where it was: it is asked for nothing any more.
            return match transport.alive() {
                Err(error) => self.take_back(matches!(error, Error::QemuDied(_))),
                Ok(()) => Ok(()),
            };
        }
        let mut reset = true;
        if !self.device.is_unplugged() {
            match transport.set_status(Status::empty()) {
                Err(error) if error.is_interruption() => {
                    *self.intx.lock().unwrap_or_else(PoisonError::into_inner) = intx;
                    return Err(error);
                }
                Err(error) if transport.alive().is_ok() => {
                    self.withheld.store(true, Ordering::Release);
                    log::warn!(
                        "the device was not reset at the end, and may still write to its buffers: \
                         they are kept until it is gone ({error})"
                    );
                    return Ok(());
                }
                Err(error) => {
                    log::debug!("the device was not reset at the end: {error}");
                    reset = matches!(error, Error::QemuDied(_));
                }
                Ok(()) => {}
            }
        }
        drop(intx);
        self.take_back(reset)
    }

    /// Nobody writes to the buffers any more; nor to the rings, where the device was `reset`.
    fn take_back(&self, reset: bool) -> Result<()> {
        for pair in &self.pairs {
            if let Err(error) = pair.end(reset) {
                log::debug!("the last frames of a closed port: {error}");
            }
        }
        if let Some(control) = self.control.as_ref().filter(|_| reset) {
            match self.asking.enter(|| self.device.transport().check_signals()) {
                Ok(_asking) => control.end(),
                // A signal handler, in the middle of a command: its memory goes with the port.
                Err(Error::Busy(_)) => {}
                Err(interrupted) => return Err(interrupted),
            }
        }
        self.ended.store(true, Ordering::Release);
        Ok(())
    }

    /// Whether it was stopped, but its device was not reset in time and still has its buffers.
    pub fn withholds(&self) -> bool {
        self.withheld.load(Ordering::Acquire) && !self.ended.load(Ordering::Acquire)
    }

    /// The device is gone: it was unplugged, or its QEMU has ended. Takes back what a device that
    /// was not reset in time might have written to.
    pub fn device_gone(&self) {
        if self.withheld.load(Ordering::Acquire)
            && let Ok(_change) = self.change()
            && !self.ended.load(Ordering::Acquire)
            && let Err(interrupted) = self.take_back(true)
        {
            log::debug!("what the device had is given back later: {interrupted}");
        }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.stop();
        if self.withholds() {
            // Nobody will know when it is gone: its buffers and rings are nobody else's any more.
            std::mem::forget(std::mem::take(&mut self.pairs));
            std::mem::forget(self.control.take());
        }
    }
}
