//! The device behind the queues of a port, and its state.

use crate::locks;
use crate::memory::Pool;
use crate::net::interruptible::Interruptible;
use crate::net::interrupts::Events;
use crate::net::interrupts::too_long::TooLong;
use crate::process::Home;
use crate::virtio::Features;
use crate::virtio::transport::{Transport, Unplugged};
use crate::{Error, Result};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

const RUNNING: u8 = 0;
const CLOSED: u8 = 1;
const BROKEN: u8 = 2;

/// How long a command waits for a device that is away.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How often it checks.
const LOOK: Duration = Duration::from_millis(2);

/// A started device.
pub(in crate::net) struct Device {
    home: Home,
    /// Replaced when its QEMU is restarted.
    transport: RwLock<Arc<dyn Transport>>,
    pub(in crate::net) pool: Arc<Pool>,
    /// The negotiated features, in halves: never more than at first. Changed only while the queues
    /// are suspended.
    accepted: [AtomicU64; 2],
    pub(in crate::net) events: Option<Events>,
    state: AtomicU8,
    broken: Mutex<Option<String>>,
    /// Whether the end of QEMU is an outage, after which it is restarted.
    recoverable: AtomicBool,
    /// Whether the device was lost or is being reset, with its queues suspended.
    away: AtomicBool,
    /// Received frames that fit no buffer.
    pub(in crate::net) too_long: Arc<TooLong>,
    /// Whether its QEMU continues without it.
    unplugged: AtomicBool,
}

impl Device {
    pub(in crate::net) fn new(
        transport: Arc<dyn Transport>,
        pool: Arc<Pool>,
        accepted: Features,
        events: Option<Events>,
    ) -> Self {
        let too_long = TooLong::new(events.as_ref().map(|events| events.config.clone()));
        Self {
            home: Home::here(),
            transport: RwLock::new(transport),
            pool,
            accepted: halves(accepted).map(AtomicU64::new),
            events,
            state: AtomicU8::new(RUNNING),
            broken: Mutex::new(None),
            recoverable: AtomicBool::new(false),
            away: AtomicBool::new(false),
            too_long: Arc::new(too_long),
            unplugged: AtomicBool::new(false),
        }
    }

    /// The negotiated features.
    #[inline]
    pub(in crate::net) fn accepted(&self) -> Features {
        let [low, high] = &self.accepted;
        let half = |half: &AtomicU64| u128::from(half.load(Ordering::Relaxed));
        Features(half(low) | half(high) << 64)
    }
    /// Reduces the features: the queues are suspended, and no frame is with the device.
    pub(in crate::net) fn set_accepted(&self, accepted: Features) {
        for (half, bits) in self.accepted.iter().zip(halves(accepted)) {
            half.store(bits, Ordering::Relaxed);
        }
    }

    /// An error in any process other than the one that opened the port.
    pub(in crate::net) fn at_home(&self) -> Result<()> {
        self.home.check("the port")
    }

    /// An error unless the port is running, in the process that opened it.
    #[inline]
    pub(in crate::net) fn check(&self) -> Result<()> {
        self.at_home()?;
        match self.state.load(Ordering::Acquire) {
            RUNNING => Ok(()),
            state => Err(self.why(state)),
        }
    }

    /// The same, and an error if QEMU is gone for good.
    #[inline]
    pub(in crate::net) fn alive(&self) -> Result<()> {
        self.check()?;
        self.connected()
    }

    /// An error if QEMU is gone for good.
    #[inline]
    pub(in crate::net) fn connected(&self) -> Result<()> {
        let transport = self.transport.read().unwrap_or_else(PoisonError::into_inner);
        match transport.alive() {
            Err(_) if self.recoverable.load(Ordering::Relaxed) => Ok(()),
            other => other,
        }
    }

