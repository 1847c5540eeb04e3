//! A receive and a transmit queue, and the data path through them.

use crate::memory::{Demand, Holder};
use crate::net::device::Device;
use crate::net::interrupts::PairEvents;
use crate::net::packet::burst::Burst;
use crate::net::packet::frame::{FrameBuffer, FrameSource};
use crate::net::packet::header;
use crate::net::packet::header::copy_header;
use crate::net::queue::claim::{Claim, Locked, Reclaim, Slot};
use crate::net::queue::outage::Outage;
use crate::net::queue::waiting::Waiting;
use crate::net::queue::{AnyRing, RxQueue, SendStop, TxQueue};
use crate::net::stats::{ExtendedStats, LivePairStats, PortStats};
use crate::virtio::Features;
use crate::virtio::transport::QueueAddresses;
use crate::{Error, Result};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// `send` copies this many frames between two doorbells.
const STAGE: usize = 256;

/// How long a queue may stay in use while its backend is lost, before QEMU is told.
const LOSS: Duration = Duration::from_millis(500);

/// Whether a pair moves frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(in crate::net) enum Mode {
    /// It does.
    Active = 0,
    /// The device uses fewer pairs than there are. Frames already received remain readable.
    Unused = 1,
    /// Its queues were reset.
    Stopped = 2,
    /// They are being reset, or that failed midway: nothing moves, and buffers may be with the
    /// device.
    Stopping = 3,
}

impl Mode {
    /// Whether its queues are, or will be, without a device.
    pub(in crate::net) fn is_off(self) -> bool {
        matches!(self, Self::Stopped | Self::Stopping)
    }
}

/// A receive and a transmit queue of a [`Port`](crate::net::Port).
///
/// All methods may be called from any thread. One lock for each queue; a wait holds none.
pub struct QueuePair {
    pub(in crate::net) device: Arc<Device>,
    /// Its number: its receive queue is virtqueue 2 × `index` (section 5.1.2).
    pub(in crate::net) index: u16,
    pub(in crate::net) rx: Arc<Slot<RxQueue>>,
    pub(in crate::net) tx: Arc<Slot<TxQueue>>,
    pub(in crate::net) stats: LivePairStats,
    pub(in crate::net) events: Option<PairEvents>,
    /// Replaced when the rings are created again.
    addresses: Mutex<[QueueAddresses; 2]>,
    outages: [Arc<Outage>; 2],
    /// Whether the device writes hashes in front of received frames.
    hashes: bool,
    /// Bytes of the header in front of each frame.
    header_len: usize,
    /// The transmit queue's.
    demand: Arc<Demand>,
    pub(in crate::net) rx_waiting: Waiting,
    pub(in crate::net) tx_waiting: Waiting,
    /// Written in a change of the port, with both queues locked.
    mode: AtomicU8,
}

impl QueuePair {
    pub(in crate::net) fn new(
        device: Arc<Device>,
        index: u16,
        rx: RxQueue,
        tx: TxQueue,
        addresses: [QueueAddresses; 2],
        hashes: bool,
    ) -> Self {
        let stats = LivePairStats { rx: rx.common.stats.clone(), tx: tx.common.stats.clone() };
        let events =
            device.events.as_ref().and_then(|all| all.pairs.get(usize::from(index)).cloned());
        let header_len = tx.common.header_len;
        let outages = [rx.outage(), tx.outage()];
        let rx = rx.told_by(events.as_ref().map(|events| events.rx.clone()));
        let tx = tx.told_by(events.as_ref().map(|events| events.tx.clone()));
        let demand = tx.demand().clone();
        let tx = Arc::new(Slot::new(tx, "transmit"));
        let holder: Arc<dyn Holder> = tx.clone();
        device.pool.add_holder(Arc::downgrade(&holder));
        let rx = Arc::new(Slot::new(rx, "receive"));
        on_loss(&outages[0], &rx, RxQueue::reoffer);
        on_loss(&outages[1], &tx, TxQueue::reoffer);
        Self {
            device,
            index,
            rx,
            tx,
            stats,
            events,
            addresses: Mutex::new(addresses),
            outages,
            hashes,
            header_len,
            demand,
            rx_waiting: Waiting::default(),
            tx_waiting: Waiting::default(),
            mode: AtomicU8::new(Mode::Active as u8),
        }
    }

