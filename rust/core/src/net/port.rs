//! A started device.

use super::burst::Burst;
use super::config::{Mac, NetConfig, read_link};
use super::frame::{FrameBuffer, FrameSource};
use super::intx::IntxDispatcher;
use super::queue::{AnyRing, Common, RxQueue, SendStop, TxQueue};
use super::slot::{Claim, Slot};
use super::stats::{LiveQueueStats, PortStats};
use crate::memory::{Holder, Pool};
use crate::notify::{Doorbell, EventFd};
use crate::process::Home;
use crate::virtio::features::{Outcome, Wishes, negotiate};
use crate::virtio::ring::{Follower, RingOptions};
use crate::virtio::transport::{NO_VECTOR, QueueAddresses, Transport};
use crate::virtio::{Features, Status};
use crate::{Error, Result};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Queues are no larger than this unless asked for.
const DEFAULT_QUEUE_SIZE: u16 = 1024;
/// Frames of a `send` are copied in groups of this many between two doorbells.
const STAGE: usize = 256;
/// Without interrupts a wait looks at the ring this often.
const POLL_INTERVAL: Duration = Duration::from_micros(50);
/// A wait without interrupts returns this often, so that the caller can look at its signals.
const POLL_SLICE: Duration = Duration::from_millis(50);

/// The eventfds that interrupts signal.
#[derive(Clone, Debug)]
pub struct Events {
    /// Frames were received.
    pub rx: Arc<EventFd>,
    /// Transmitted frames were finished.
    pub tx: Arc<EventFd>,
    /// The device configuration changed.
    pub config: Arc<EventFd>,
}

/// The layout of the queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingFormat {
    /// Section 2.7.
    Split,
    /// Section 2.8.
    Packed,
}

/// How a port shall be set up.
#[derive(Clone, Debug, Default)]
pub struct PortOptions {
    /// Entries of each queue; 0: the device's own size, at most 1,024.
    pub queue_size: u16,
    /// Features to insist on, prefer and refuse.
    pub wishes: Wishes,
    /// What interrupts signal; none: polling.
    pub events: Option<Events>,
    /// MSI-X table entries of (receive, transmit, configuration).
    pub vectors: Option<(u16, u16, u16)>,
    /// The eventfd of the INTx line, where that is used instead of MSI-X.
    pub intx: Option<Arc<EventFd>>,
    /// How to kick the receive and the transmit queue, instead of through the transport.
    pub doorbells: Option<[Doorbell; 2]>,
    /// The MAC address of a device that has none of its own.
    pub mac: Mac,
}

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

const RUNNING: u8 = 0;
const CLOSED: u8 = 1;
const BROKEN: u8 = 2;

/// A virtio-net device, started, with one queue pair.
///
/// All methods may be called from any thread. One lock for each queue; a wait holds none.
pub struct Port {
    home: Home,
    transport: Arc<dyn Transport>,
    pool: Arc<Pool>,
    rx: Slot<RxQueue>,
    tx: Arc<Slot<TxQueue>>,
    rx_stats: Arc<LiveQueueStats>,
    tx_stats: Arc<LiveQueueStats>,
    queues: [QueueAddresses; 2],
    followers: [Option<Arc<Follower>>; 2],
    config: NetConfig,
    link: AtomicBool,
    accepted: Features,
    outcomes: Vec<Outcome>,
    events: Option<Events>,
    intx: Mutex<Option<IntxDispatcher>>,
    /// Whether interrupts stay enabled between calls, because somebody waits on the eventfd.
    armed: AtomicBool,
    state: AtomicU8,
    broken: OnceLock<String>,
}

