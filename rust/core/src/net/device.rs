//! What the queues of a port have in common: the device behind them, and its state.

use super::bring_up::Events;
use crate::memory::Pool;
use crate::process::Home;
use crate::virtio::Features;
use crate::virtio::transport::Transport;
use crate::{Error, Result};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

const RUNNING: u8 = 0;
const CLOSED: u8 = 1;
const BROKEN: u8 = 2;

/// A device that was brought up.
pub(super) struct Device {
    home: Home,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) pool: Arc<Pool>,
    pub(super) accepted: Features,
    pub(super) events: Option<Events>,
    state: AtomicU8,
    broken: OnceLock<String>,
}

impl Device {
    pub(super) fn new(
        transport: Arc<dyn Transport>,
        pool: Arc<Pool>,
        accepted: Features,
        events: Option<Events>,
    ) -> Self {
        Self {
            home: Home::here(),
            transport,
            pool,
            accepted,
            events,
            state: AtomicU8::new(RUNNING),
            broken: OnceLock::new(),
        }
    }

    /// An error in a process other than the one that opened the port.
    pub(super) fn at_home(&self) -> Result<()> {
        self.home.check("the port")
    }

    /// An error unless the port runs, and in the process that opened it.
    #[inline]
    pub(super) fn check(&self) -> Result<()> {
        self.at_home()?;
        match self.state.load(Ordering::Acquire) {
            RUNNING => Ok(()),
            state => Err(self.why(state)),
        }
    }

    /// The same, and an error where QEMU is gone.
    pub(super) fn alive(&self) -> Result<()> {
        self.check()?;
        self.transport.alive()
    }

    #[cold]
    fn why(&self, state: u8) -> Error {
        match self.broken.get() {
            Some(rule) if state == BROKEN => {
                Error::Device(format!("the port is broken: {rule}; close it and open a new one"))
            }
            _ => Error::Closed("the port is closed".to_owned()),
        }
    }

    /// Marks the port broken where the device broke a rule; passes the error on.
    #[cold]
    pub(super) fn note(&self, error: Error) -> Error {
        if let Error::Device(rule) = &error {
            log::error!("the device broke a rule: {rule}");
            let _ = self.broken.set(rule.clone());
            let _ =
                self.state.compare_exchange(RUNNING, BROKEN, Ordering::AcqRel, Ordering::Acquire);
            self.signal_all();
        }
        error
    }

    /// Wakes everybody who waits.
    pub(super) fn signal_all(&self) {
        if let Some(events) = &self.events {
            events.signal_all();
        }
    }

    /// Whether it was closed, or this is a forked child of the process that opened it.
    pub(super) fn is_closed(&self) -> bool {
        !self.home.is_here() || self.state.load(Ordering::Acquire) == CLOSED
    }

    /// From now on every call says that the port is closed. False where that is nothing new,
    /// and in a forked child.
    pub(super) fn close(&self) -> bool {
        if !self.home.is_here() || self.state.swap(CLOSED, Ordering::AcqRel) == CLOSED {
            return false;
        }
        self.signal_all();
        true
    }
}