    /// Its number.
    pub fn index(&self) -> u16 {
        self.index
    }
    /// What interrupts signal.
    pub fn events(&self) -> Option<&PairEvents> {
        self.events.as_ref()
    }
    /// Where the receive and the transmit queue lie, and their sizes.
    pub fn addresses(&self) -> [QueueAddresses; 2] {
        *self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Replaces the rings of suspended queues.
    pub(in crate::net) fn replace_rings(&self, [receive, transmit]: [AnyRing; 2]) {
        let [before_rx, before_tx] = self.addresses();
        // One lock after the other, as each may have to be waited for.
        let receive = {
            let mut rx = self.rx.borrow();
            rx.replace_ring(receive, &self.outages[0]);
            rx.common.addresses(before_rx.vector)
        };
        let transmit = {
            let mut tx = self.tx.borrow();
            tx.replace_ring(transmit);
            tx.common.addresses(before_tx.vector)
        };
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        *addresses = [receive, transmit];
    }
    /// To be told when the receive or the transmit queue loses its vhost-user backend, and when it
    /// gets one again.
    pub fn outages(&self) -> &[Arc<Outage>; 2] {
        &self.outages
    }
    /// The counters.
    pub fn stats(&self) -> PortStats {
        self.stats.snapshot()
    }
    /// All counters of the receive and of the transmit queue. Only reads atomics, so the data path
    /// is not delayed.
    pub fn extended_stats(&self) -> [ExtendedStats; 2] {
        self.stats.extended()
    }
    /// Whether frames can be sent: it is neither stopped nor beyond the pairs in use.
    pub fn is_active(&self) -> bool {
        self.mode() == Mode::Active
    }

    #[inline]
    pub(in crate::net) fn mode(&self) -> Mode {
        match self.mode.load(Ordering::Relaxed) {
            0 => Mode::Active,
            1 => Mode::Unused,
            2 => Mode::Stopped,
            _ => Mode::Stopping,
        }
    }

    /// Only in a change of the port; with both queues locked if frames move before or after.
    pub(in crate::net) fn set_mode(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::Relaxed);
        if mode != Mode::Active {
            self.signal();
        }
    }

    #[cold]
    pub(in crate::net) fn unusable(&self, mode: Mode) -> Error {
        let number = self.index;
        Error::Closed(match mode {
            Mode::Stopped => {
                format!("queue {number} is stopped; queue({number}).start() starts it again")
            }
            Mode::Stopping => format!(
                "queue {number} is being stopped; where that failed, queue({number}).stop() tries \
                 again"
            ),
            _ => format!(
                "queue {number} is not in use; set_queues({}) or more turns it on",
                u32::from(number) + 1
            ),
        })
    }