impl Port {
    /// Brings the device up (section 3.1.1) and posts receive buffers.
    ///
    /// # Errors
    /// [`Error::Invalid`] for options that do not fit the device, [`Error::Device`] when the
    /// device refuses or misbehaves, [`Error::MemoryUnavailable`], [`Error::QemuDied`].
    pub fn start(
        transport: Arc<dyn Transport>,
        pool: Arc<Pool>,
        options: PortOptions,
    ) -> Result<Self> {
        transport.set_status(Status::empty())?;
        let started = Self::bring_up(transport.clone(), pool, options);
        if started.is_err() {
            // Best effort: the caller gets the first error.
            let _ = transport.set_status(Status::FAILED);
            let _ = transport.set_status(Status::empty());
        }
        started
    }

    fn bring_up(
        transport: Arc<dyn Transport>,
        pool: Arc<Pool>,
        options: PortOptions,
    ) -> Result<Self> {
        let mut status = Status::ACKNOWLEDGE | Status::DRIVER;
        transport.set_status(status)?;
        let offered = transport.device_features()?;
        let mut wishes = options.wishes;
        if needs_merging(transport.as_ref(), offered - wishes.refuse, &pool)? {
            wishes.prefer |= Features::MRG_RXBUF;
        }
        let (accepted, outcomes) = negotiate(offered, &wishes)?;
        transport.set_driver_features(accepted)?;
        status |= Status::FEATURES_OK;
        transport.set_status(status)?;
        if !transport.status()?.contains(Status::FEATURES_OK) {
            return Err(Error::Device(format!(
                "the device refused the features {accepted} (FEATURES_OK did not stay set)"
            )));
        }
        let config = NetConfig::read(transport.as_ref(), accepted, options.mac)?;
        let merge = accepted.contains(Features::MRG_RXBUF);
        check_mtu(config.mtu, merge, &pool)?;
        let (rx_vector, tx_vector, config_vector) =
            options.vectors.unwrap_or((NO_VECTOR, NO_VECTOR, NO_VECTOR));
        if options.vectors.is_some() {
            transport.set_config_vector(config_vector)?;
        }
        let (rx_stats, tx_stats): (Arc<LiveQueueStats>, Arc<LiveQueueStats>) = Default::default();
        let queue = |index: u16, vector: u16, stats: &Arc<LiveQueueStats>| {
            let doorbell = match &options.doorbells {
                Some(doorbells) => doorbells[usize::from(index)].clone(),
                None => transport.doorbell(index)?,
            };
            let most = transport.queue_max_size(index)?;
            let size = queue_size(index, options.queue_size, most)?;
            let common = make_queue(&pool, accepted, size, index, doorbell, stats)?;
            transport.setup_queue(index, &common.addresses(vector))?;
            Ok::<_, Error>(common)
        };
        let mut rx = RxQueue::new(queue(0, rx_vector, &rx_stats)?, merge);
        let mut tx = TxQueue::new(queue(1, tx_vector, &tx_stats)?);
        rx.common.disable_interrupts();
        tx.common.disable_interrupts();
        let intx = match (&options.intx, &options.events) {
            (Some(line), Some(events)) => {
                Some(IntxDispatcher::start(line.clone(), transport.clone(), events.clone())?)
            }
            _ => None,
        };
        transport.set_status(status | Status::DRIVER_OK)?;
        rx.refill();
        transport.alive()?;
        let followers = [rx.common.follower(), tx.common.follower()];
        let queues = [rx.common.addresses(rx_vector), tx.common.addresses(tx_vector)];
        let tx = Arc::new(Slot::new(tx, "transmit"));
        let holder: Arc<dyn Holder> = tx.clone();
        pool.add_holder(Arc::downgrade(&holder));
        Ok(Self {
            home: Home::here(),
            transport,
            pool,
            rx: Slot::new(rx, "receive"),
            tx,
            rx_stats,
            tx_stats,
            queues,
            followers,
            config,
            link: AtomicBool::new(config.link),
            accepted,
            outcomes,
            events: options.events,
            intx: Mutex::new(intx),
            armed: AtomicBool::new(false),
            state: AtomicU8::new(RUNNING),
            broken: OnceLock::new(),
        })
    }

