//! `VhostDevice`: registers in this process, rings processed by a vhost backend.

use super::registers::{PASSED, Registers};
use super::{Driver, Vhost, Vring};
use crate::locks::may_wait;
use crate::memory::Region;
use crate::notify::{Doorbell, EventFd, Kick};
use crate::qtest::SignalCheck;
use crate::virtio::transport::{QueueAddresses, Transport};
use crate::virtio::{Features, Status};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// The largest queue size (section 2.6).
const LARGEST_QUEUE: u16 = 1 << 15;
/// The start position of a packed ring: the first descriptor with wrap counter 1, twice.
const PACKED_START: u32 = 0x8000_8000;
/// Bit 30 of vhost's features: messages enable rings, and there are protocol features.
const F_PROTOCOL_FEATURES: u64 = 1 << 30;
/// How often a thread tries to lock the backend, and how often it checks for signals meanwhile.
const LOOK: Duration = Duration::from_millis(1);
const SLICE: Duration = Duration::from_millis(100);

/// The properties of a [`VhostDevice`].
#[derive(Clone, Debug)]
pub struct VhostOptions {
    /// The memory shared with the backend.
    pub region: Arc<Region>,
    /// The device's MAC address.
    pub mac: [u8; 6],
    /// The MTU that the device reports, if any.
    pub mtu: Option<u16>,
    /// The number of queue pairs.
    pub pairs: u16,
    /// The eventfds that the backend signals, by queue; empty if the driver polls.
    pub calls: Vec<Arc<EventFd>>,
    /// Signalled when the link goes up or down.
    pub config: Option<Arc<EventFd>>,
    /// How long a backend may take for one operation.
    pub time: Duration,
    /// Called during waits for a backend.
    pub signals: Option<SignalCheck>,
}

/// The state that the driver has set. Only locked briefly.
struct Driven {
    status: Status,
    features: Features,
    /// The queues that were set up.
    rings: BTreeMap<u16, QueueAddresses>,
    /// The number of enabled pairs.
    active: u16,
    registers: Registers,
    /// The features that the current or last backend offers.
    offered: u64,
    /// Whether a backend has ever started.
    served: bool,
}

/// A backend, and whether it has the state that the driver has set.
struct Serving {
    vhost: Box<dyn Vhost>,
    started: bool,
}

