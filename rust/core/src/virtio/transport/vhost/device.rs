//! The device that a driver sees: registers that are kept here, rings that a backend serves.

use super::registers::{PASSED, Registers};
use super::{Driver, Vhost, Vring};
use crate::locks::may_wait;
use crate::memory::Region;
use crate::notify::{Doorbell, EventFd, Kick};
use crate::qtest::Patience;
use crate::virtio::transport::{QueueAddresses, Transport};
use crate::virtio::{Features, Status};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

/// No queue is larger (section 2.6).
const LARGEST_QUEUE: u16 = 1 << 15;
/// Where a packed ring begins: at its first descriptor, in a lap whose wrap counter is 1.
const PACKED_START: u32 = 0x8000_8000;
/// Bit 30 of vhost's features: rings are enabled by a message, and there are protocol features.
const F_PROTOCOL_FEATURES: u64 = 1 << 30;
/// How often a thread that waits for its turn looks, and how often it asks whether to go on.
const LOOK: Duration = Duration::from_millis(1);
const SLICE: Duration = Duration::from_millis(100);

/// What a device is made of.
#[derive(Clone, Debug)]
pub struct VhostOptions {
    /// What is shared with the backend.
    pub region: Arc<Region>,
    /// The device's MAC address.
    pub mac: [u8; 6],
    /// The MTU that is asked for; without it the device says none.
    pub mtu: Option<u16>,
    /// Queue pairs.
    pub pairs: u16,
    /// What the backend signals for each queue, by its index; none where nobody waits.
    pub calls: Vec<Arc<EventFd>>,
    /// Signalled when the link goes up or down.
    pub config: Option<Arc<EventFd>>,
    /// How long a backend may take for what it is asked to do.
    pub time: Duration,
    /// Asked by whoever waits for a backend whether to go on.
    pub patience: Option<Patience>,
}

/// What the driver said. Locked for a moment only.
struct Told {
    status: Status,
    features: Features,
    /// The queues that were set up.
    rings: BTreeMap<u16, QueueAddresses>,
    /// The pairs that are served.
    active: u16,
    registers: Registers,
    /// What the backend of now, or the last one, offers.
    offered: u64,
    /// Whether a backend has ever served the device.
    served: bool,
}

/// A backend, and whether it was told all that the driver has said.
struct Serving {
    vhost: Box<dyn Vhost>,
    started: bool,
}

/// A virtio-net device whose rings a [`Vhost`] serves, while there is one.
///
/// Its link is up while there is. What the driver says is kept, and told to the next one.
pub struct VhostDevice {
    options: VhostOptions,
    told: Mutex<Told>,
    /// Held while a backend is told something, for no longer than [`VhostOptions::time`].
    backend: Mutex<Option<Serving>>,
    kicks: Vec<Arc<Kick>>,
    drivers: Mutex<BTreeMap<u16, Arc<dyn Driver>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VhostDevice {
    /// A device that this backend will serve, once the driver has set it up.
    pub fn new(backend: Box<dyn Vhost>, options: VhostOptions) -> Self {
        let VhostOptions { mac, mtu, pairs, .. } = options;
        let told = Told {
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
            told: Mutex::new(told),
            backend: Mutex::new(Some(Serving { vhost: backend, started: false })),
            drivers: Mutex::default(),
        }
    }

    /// Tells a queue's driver when its backend goes, and when the next comes.
    pub fn follow(&self, queue: u16, driver: Arc<dyn Driver>) {
        lock(&self.drivers).insert(queue, driver);
    }

    /// The features in force that are a backend's, as vhost numbers them.
    pub fn demanded(&self) -> u64 {
        let told = lock(&self.told);
        if told.status.contains(Status::DRIVER_OK) { (told.features & PASSED).0 as u64 } else { 0 }
    }

    /// Kicks that had nobody to go to.
    pub fn kicks_lost(&self) -> u64 {
        self.kicks.iter().map(|kick| kick.lost()).sum()
    }

    /// The backend is gone, and its last write to the rings with it.
    pub fn lost(&self) {
        let gone = lock(&self.backend).take();
        self.set_link(false);
        self.kicks.iter().for_each(|kick| kick.disconnect());
        drop(gone);
        let drivers: Vec<_> = lock(&self.drivers).values().cloned().collect();
        for driver in drivers {
            driver.stopped();
        }
        self.tell();
    }

    /// There is another backend, which has the features in force. It goes on where the last one ended,
    /// where the driver has set the device up.
    ///
    /// # Errors
    /// See [`Vhost`]; there is no backend then.
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
        self.tell();
        Ok(())
    }

    /// What the next backend offers, which is there.
    pub fn expect(&self, offered: u64) {
        lock(&self.told).offered = offered;
    }

    /// Whether a backend serves the rings.
    pub fn is_served(&self) -> bool {
        let told = lock(&self.told);
        told.registers.link && told.served && told.status.contains(Status::DRIVER_OK)
    }

    fn tell(&self) {
        if let Some(event) = &self.options.config {
            event.signal();
        }
    }
    fn set_link(&self, up: bool) {
        lock(&self.told).registers.link = up;
    }
    fn is_running(&self) -> bool {
        lock(&self.told).status.contains(Status::DRIVER_OK)
    }