    /// The device's configuration as it was at the start.
    pub fn config(&self) -> &NetConfig {
        &self.config
    }
    /// What was negotiated.
    pub fn accepted(&self) -> Features {
        self.accepted
    }
    /// What became of each feature, and why.
    pub fn outcomes(&self) -> &[Outcome] {
        &self.outcomes
    }
    /// The pool that received frames lie in.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }
    /// What interrupts signal.
    pub fn events(&self) -> Option<&Events> {
        self.events.as_ref()
    }
    /// Where the receive and the transmit queue lie, and their sizes.
    pub fn queues(&self) -> &[QueueAddresses; 2] {
        &self.queues
    }
    /// What follows the receive and the transmit queue where they are packed rings.
    pub fn followers(&self) -> &[Option<Arc<Follower>>; 2] {
        &self.followers
    }
    /// The layout of the queues.
    pub fn ring_format(&self) -> RingFormat {
        if self.accepted.contains(Features::RING_PACKED) {
            RingFormat::Packed
        } else {
            RingFormat::Split
        }
    }
    /// Whether the link was up when last asked.
    pub fn link(&self) -> bool {
        self.link.load(Ordering::Relaxed)
    }
    /// Asks the device whether the link is up.
    ///
    /// # Errors
    /// As for [`Self::recv`].
    pub fn refresh_link(&self) -> Result<bool> {
        self.check()?;
        let link = read_link(self.transport.as_ref(), self.accepted)?;
        self.link.store(link, Ordering::Relaxed);
        Ok(link)
    }
    /// The counters.
    pub fn stats(&self) -> PortStats {
        PortStats { rx: self.rx_stats.snapshot(), tx: self.tx_stats.snapshot() }
    }

