//! What the queues of a port have in common: the device behind them, and its state.

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
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it looks whether the device is back.
const LOOK: Duration = Duration::from_millis(2);

/// A device that was brought up.
pub(in crate::net) struct Device {
    home: Home,
    /// Another one when its QEMU was started again.
    transport: RwLock<Arc<dyn Transport>>,
    pub(in crate::net) pool: Arc<Pool>,
    /// What was negotiated, in halves: never more than at first. Changed only while the queues are set
    /// aside.
    accepted: [AtomicU64; 2],
    pub(in crate::net) events: Option<Events>,
    state: AtomicU8,
    broken: Mutex<Option<String>>,
    /// Whether the end of QEMU is an outage: somebody will start it again.
    patient: AtomicBool,
    /// Whether the device was lost, or is being reset, and its queues are set aside.
    away: AtomicBool,
    /// Received frames that fit no buffer.
    pub(in crate::net) too_long: Arc<TooLong>,
    /// Whether its QEMU goes on without it.
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
            patient: AtomicBool::new(false),
            away: AtomicBool::new(false),
            too_long: Arc::new(too_long),
            unplugged: AtomicBool::new(false),
        }
    }

    /// What was negotiated.
    #[inline]
    pub(in crate::net) fn accepted(&self) -> Features {
        let [low, high] = &self.accepted;
        let half = |half: &AtomicU64| u128::from(half.load(Ordering::Relaxed));
        Features(half(low) | half(high) << 64)
    }
    /// Less is in force from now on: the queues are set aside, and no frame is with the device.
    pub(in crate::net) fn set_accepted(&self, accepted: Features) {
        for (half, bits) in self.accepted.iter().zip(halves(accepted)) {
            half.store(bits, Ordering::Relaxed);
        }
    }

    /// An error in a process other than the one that opened the port.
    pub(in crate::net) fn at_home(&self) -> Result<()> {
        self.home.check("the port")
    }

    /// An error unless the port runs, and in the process that opened it.
    #[inline]
    pub(in crate::net) fn check(&self) -> Result<()> {
        self.at_home()?;
        match self.state.load(Ordering::Acquire) {
            RUNNING => Ok(()),
            state => Err(self.why(state)),
        }
    }

    /// The same, and an error where QEMU is gone for good.
    #[inline]
    pub(in crate::net) fn alive(&self) -> Result<()> {
        self.check()?;
        self.connected()
    }

    /// An error where QEMU is gone for good.
    #[inline]
    pub(in crate::net) fn connected(&self) -> Result<()> {
        let transport = self.transport.read().unwrap_or_else(PoisonError::into_inner);
        match transport.alive() {
            Err(_) if self.patient.load(Ordering::Relaxed) => Ok(()),
            other => other,
        }
    }

    /// The way to the registers of the device as it is now.
    pub(in crate::net) fn transport(&self) -> Arc<dyn Transport> {
        self.transport.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
    pub(in crate::net) fn set_transport(&self, transport: Arc<dyn Transport>) {
        self.unplugged.store(false, Ordering::Release);
        *self.transport.write().unwrap_or_else(PoisonError::into_inner) = transport;
    }

    /// Its registers are out of reach: it is about to be unplugged.
    pub(in crate::net) fn unplug(&self) {
        self.set_transport(Arc::new(Unplugged::new(self.transport())));
        self.unplugged.store(true, Ordering::Release);
    }
    pub(in crate::net) fn is_unplugged(&self) -> bool {
        self.unplugged.load(Ordering::Acquire)
    }

    /// Whether the end of QEMU is an outage, from now on. Where it no longer is, wakes everybody,
    /// to look again.
    pub(in crate::net) fn set_recoverable(&self, patient: bool) {
        if self.patient.swap(patient, Ordering::AcqRel) && !patient {
            self.signal_all();
        }
    }
    pub(in crate::net) fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::Release);
    }
    /// Whether the device was lost and may come back, or is being reset.
    pub(in crate::net) fn is_away(&self) -> bool {
        self.away.load(Ordering::Acquire)
            || (self.patient.load(Ordering::Acquire) && self.transport().alive().is_err())
    }

    /// Waits as long as the device is away, so that it can be asked for something.
    pub(in crate::net) fn await_back(&self) -> Result<()> {
        let since = Instant::now();
        let transport = self.transport();
        let patient = Interruptible::new(transport.as_ref());
        loop {
            self.alive()?;
            patient.ask()?;
            if !self.is_away() {
                return Ok(());
            }
            if locks::must_not_await_devices() {
                return Err(Error::Busy(
                    "the device is away, and this thread brings it back: ask it in another, as the \
                     callbacks of Qemu.watch do"
                        .to_owned(),
                ));
            }
            if since.elapsed() > PATIENCE {
                return Err(Error::Timeout(format!(
                    "the device did not come back within {PATIENCE:?}"
                )));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// An error where it was closed; a device that broke a rule can be reset.
    pub(in crate::net) fn check_resettable(&self) -> Result<()> {
        self.at_home()?;
        match self.state.load(Ordering::Acquire) {
            CLOSED => Err(self.why(CLOSED)),
            _ => Ok(()),
        }
    }

    /// It was reset, and is as good as new.
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

    /// Marks the port broken where the device broke a rule; passes the error on.
    #[cold]
    pub(in crate::net) fn note(&self, error: Error) -> Error {
        if let Error::Device(rule) = &error {
            log::error!("the device broke a rule: {rule}");
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

    /// Wakes everybody who waits.
    pub(in crate::net) fn signal_all(&self) {
        if let Some(events) = &self.events {
            events.signal_all();
        }
    }

    /// Whether it was closed, or this is a forked child of the process that opened it.
    pub(in crate::net) fn is_closed(&self) -> bool {
        !self.home.is_here() || self.state.load(Ordering::Acquire) == CLOSED
    }

    /// From now on every call says that the port is closed. Nothing in a forked child.
    pub(in crate::net) fn close(&self) {
        if self.home.is_here() && self.state.swap(CLOSED, Ordering::AcqRel) != CLOSED {
            self.signal_all();
        }
    }
}

fn halves(features: Features) -> [u64; 2] {
    [features.0 as u64, (features.0 >> 64) as u64]
}