    /// Locks the transmit queue for frames.
    #[inline]
    pub(in crate::net) fn transmit(&self) -> Result<Locked<'_, TxQueue>> {
        let tx = self.tx.lock()?;
        match self.mode() {
            Mode::Active => Ok(tx),
            mode => Err(self.unusable(mode)),
        }
    }

    /// Appends up to `max` received frames to the burst; 0 when there is none now.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::QemuDied`], [`Error::Device`] when the device broke a rule
    /// (now or before).
    pub fn recv(&self, max: usize, burst: &mut Burst) -> Result<usize> {
        self.device.check()?;
        let mut rx = self.rx.lock()?;
        let mode = self.mode();
        if mode.is_off() {
            return Err(self.unusable(mode));
        }
        burst.expect_hashes(self.hashes);
        let received = rx.recv(max, burst);
        if received.as_ref().is_ok_and(|received| *received < max) {
            self.received_all(&mut rx);
        }
        drop(rx);
        let received = received.map_err(|error| self.device.note(error))?;
        if received == 0 {
            self.device.connected()?;
            if mode == Mode::Unused {
                return Err(self.unusable(mode));
            }
        }
        Ok(received)
    }

    /// Queues a burst's frames in order, as many as fit; these leave the burst. Only frames with
    /// live views or in another memory are copied.
    ///
    /// Received frames are sent with their offload metadata. A checksum that this device does not
    /// support is calculated here; a frame that it cannot segment is dropped and counted
    /// (`no_offload`), and so is one that does not match its metadata (`bad_offload`).
    ///
    /// # Errors
    /// As for [`Self::recv`].
    pub fn send_burst(&self, burst: &mut Burst) -> Result<usize> {
        self.device.check()?;
        if burst.is_empty() {
            return Ok(0);
        }
        self.device.connected()?;
        if !Arc::ptr_eq(burst.pool(), &self.device.pool) {
            let headers = burst.headers() > 0;
            return if headers { self.send_foreign_on(burst) } else { self.send_foreign(burst) };
        }
        if self.device.pool.any_exported() && !self.replace_exported(burst) {
            self.sent_in_part(&mut *self.transmit()?);
            return Ok(0);
        }
        let mut tx = self.transmit()?;
        let sent = tx.send_burst(burst);
        if sent.is_ok() && !burst.is_empty() {
            self.sent_in_part(&mut tx);
        }
        drop(tx);
        sent.map_err(|error| self.device.note(error))
    }

    /// Replaces frames with live views by copies; false if there is no buffer for one.
    #[cold]
    pub(in crate::net) fn replace_exported(&self, burst: &mut Burst) -> bool {
        let mut fresh = Vec::new();
        for index in 0..burst.len() {
            let id = burst.ids()[index];
            if !self.device.pool.is_exported(id) {
                continue;
            }
            let Some((from, length)) = burst.frame(index) else { continue };
            let copy = if length > self.device.pool.capacity() {
                self.device.pool.take_jumbo_to_send(&self.demand)
            } else {
                self.device.pool.take_to_send(&mut fresh, 1, &self.demand);
                fresh.pop()
            };
            let Some(copy) = copy else {
                self.stats.tx.no_buffer.add_shared(1);
                return false;
            };
            // SAFETY: both buffers are ours, differ, and hold `length` bytes.
            unsafe {
                let to = self.device.pool.data_ptr(copy);
                std::ptr::copy_nonoverlapping(from, to, length);
                copy_header(from, to, burst.headers());
            }
            burst.ids_mut()[index] = copy;
            self.device.pool.give(&[id]);
            self.stats.tx.copied.add_shared(1);
        }
        true
    }

    /// Sends copies of frames in another memory.
    #[cold]
    fn send_foreign(&self, burst: &mut Burst) -> Result<usize> {
        let mut frames = Vec::with_capacity(burst.len());
        for index in 0..burst.len() {
            frames.extend(burst.copy_out(index));
        }
        let (sent, stop) = self.send(&mut frames.as_slice())?;
        burst.clear_front(sent);
        self.stats.tx.copied.add_shared(sent as u64);
        match stop {
            Some(SendStop::BadFrame(why)) => Err(Error::Invalid(why)),
            _ => Ok(sent),
        }
    }

    /// Copies frames into buffers and queues them, in order, until there are no more or one cannot
    /// be taken. Returns how many were queued, and why it stopped early. No lock is held while
    /// calling `frames`.
    ///
    /// # Errors
    /// As for [`Self::recv`].
    pub fn send(&self, frames: &mut impl FrameSource) -> Result<(usize, Option<SendStop>)> {
        let (queued, stop) = self.send_some(frames)?;
        if matches!(stop, Some(SendStop::RingFull | SendStop::NoBuffer)) {
            self.sent_in_part(&mut *self.transmit()?);
        }
        Ok((queued, stop))
    }

    fn send_some(&self, frames: &mut impl FrameSource) -> Result<(usize, Option<SendStop>)> {
        self.device.alive()?;
        let describes = frames.describes();
        let features = self.device.accepted();
        let mut queued = 0;
        let mut buffers = Vec::with_capacity(STAGE.min(frames.left()));
        while frames.more() {
            let room = self.transmit()?.room();
            let room = room.map_err(|error| self.device.note(error))?.min(STAGE);
            // None where nothing fits; else as many as there are frames.
            let wanted = room.min(frames.left().max(1));
            let got = self.device.pool.take_to_send(&mut buffers, wanted, &self.demand);
            let mut staged = Burst::new(self.device.pool.clone());
            let mut stop = None;
            // Buffers are used from the front; unused ones (long frames took jumbo buffers) return
            // to the pool.
            let mut used = 0;
            while staged.len() < got && frames.more() {
                let mut buffer = FrameBuffer::new(&self.device.pool, &self.demand, buffers[used]);
                match frames.next(&mut buffer) {
                    Ok(length) => {
                        if describes
                            && let Err(why) = self.describe(&buffer, length, frames, features)
                        {
                            stop = Some(SendStop::BadFrame(why));
                            break;
                        }
                        let id = buffer.finish();
                        used += usize::from(id == buffers[used]);
                        staged.push(id, length.min(self.device.pool.capacity_of(id)) as u32);
                    }
                    Err(_) if buffer.starved() => {
                        self.stats.tx.no_buffer.add_shared(1);
                        stop = Some(SendStop::NoBuffer);
                        break;
                    }
                    Err(why) => {
                        self.stats.tx.bad_length.add_shared(1);
                        stop = Some(SendStop::BadFrame(why));
                        break;
                    }
                }
            }
            self.device.pool.give(&buffers[used..]);
            buffers.clear();
            if !staged.is_empty() {
                let mut tx = self.transmit()?;
                let sent = if describes {
                    // Meanwhile the device may have come back with fewer features.
                    tx.send_described(&mut staged, features)
                } else {
                    let sent = tx.send(staged.ids(), staged.lengths());
                    staged.moved(*sent.as_ref().unwrap_or(&0));
                    sent
                };
                drop(tx);
                queued += sent.map_err(|error| self.device.note(error))?;
                if !staged.is_empty() {
                    return Ok((queued, Some(SendStop::RingFull)));
                }
            }
            if stop.is_some() {
                return Ok((queued, stop));
            }
            if room == 0 {
                self.stats.tx.ring_full.add_shared(1);
                return Ok((queued, Some(SendStop::RingFull)));
            }
            if got == 0 {
                self.stats.tx.no_buffer.add_shared(1);
                return Ok((queued, Some(SendStop::NoBuffer)));
            }
        }
        Ok((queued, None))
    }

    /// Writes the header of a frame that is in its buffer; or returns why it cannot be sent.
    fn describe(
        &self,
        buffer: &FrameBuffer<'_>,
        length: usize,
        frames: &impl FrameSource,
        features: Features,
    ) -> Result<(), String> {
        let data = buffer.data();
        // SAFETY: the buffer is ours and holds the frame, which `fill` has checked; its data is
        // 64-byte aligned and has DATA_OFFSET (64) bytes in front.
        unsafe {
            match frames.offload().checked(data, length, features) {
                Ok(offload) => header::write(data, self.header_len, offload),
                Err(why) => {
                    self.stats.tx.bad_offload.add_shared(1);
                    return Err(why.to_string());
                }
            }
        }
        Ok(())
    }

    /// Takes back the buffers of transmitted frames that the device has finished.
    ///
    /// # Errors
    /// As for [`Self::recv`].
    pub fn reclaim(&self) -> Result<()> {
        self.device.check()?;
        let reclaimed = self.tx.lock()?.reclaim();
        reclaimed.map_err(|error| self.device.note(error))
    }

    /// Takes the receive queue for a loop; others get [`Error::Busy`] until the claim ends.
    ///
    /// # Errors
    /// [`Error::Busy`], and as for [`Self::recv`].
    pub(crate) fn claim_rx(&self) -> Result<Claim<'_, RxQueue>> {
        self.device.check()?;
        let rx = self.claimed(self.rx.claim()?)?;
        if let Some(events) = self.events.as_ref().filter(|_| self.rx_waiting.wakeup.wanted()) {
            // Waiters for this queue learn that it is claimed.
            events.rx.signal();
        }
        Ok(rx)
    }
    /// The same for the transmit queue.
    pub(crate) fn claim_tx(&self) -> Result<Claim<'_, TxQueue>> {
        self.device.check()?;
        let tx = self.claimed(self.tx.claim()?)?;
        if let Some(events) = self.events.as_ref().filter(|_| self.tx_waiting.wakeup.wanted()) {
            events.tx.signal();
        }
        Ok(tx)
    }
    fn claimed<'a, Q: Reclaim>(&self, claim: Claim<'a, Q>) -> Result<Claim<'a, Q>> {
        match self.mode() {
            Mode::Active => Ok(claim),
            mode => Err(self.unusable(mode)),
        }
    }

    /// Takes every buffer back, after the device was reset; waits for the holders of the queues.
    ///
    /// # Errors
    /// [`Error::Device`] if there was a violation before; all buffers are taken back.
    pub(in crate::net) fn take_back(&self) -> Result<()> {
        self.rx.take_back(|_| {});
        let mut finished = Ok(());
        // Counts what the device finished before the reset.
        self.tx.take_back(|tx| finished = tx.reclaim());
        finished
    }
    /// Takes every buffer back for good, for a closed port; and the rings' memory, if the device
    /// was reset.
    ///
    /// # Errors
    /// As for [`Self::take_back`].
    pub(in crate::net) fn end(&self, reset: bool) -> Result<()> {
        self.rx.end(reset, |_| {});
        let mut finished = Ok(());
        self.tx.end(reset, |tx| finished = tx.reclaim());
        if reset {
            self.outages.iter().for_each(|outage| outage.retire());
        }
        finished
    }
    /// An error if a loop of this thread has one of its queues.
    pub(in crate::net) fn not_ours(&self) -> Result<()> {
        self.rx.not_ours().and_then(|()| self.tx.not_ours())
    }
}

/// Puts a queue in order when its backend is gone.
fn on_loss<Q: Reclaim + Send + 'static>(outage: &Outage, slot: &Arc<Slot<Q>>, reoffer: fn(&mut Q)) {
    let slot = Arc::downgrade(slot);
    outage.first(move || {
        let Some(slot) = slot.upgrade() else { return true };
        let queue = slot.borrow_within(LOSS);
        queue.map(|mut queue| reoffer(&mut queue)).is_some()
    });
}

impl std::fmt::Debug for QueuePair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueuePair")
            .field("index", &self.index)
            .field("mode", &self.mode())
            .finish_non_exhaustive()
    }
}