    /// An error unless the port runs, and in the process that opened it.
    #[inline]
    fn check(&self) -> Result<()> {
        self.home.check("the port")?;
        match self.state.load(Ordering::Acquire) {
            RUNNING => Ok(()),
            state => Err(self.why(state)),
        }
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
    fn note(&self, error: Error) -> Error {
        if let Error::Device(rule) = &error {
            log::error!("the device broke a rule: {rule}");
            let _ = self.broken.set(rule.clone());
            let _ =
                self.state.compare_exchange(RUNNING, BROKEN, Ordering::AcqRel, Ordering::Acquire);
            self.signal_all();
        }
        error
    }

    fn signal_all(&self) {
        if let Some(events) = &self.events {
            events.rx.signal();
            events.tx.signal();
            events.config.signal();
        }
    }

    /// Appends up to `max` received frames to the burst; 0 when there is none now.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::QemuDied`], [`Error::Device`] when the device broke a rule
    /// (now or before).
    pub fn recv(&self, max: usize, burst: &mut Burst) -> Result<usize> {
        self.check()?;
        let mut rx = self.rx.lock()?;
        let received = rx.recv(max, burst).map_err(|error| self.note(error))?;
        if received < max
            && self.armed.load(Ordering::Relaxed)
            && let Some(events) = &self.events
        {
            // The ring was empty: from now on the eventfd says when it no longer is.
            if events.rx.drain() > 0 {
                self.rx_stats.interrupts.add_shared(1);
            }
            if rx.enable_interrupts() || self.state.load(Ordering::Acquire) != RUNNING {
                events.rx.signal();
            }
        }
        if received == 0 {
            drop(rx);
            self.transport.alive()?;
        }
        Ok(received)
    }

    /// Waits until [`Self::recv`] may find a frame.
    ///
    /// # Errors
    /// As for [`Self::recv`].
    pub fn wait(&self, timeout: Option<Duration>) -> Result<Wake> {
        self.check()?;
        let Some(events) = &self.events else { return self.wait_polling(timeout) };
        if self.rx.lock()?.enable_interrupts() {
            return Ok(Wake::Ready);
        }
        let woken = match events.rx.wait(timeout) {
            Ok(woken) => woken,
            Err(Error::Os { errno, .. }) if errno == rustix::io::Errno::INTR.raw_os_error() => {
                return Ok(Wake::Signal);
            }
            Err(error) => return Err(error),
        };
        self.check()?;
        self.transport.alive()?;
        if !woken {
            return Ok(Wake::Timeout);
        }
        self.rx_stats.interrupts.add_shared(1);
        if !self.armed.load(Ordering::Relaxed) {
            events.rx.drain();
            self.rx.lock()?.common.disable_interrupts();
            // A stop or a death between check and drain must not be lost.
            self.check()?;
            self.transport.alive()?;
        }
        Ok(Wake::Ready)
    }

    fn wait_polling(&self, timeout: Option<Duration>) -> Result<Wake> {
        let start = Instant::now();
        loop {
            if self.rx.lock()?.has_used() {
                return Ok(Wake::Ready);
            }
            self.check()?;
            self.transport.alive()?;
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

    /// Keeps interrupts enabled from now on, so that the receive eventfd is readable
    /// whenever [`Self::recv`] would find frames.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the port has no interrupts, [`Error::Closed`] in a forked child.
    pub fn arm(&self) -> Result<&Arc<EventFd>> {
        self.home.check("the port")?;
        let Some(events) = &self.events else {
            return Err(Error::Invalid(
                "the port was opened without interrupts (interrupts=\"none\"), so there is no descriptor to wait on"
                    .to_owned(),
            ));
        };
        if !self.armed.swap(true, Ordering::Relaxed) && self.rx.lock()?.enable_interrupts() {
            events.rx.signal();
        }
        Ok(&events.rx)
    }

    /// Queues a burst's frames in order, as many as fit; these leave the burst. Nothing is
    /// copied but frames of which a view is alive, or whose memory is not this port's.
    ///
    /// # Errors
    /// As for [`Self::recv`].
    pub fn send_burst(&self, burst: &mut Burst) -> Result<usize> {
        self.check()?;
        if burst.is_empty() {
            return Ok(0);
        }
        self.transport.alive()?;
        if !Arc::ptr_eq(burst.pool(), &self.pool) {
            return self.send_foreign(burst);
        }
        if self.pool.any_exported() && !self.replace_exported(burst) {
            return Ok(0);
        }
        let mut tx = self.tx.lock()?;
        let sent = tx.send(burst.ids(), burst.lengths()).map_err(|error| self.note(error))?;
        drop(tx);
        burst.moved(sent);
        Ok(sent)
    }

    /// Exchanges frames of which a view is alive for copies; false when there is no buffer for one.
    #[cold]
    fn replace_exported(&self, burst: &mut Burst) -> bool {
        let mut fresh = Vec::new();
        for index in 0..burst.len() {
            let id = burst.ids()[index];
            if !self.pool.is_exported(id) {
                continue;
            }
            let Some((from, length)) = burst.frame(index) else { continue };
            let copy = if length > self.pool.capacity() {
                self.pool.take_jumbo()
            } else {
                self.pool.take(&mut fresh, 1);
                fresh.pop()
            };
            let Some(copy) = copy else {
                self.tx_stats.no_buffer.add_shared(1);
                return false;
            };
            // SAFETY: both buffers are ours, differ, and hold `length` bytes.
            unsafe { std::ptr::copy_nonoverlapping(from, self.pool.data_ptr(copy), length) };
            burst.ids_mut()[index] = copy;
            self.pool.give(&[id]);
            self.tx_stats.copied.add_shared(1);
        }
        true
    }

    /// Sends copies of frames that lie in another memory.
    #[cold]
    fn send_foreign(&self, burst: &mut Burst) -> Result<usize> {
        let mut frames = Vec::with_capacity(burst.len());
        for index in 0..burst.len() {
            frames.extend(burst.copy_out(index));
        }
        let (sent, stop) = self.send(&mut frames.as_slice())?;
        burst.clear_front(sent);
        self.tx_stats.copied.add_shared(sent as u64);
        match stop {
            Some(SendStop::BadFrame(why)) => Err(Error::Invalid(why)),
            _ => Ok(sent),
        }
    }

    /// Copies frames into buffers and queues them, in order, until there are no more or one
    /// cannot be taken. Returns how many were queued, and why it stopped early. No lock is held
    /// while `frames` is asked.
    ///
    /// # Errors
    /// As for [`Self::recv`].
    pub fn send(&self, frames: &mut impl FrameSource) -> Result<(usize, Option<SendStop>)> {
        self.check()?;
        self.transport.alive()?;
        let mut queued = 0;
        let mut buffers = Vec::with_capacity(STAGE);
        while frames.more() {
            let room = self.tx.lock()?.room().map_err(|error| self.note(error))?.min(STAGE);
            let got = self.pool.take(&mut buffers, room);
            let mut staged = Burst::new(self.pool.clone());
            let mut stop = None;
            // Buffers are used from the front; whatever is left, such as for long frames, which
            // took jumbo buffers, goes back to the pool.
            let mut used = 0;
            while staged.len() < got && frames.more() {
                let mut buffer = FrameBuffer::new(&self.pool, buffers[used]);
                match frames.next(&mut buffer) {
                    Ok(length) => {
                        let id = buffer.finish();
                        used += usize::from(id == buffers[used]);
                        staged.push(id, length.min(self.pool.capacity_of(id)) as u32);
                    }
                    Err(_) if buffer.starved() => {
                        self.tx_stats.no_buffer.add_shared(1);
                        stop = Some(SendStop::NoBuffer);
                        break;
                    }
                    Err(why) => {
                        self.tx_stats.bad_length.add_shared(1);
                        stop = Some(SendStop::BadFrame(why));
                        break;
                    }
                }
            }
            self.pool.give(&buffers[used..]);
            buffers.clear();
            if !staged.is_empty() {
                let mut tx = self.tx.lock()?;
                let sent =
                    tx.send(staged.ids(), staged.lengths()).map_err(|error| self.note(error))?;
                drop(tx);
                let all = sent == staged.len();
                staged.moved(sent);
                queued += sent;
                if !all {
                    return Ok((queued, Some(SendStop::RingFull)));
                }
            }
            if stop.is_some() {
                return Ok((queued, stop));
            }
            if room == 0 {
                self.tx_stats.ring_full.add_shared(1);
                return Ok((queued, Some(SendStop::RingFull)));
            }
            if got == 0 {
                self.tx_stats.no_buffer.add_shared(1);
                return Ok((queued, Some(SendStop::NoBuffer)));
            }
        }
        Ok((queued, None))
    }

    /// Takes back the buffers of transmitted frames that the device has finished.
    ///
    /// # Errors
    /// As for [`Self::recv`].
    pub fn reclaim(&self) -> Result<()> {
        self.check()?;
        self.tx.lock()?.reclaim().map_err(|error| self.note(error))
    }

    /// Takes the receive queue for a loop; others get [`Error::Busy`] until the claim ends.
    ///
    /// # Errors
    /// [`Error::Busy`], and as for [`Self::recv`].
    pub(crate) fn claim_rx(&self) -> Result<Claim<'_, RxQueue>> {
        self.check()?;
        self.rx.claim()
    }
    /// The same for the transmit queue.
    pub(crate) fn claim_tx(&self) -> Result<Claim<'_, TxQueue>> {
        self.check()?;
        self.tx.claim()
    }
    /// What a loop over bursts looks at now and then: an error unless the port runs.
    pub(crate) fn running(&self) -> Result<()> {
        self.check()?;
        self.transport.alive()
    }
    /// Passes an error of a claimed queue on, after marking the port broken where it is one
    /// of the device.
    pub(crate) fn fault(&self, error: Error) -> Error {
        self.note(error)
    }

    /// Whether the port was stopped, or this is a forked child of the process that opened it.
    pub fn is_closed(&self) -> bool {
        !self.home.is_here() || self.state.load(Ordering::Acquire) == CLOSED
    }

    /// Resets the device and takes every buffer back. Waiting calls return [`Error::Closed`].
    /// A second call does nothing, nor does one in a forked child.
    pub fn stop(&self) {
        if !self.home.is_here() || self.state.swap(CLOSED, Ordering::AcqRel) == CLOSED {
            return;
        }
        self.signal_all();
        if let Err(error) = self.transport.set_status(Status::empty()) {
            log::debug!("the device was not reset at the end: {error}");
        }
        drop(self.intx.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.rx.wait_for_it().reclaim_all();
        let mut tx = self.tx.wait_for_it();
        // Count what the device finished before the reset, then take back the rest.
        let _ = tx.reclaim();
        tx.reclaim_all();
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.stop();
    }
}

impl std::fmt::Debug for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Port")
            .field("config", &self.config)
            .field("accepted", &self.accepted)
            .finish_non_exhaustive()
    }
}