/// A virtio-net device whose rings a [`Vhost`] backend processes.
///
/// Its link is up while there is a backend. A new backend gets the state that the driver has set.
pub struct VhostDevice {
    options: VhostOptions,
    driven: Mutex<Driven>,
    /// Locked during an operation of the backend, for at most [`VhostOptions::time`].
    backend: Mutex<Option<Serving>>,
    kicks: Vec<Arc<Kick>>,
    drivers: Mutex<BTreeMap<u16, Arc<dyn Driver>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VhostDevice {
    /// A device with this backend, which starts once the driver has set up the device.
    pub fn new(backend: Box<dyn Vhost>, options: VhostOptions) -> Self {
        let VhostOptions { mac, mtu, pairs, .. } = options;
        let driven = Driven {
            status: Status::empty(),
            features: Features::NONE,
            rings: BTreeMap::new(),
            active: 1,
            registers: Registers { mac, mtu, pairs, link: true },
            offered: backend.offered(),
            served: false,
        };
        Self {
            kicks: (0..2 * pairs).map(|_| Arc::default()).collect(),
            options,
            driven: Mutex::new(driven),
            backend: Mutex::new(Some(Serving { vhost: backend, started: false })),
            drivers: Mutex::default(),
        }
    }

    /// Registers the driver of a queue, which is called when backends stop and start.
    pub fn follow(&self, queue: u16, driver: Arc<dyn Driver>) {
        lock(&self.drivers).insert(queue, driver);
    }

    /// The negotiated features that a backend must offer.
    pub fn demanded(&self) -> u64 {
        let driven = lock(&self.driven);
        if driven.status.contains(Status::DRIVER_OK) {
            (driven.features & PASSED).0 as u64
        } else {
            0
        }
    }

    /// The number of kicks while there was no backend.
    pub fn kicks_lost(&self) -> u64 {
        self.kicks.iter().map(|kick| kick.lost()).sum()
    }

    /// Removes the backend, which is gone and does not access the rings any more.
    pub fn lost(&self) {
        let gone = lock(&self.backend).take();
        self.set_link(false);
        self.kicks.iter().for_each(|kick| kick.disconnect());
        drop(gone);
        let drivers: Vec<_> = lock(&self.drivers).values().cloned().collect();
        for driver in drivers {
            driver.stopped();
        }
        self.signal_config();
    }

    /// Sets a new backend, which offers the negotiated features. If the driver has set up the device, the
    /// backend starts where the last one stopped.
    ///
    /// # Errors
    /// See [`Vhost`]; the device has no backend then.
    pub fn returned(&self, vhost: Box<dyn Vhost>) -> Result<()> {
        let mut backend = Serving { vhost, started: false };
        let mut place = lock(&self.backend);
        self.expect(backend.vhost.offered());
        if self.is_running()
            && let Err(error) = self.start(&mut backend)
        {
            drop((backend, place));
            self.lost();
            return Err(error);
        }
        *place = Some(backend);
        drop(place);
        self.set_link(true);
        self.signal_config();
        Ok(())
    }

    /// Sets the features that the next backend offers.
    pub fn expect(&self, offered: u64) {
        lock(&self.driven).offered = offered;
    }

    /// Whether a backend processes the rings.
    pub fn is_served(&self) -> bool {
        let driven = lock(&self.driven);
        driven.registers.link && driven.served && driven.status.contains(Status::DRIVER_OK)
    }

    fn signal_config(&self) {
        if let Some(event) = &self.options.config {
            event.signal();
        }
    }
    fn set_link(&self, up: bool) {
        lock(&self.driven).registers.link = up;
    }
    fn is_running(&self) -> bool {
        lock(&self.driven).status.contains(Status::DRIVER_OK)
    }

    /// Locks the backend.
    fn lock_backend(&self) -> Result<MutexGuard<'_, Option<Serving>>> {
        may_wait("the vhost backend");
        let mut asked = Instant::now();
        loop {
            match self.backend.try_lock() {
                Ok(place) => return Ok(place),
                Err(TryLockError::Poisoned(poisoned)) => return Ok(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => std::thread::sleep(LOOK),
            }
            if asked.elapsed() >= SLICE {
                asked = Instant::now();
                self.check_signals()?;
            }
        }
    }

    /// Calls the backend if it has started. After an error, the next backend gets the new state.
    fn with_backend(&self, what: impl FnOnce(&mut dyn Vhost) -> Result<()>) -> Result<()> {
        let mut place = self.lock_backend()?;
        let Some(backend) = place.as_mut().filter(|backend| backend.started) else {
            return Ok(());
        };
        backend.vhost.begin(self.options.time);
        match what(backend.vhost.as_mut()) {
            Err(error) if !error.is_interruption() => {
                log::warn!("{error}");
                Ok(())
            }
            other => other,
        }
    }

    /// Starts a backend with the state that the driver has set (QEMU: `docs/interop/vhost-user.rst`,
    /// "Starting and stopping rings").
    fn start(&self, serving: &mut Serving) -> Result<()> {
        let backend = serving.vhost.as_mut();
        let (features, rings, active, mtu) = {
            let driven = lock(&self.driven);
            (driven.features, driven.rings.clone(), driven.active, driven.registers.mtu)
        };
        backend.begin(self.options.time);
        let mut status = Status::ACKNOWLEDGE | Status::DRIVER;
        backend.set_status(status)?;
        backend.set_features(self.for_backend(backend, features))?;
        status |= Status::FEATURES_OK;
        if !backend.set_status(status)?.contains(Status::FEATURES_OK) {
            return Err(Error::Device(format!(
                "the vhost backend refused the features {features} (FEATURES_OK did not stay set)"
            )));
        }
        if let Some(mtu) = mtu {
            backend.set_mtu(mtu)?;
        }
        backend.set_memory(&self.options.region)?;
        // From here on it may access the rings.
        serving.started = true;
        let mut kicks = Vec::with_capacity(rings.len());
        for (&index, addresses) in &rings {
            let base = self.position(index, addresses, features)?;
            kicks.push((index, self.set_ring(backend, index, addresses, base)?));
        }
        for &index in rings.keys() {
            backend.enable_ring(index, index / 2 < active)?;
        }
        backend.set_status(status | Status::DRIVER_OK)?;
        lock(&self.driven).served = true;
        // Last, as some backends ignore a kick for a ring that is not enabled.
        kicks.into_iter().for_each(|(index, kick)| self.connect(index, kick));
        Ok(())
    }

    /// Connects the queue's kicks to an eventfd and sends one.
    fn connect(&self, index: u16, kick: Arc<EventFd>) {
        if let Some(doorbell) = self.kicks.get(usize::from(index)) {
            doorbell.connect(kick);
        }
    }

    /// The negotiated features in vhost's form.
    fn for_backend(&self, backend: &dyn Vhost, features: Features) -> u64 {
        let several = if self.options.pairs > 1 { Features::MQ.0 as u64 } else { 0 };
        ((features & (PASSED | Features::MTU)).0 as u64 | F_PROTOCOL_FEATURES | several)
            & backend.offered()
    }

    /// Sets up one ring, with eventfds that no other backend has.
    fn set_ring(
        &self,
        backend: &mut dyn Vhost,
        index: u16,
        addresses: &QueueAddresses,
        base: u32,
    ) -> Result<Arc<EventFd>> {
        let kick = Arc::new(EventFd::new()?);
        let region = &self.options.region;
        let here = |area: crate::memory::Iova| {
            let offset = region.offset_of(area, 1).ok_or_else(|| {
                Error::Invalid(format!("queue {index} is outside of the memory, at {area}"))
            })?;
            Ok::<_, Error>((region.address() + offset) as u64)
        };
        let ring = Vring {
            index,
            addresses: *addresses,
            here: [here(addresses.descriptors)?, here(addresses.driver)?, here(addresses.device)?],
            base,
            kick: kick.borrow()?,
            call: self.options.calls.get(usize::from(index)).and_then(|call| call.hold()),
        };
        backend.set_ring(&ring)?;
        Ok(kick)
    }

    /// The start position of a backend.
    fn position(&self, index: u16, ring: &QueueAddresses, features: Features) -> Result<u32> {
        let driver = lock(&self.drivers).get(&index).cloned();
        let place = driver.and_then(|driver| driver.starting());
        if features.contains(Features::RING_PACKED) {
            return Ok(place.map_or(PACKED_START, |at| u32::from(at) << 16 | u32::from(at)));
        }
        // The used index, which follows the flags of the used ring.
        let region = &self.options.region;
        let mut used = [0; 2];
        let offset = region.offset_of(ring.device, 4).unwrap_or(region.size());
        region.read(offset.saturating_add(2), &mut used)?;
        Ok(u16::from_le_bytes(used).into())
    }

    /// Stops all rings. Only fails if interrupted.
    fn stop(&self) -> Result<()> {
        let mut place = self.lock_backend()?;
        let rings: Vec<_> = lock(&self.driven).rings.keys().copied().collect();
        self.kicks.iter().for_each(|kick| kick.disconnect());
        if let Some(serving) = place.as_mut().filter(|backend| backend.started) {
            let backend = serving.vhost.as_mut();
            backend.begin(self.options.time);
            let mut stop = || {
                for &index in &rings {
                    backend.stop_ring(index)?;
                }
                backend.reset()
            };
            match stop() {
                Err(error) if error.is_interruption() => return Err(error),
                Err(error) if backend.is_gone() => log::debug!("not stopped: {error}"),
                // The connection is closed, so the backend will unmap the memory soon.
                Err(error) => {
                    log::warn!("the vhost backend may not have stopped its rings: {error}")
                }
                Ok(()) => {}
            }
            serving.started = false;
        }
        let mut driven = lock(&self.driven);
        driven.active = 1;
        driven.rings.clear();
        Ok(())
    }
}

impl Transport for VhostDevice {
    fn device_features(&self) -> Result<Features> {
        let driven = lock(&self.driven);
        Ok((Features(driven.offered.into()) & PASSED) | driven.registers.features())
    }
    fn set_driver_features(&self, features: Features) -> Result<()> {
        lock(&self.driven).features = features;
        Ok(())
    }
    fn status(&self) -> Result<Status> {
        Ok(lock(&self.driven).status)
    }
    fn set_status(&self, status: Status) -> Result<()> {
        if status.is_empty() {
            // First, so that a backend that connects meanwhile does not start.
            lock(&self.driven).status = status;
            return self.stop();
        }
        let before = std::mem::replace(&mut lock(&self.driven).status, status);
        if !status.contains(Status::DRIVER_OK) || before.contains(Status::DRIVER_OK) {
            return Ok(());
        }
        let started = self.lock_backend().and_then(|mut place| match place.as_mut() {
            // Connected and started meanwhile.
            Some(backend) if backend.started => Ok(()),
            Some(backend) => match self.start(backend) {
                Err(_) if backend.vhost.is_gone() && lock(&self.driven).served => Ok(()),
                other => other,
            },
            None => Ok(()), // the next one starts
        });
        if started.is_err() {
            lock(&self.driven).status = before;
        }
        started
    }
    fn read_config(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        let bytes = lock(&self.driven).registers.bytes();
        let found = offset.checked_add(out.len()).and_then(|end| bytes.get(offset..end));
        let found = found.ok_or_else(|| {
            Error::Device(format!(
                "cannot read {} bytes at {offset} of the configuration, which has {}",
                out.len(),
                bytes.len()
            ))
        })?;
        out.copy_from_slice(found);
        Ok(())
    }
    fn write_config(&self, _offset: usize, _data: &[u8]) -> Result<()> {
        Err(Error::Refused("a vhost device's configuration cannot be written to".to_owned()))
    }
    fn pairs(&self) -> Option<u16> {
        Some(self.options.pairs)
    }
    fn enable_pairs(&self, count: u16) -> Result<()> {
        let (before, rings) = {
            let mut driven = lock(&self.driven);
            let rings: Vec<_> = driven.rings.keys().copied().collect();
            (std::mem::replace(&mut driven.active, count), rings)
        };
        if !self.is_running() {
            return Ok(());
        }
        let (first, last) = (before.min(count), before.max(count));
        self.with_backend(|backend| {
            rings.iter().filter(|&&ring| (first..last).contains(&(ring / 2))).try_for_each(
                |&ring| {
                    backend.enable_ring(ring, ring / 2 < count)?;
                    // The backend may have ignored earlier kicks.
                    self.kicks.get(usize::from(ring)).into_iter().for_each(|kick| kick.ring());
                    Ok(())
                },
            )
        })
    }
    fn queue_count(&self) -> Result<u16> {
        Ok(2 * self.options.pairs)
    }
    fn queue_max_size(&self, queue: u16) -> Result<u16> {
        Ok(if queue < 2 * self.options.pairs { LARGEST_QUEUE } else { 0 })
    }
    /// Applied when the driver sets DRIVER_OK; at once if it is already set.
    fn setup_queue(&self, queue: u16, addresses: &QueueAddresses) -> Result<()> {
        let active = {
            let mut driven = lock(&self.driven);
            driven.rings.insert(queue, *addresses);
            driven.active
        };
        if !self.is_running() {
            return Ok(());
        }
        self.with_backend(|backend| {
            let features = lock(&self.driven).features;
            let base = if features.contains(Features::RING_PACKED) { PACKED_START } else { 0 };
            let kick = self.set_ring(backend, queue, addresses, base)?;
            backend.enable_ring(queue, queue / 2 < active)?;
            self.connect(queue, kick);
            Ok(())
        })
    }
    fn reset_queue(&self, queue: u16) -> Result<()> {
        if let Some(kick) = self.kicks.get(usize::from(queue)) {
            kick.disconnect();
        }
        if lock(&self.driven).rings.remove(&queue).is_none() {
            return Ok(());
        }
        let mut place = self.lock_backend()?;
        let Some(backend) = place.as_mut().filter(|backend| backend.started) else {
            return Ok(());
        };
        backend.vhost.begin(self.options.time);
        match backend.vhost.stop_ring(queue) {
            Err(error) if !error.is_interruption() => {
                log::warn!("ring {queue} may not have been stopped: {error}");
                Ok(())
            }
            other => other,
        }
    }
    fn doorbell(&self, queue: u16) -> Result<Doorbell> {
        let kick = self.kicks.get(usize::from(queue)).cloned().ok_or_else(|| {
            Error::Device(format!("the device has {} queues, no queue {queue}", self.kicks.len()))
        })?;
        Ok(Doorbell::Kick(kick, Box::new(Doorbell::Silent)))
    }
    fn set_config_vector(&self, _vector: u16) -> Result<()> {
        Ok(())
    }
    fn take_isr(&self) -> Result<u8> {
        Ok(0)
    }
    /// Always succeeds: another backend may connect.
    fn alive(&self) -> Result<()> {
        Ok(())
    }
    fn check_signals(&self) -> Result<()> {
        self.options.signals.map_or(Ok(()), |ask| ask())
    }
}

impl std::fmt::Debug for VhostDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VhostDevice").field("options", &self.options).finish_non_exhaustive()
    }
}