    /// The backend, for somebody who has something to say to it: one at a time.
    fn turn(&self) -> Result<MutexGuard<'_, Option<Serving>>> {
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
                self.patience()?;
            }
        }
    }

    /// Says something to the backend, if there is one that is being used. What it cannot be told any
    /// more is told to the next.
    fn say(&self, what: impl FnOnce(&mut dyn Vhost) -> Result<()>) -> Result<()> {
        let mut place = self.turn()?;
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

    /// Tells a backend all that the driver has said (QEMU: `docs/interop/vhost-user.rst`, "Starting and
    /// stopping rings").
    fn start(&self, serving: &mut Serving) -> Result<()> {
        let backend = serving.vhost.as_mut();
        let (features, rings, active, mtu) = {
            let told = lock(&self.told);
            (told.features, told.rings.clone(), told.active, told.registers.mtu)
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
        // From here on it may look at the rings.
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
        lock(&self.told).served = true;
        // Last: some forget a kick of a ring that is not enabled.
        kicks.into_iter().for_each(|(index, kick)| self.connect(index, kick));
        Ok(())
    }

    /// From now on the queue's kicks go there; one goes at once.
    fn connect(&self, index: u16, kick: Arc<EventFd>) {
        if let Some(doorbell) = self.kicks.get(usize::from(index)) {
            doorbell.connect(kick);
        }
    }

    /// What a backend is told of the features in force.
    fn for_backend(&self, backend: &dyn Vhost, features: Features) -> u64 {
        let several = if self.options.pairs > 1 { Features::MQ.0 as u64 } else { 0 };
        ((features & (PASSED | Features::MTU)).0 as u64 | F_PROTOCOL_FEATURES | several)
            & backend.offered()
    }

    /// Sets one ring up, with eventfds that no other backend has.
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
                Error::Invalid(format!("queue {index} lies outside the memory, at {area}"))
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

    /// Where a backend goes on.
    fn position(&self, index: u16, ring: &QueueAddresses, features: Features) -> Result<u32> {
        let driver = lock(&self.drivers).get(&index).cloned();
        let place = driver.and_then(|driver| driver.starting());
        if features.contains(Features::RING_PACKED) {
            return Ok(place.map_or(PACKED_START, |at| u32::from(at) << 16 | u32::from(at)));
        }
        // Behind the flags of the used ring: how far the last backend has come.
        let region = &self.options.region;
        let mut used = [0; 2];
        let offset = region.offset_of(ring.device, 4).unwrap_or(region.size());
        region.read(offset.saturating_add(2), &mut used)?;
        Ok(u16::from_le_bytes(used).into())
    }

    /// Has all rings be left alone. An error only where it was interrupted.
    fn stop(&self) -> Result<()> {
        let mut place = self.turn()?;
        let rings: Vec<_> = lock(&self.told).rings.keys().copied().collect();
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
                // It was hung up on. A moment later it knows, and has let go of the memory.
                Err(error) => log::warn!("its rings may not have been stopped: {error}"),
                Ok(()) => {}
            }
            serving.started = false;
        }
        let mut told = lock(&self.told);
        told.active = 1;
        told.rings.clear();
        Ok(())
    }
}

impl Transport for VhostDevice {
    fn device_features(&self) -> Result<Features> {
        let told = lock(&self.told);
        Ok((Features(told.offered.into()) & PASSED) | told.registers.features())
    }
    fn set_driver_features(&self, features: Features) -> Result<()> {
        lock(&self.told).features = features;
        Ok(())
    }
    fn status(&self) -> Result<Status> {
        Ok(lock(&self.told).status)
    }
    fn set_status(&self, status: Status) -> Result<()> {
        if status.is_empty() {
            // First: a backend that comes meanwhile is told nothing.
            lock(&self.told).status = status;
            return self.stop();
        }
        let before = std::mem::replace(&mut lock(&self.told).status, status);
        if !status.contains(Status::DRIVER_OK) || before.contains(Status::DRIVER_OK) {
            return Ok(());
        }
        let started = self.turn().and_then(|mut place| match place.as_mut() {
            // It came meanwhile, and was told.
            Some(backend) if backend.started => Ok(()),
            Some(backend) => match self.start(backend) {
                Err(_) if backend.vhost.is_gone() && lock(&self.told).served => Ok(()),
                other => other,
            },
            None => Ok(()), // the next is told
        });
        if started.is_err() {
            lock(&self.told).status = before;
        }
        started
    }
    fn read_config(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        let bytes = lock(&self.told).registers.bytes();
        let found = offset.checked_add(out.len()).and_then(|end| bytes.get(offset..end));
        let found = found.ok_or_else(|| {
            Error::Device(format!(
                "{} bytes at {offset} of the configuration are wanted, which has {}",
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
            let mut told = lock(&self.told);
            let rings: Vec<_> = told.rings.keys().copied().collect();
            (std::mem::replace(&mut told.active, count), rings)
        };
        if !self.is_running() {
            return Ok(());
        }
        let (first, last) = (before.min(count), before.max(count));
        self.say(|backend| {
            rings.iter().filter(|&&ring| (first..last).contains(&(ring / 2))).try_for_each(
                |&ring| {
                    backend.enable_ring(ring, ring / 2 < count)?;
                    // What was published before may have been kicked for in vain.
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
    /// Told to the backend with all others, when the driver is ready; at once where it is already.
    fn setup_queue(&self, queue: u16, addresses: &QueueAddresses) -> Result<()> {
        let active = {
            let mut told = lock(&self.told);
            told.rings.insert(queue, *addresses);
            told.active
        };
        if !self.is_running() {
            return Ok(());
        }
        self.say(|backend| {
            let features = lock(&self.told).features;
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
        if lock(&self.told).rings.remove(&queue).is_none() {
            return Ok(());
        }
        let mut place = self.turn()?;
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
    /// It never is gone for good by itself: another backend may come.
    fn alive(&self) -> Result<()> {
        Ok(())
    }
    fn patience(&self) -> Result<()> {
        self.options.patience.map_or(Ok(()), |ask| ask())
    }
}

impl std::fmt::Debug for VhostDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VhostDevice").field("options", &self.options).finish_non_exhaustive()
    }
}