/// The longest frame of an MTU: with an Ethernet header and a VLAN tag.
fn longest_frame(mtu: u16) -> usize {
    usize::from(mtu) + 18
}

/// Whether the MTU that is offered makes frames that fit no common buffer but a jumbo one.
fn needs_merging(transport: &dyn Transport, offered: Features, pool: &Pool) -> Result<bool> {
    // Looking before the features are agreed on is allowed (section 3.1.1, step 4).
    let config = NetConfig::read(transport, offered & Features::MTU, Mac::default())?;
    let frame = longest_frame(config.mtu);
    Ok(frame > pool.capacity() && frame <= pool.jumbo_capacity())
}

/// Frames of the MTU must fit: a buffer, or where they are merged a jumbo buffer.
fn check_mtu(mtu: u16, merge: bool, pool: &Pool) -> Result<()> {
    let frame = longest_frame(mtu);
    let room = if merge { pool.largest_frame() } else { pool.capacity() };
    if frame <= room {
        return Ok(());
    }
    let why = match (merge, pool.jumbo_count()) {
        (_, 0) => "the memory has no jumbo buffers",
        (true, _) => "a jumbo buffer no more than that",
        (false, _) => "MRG_RXBUF is not in force, so frames are not merged in jumbo buffers",
    };
    Err(Error::Invalid(format!(
        "the device's MTU of {mtu} makes frames of up to {frame} bytes, but a buffer holds {room} \
         and {why}; make the memory with a buffer_size of at least {frame}"
    )))
}