    /// Access to the registers of the current device.
    pub(in crate::net) fn transport(&self) -> Arc<dyn Transport> {
        self.transport.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
    pub(in crate::net) fn set_transport(&self, transport: Arc<dyn Transport>) {
        self.unplugged.store(false, Ordering::Release);
        *self.transport.write().unwrap_or_else(PoisonError::into_inner) = transport;
    }

    /// Marks its registers as inaccessible: it is about to be unplugged.
    pub(in crate::net) fn unplug(&self) {
        self.set_transport(Arc::new(Unplugged::new(self.transport())));
        self.unplugged.store(true, Ordering::Release);
    }
    pub(in crate::net) fn is_unplugged(&self) -> bool {
        self.unplugged.load(Ordering::Acquire)
    }

    /// Sets whether the end of QEMU is an outage. If it no longer is, wakes all waiters to check
    /// again.
    pub(in crate::net) fn set_recoverable(&self, on: bool) {
        if self.recoverable.swap(on, Ordering::AcqRel) && !on {
            self.signal_all();
        }
    }
    pub(in crate::net) fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::Release);
    }
    /// Whether the device was lost and may come back, or is being reset.
    pub(in crate::net) fn is_away(&self) -> bool {
        self.away.load(Ordering::Acquire)
            || (self.recoverable.load(Ordering::Acquire) && self.transport().alive().is_err())
    }

    /// Waits while the device is away.
    pub(in crate::net) fn await_back(&self) -> Result<()> {
        let since = Instant::now();
        let transport = self.transport();
        let signals = Interruptible::new(transport.as_ref());
        loop {
            self.alive()?;
            signals.check()?;
            if !self.is_away() {
                return Ok(());
            }
            if locks::must_not_await_devices() {
                return Err(Error::Busy(
                    "the device is away, and this thread restores it, or is attaching or detaching \
                     meanwhile: call it in another thread, as the callbacks of Qemu.watch do, or \
                     afterwards"
                        .to_owned(),
                ));
            }
            if since.elapsed() > TIMEOUT {
                return Err(Error::Timeout(format!(
                    "the device did not come back within {TIMEOUT:?}"
                )));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// An error if it was closed; after a violation the device can be reset.
    pub(in crate::net) fn check_resettable(&self) -> Result<()> {
        self.at_home()?;
        match self.state.load(Ordering::Acquire) {
            CLOSED => Err(self.why(CLOSED)),
            _ => Ok(()),
        }
    }

    /// Records that it was reset and works again.
    pub(in crate::net) fn mended(&self) {
        *self.rule() = None;
        let _ = self.state.compare_exchange(BROKEN, RUNNING, Ordering::AcqRel, Ordering::Acquire);
    }

    fn rule(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cold]
    fn why(&self, state: u8) -> Error {
        match &*self.rule() {
            Some(rule) if state == BROKEN => {
                Error::Device(format!("the port is broken: {rule}; restart() resets the device"))
            }
            _ => Error::Closed("the port is closed".to_owned()),
        }
    }

    /// Marks the port broken if the device violated the specification; passes on the error.
    #[cold]
    pub(in crate::net) fn note(&self, error: Error) -> Error {
        if let Error::Device(rule) = &error {
            log::error!("the device violated the specification: {rule}");
            self.fail(rule.clone());
        }
        error
    }

    /// Marks the port broken.
    #[cold]
    pub(in crate::net) fn fail(&self, why: String) {
        self.rule().get_or_insert(why);
        let _ = self.state.compare_exchange(RUNNING, BROKEN, Ordering::AcqRel, Ordering::Acquire);
        self.signal_all();
    }

    /// Wakes all waiters.
    pub(in crate::net) fn signal_all(&self) {
        if let Some(events) = &self.events {
            events.signal_all();
        }
    }

    /// Whether it was closed, or this is a forked child of the process that opened it.
    pub(in crate::net) fn is_closed(&self) -> bool {
        !self.home.is_here() || self.state.load(Ordering::Acquire) == CLOSED
    }

    /// Makes every call return that the port is closed. Does nothing in a forked child.
    pub(in crate::net) fn close(&self) {
        if self.home.is_here() && self.state.swap(CLOSED, Ordering::AcqRel) != CLOSED {
            self.signal_all();
        }
    }
}

fn halves(features: Features) -> [u64; 2] {
    [features.0 as u64, (features.0 >> 64) as u64]
}