/// How many entries a queue shall have: what is wanted, or what the device has.
fn queue_size(index: u16, wanted: u16, most: u16) -> Result<u16> {
    if most == 0 {
        return Err(Error::Device(format!("the device has no queue {index}")));
    }
    let size = if wanted == 0 { most.min(DEFAULT_QUEUE_SIZE) } else { wanted };
    if size > most {
        return Err(Error::Invalid(format!(
            "queue {index} can have at most {most} entries, {size} were asked for"
        )));
    }
    if !size.is_power_of_two() {
        return Err(Error::Invalid(format!("a queue size is a power of two, not {size}")));
    }
    Ok(size)
}

fn make_queue(
    pool: &Arc<Pool>,
    accepted: Features,
    size: u16,
    index: u16,
    doorbell: Doorbell,
    stats: &Arc<LiveQueueStats>,
) -> Result<Common> {
    let options = RingOptions {
        size,
        event_idx: accepted.contains(Features::EVENT_IDX),
        indirect: accepted.contains(Features::INDIRECT_DESC),
        in_order: accepted.contains(Features::IN_ORDER),
    };
    let packed = accepted.contains(Features::RING_PACKED);
    let ring = AnyRing::new(packed, pool.region(), &options)?;
    Ok(Common::new(index, ring, pool.clone(), doorbell, stats.clone()))
}
