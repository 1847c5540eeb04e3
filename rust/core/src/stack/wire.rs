//! Wires: the links that carry a host's Ethernet frames.

use super::packets::{Packets, Source};
use crate::Result;
use crate::net::{Burst, Mac, Offload, Port, QueuePair, SendStop, Wake};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The most sent frames in a [`Fed`] wire that are not taken yet.
const ROOM: usize = 1024;
/// The longest frame to be segmented, as the length in the IP header has 16 bits.
const LONGEST: usize = 65_000;

const CHECKSUM: Offload = Offload { flags: Offload::NEEDS_CSUM, ..Offload::NONE };
const SEGMENTS: Offload = Offload { gso_type: Offload::TCPV4, ..CHECKSUM };

/// The offloads of a wire.
#[derive(Clone, Copy, Debug, Default)]
pub struct Abilities {
    /// Whether it completes TCP checksums.
    pub checksum: bool,
    /// Whether it segments TCP over IPv4: the longest frame in bytes.
    pub segmentation: Option<usize>,
}

/// Carries Ethernet frames to and from a host. Called from any thread.
pub trait Wire: Send + Sync + 'static {
    /// The host's MAC address.
    fn mac(&self) -> Mac;
    /// The longest IP packet in bytes.
    fn mtu(&self) -> u16;
    /// Its offloads.
    fn abilities(&self) -> Abilities;
    /// Appends up to `max` received frames. Returns how many; does not wait.
    ///
    /// # Errors
    /// As for [`Port::recv`].
    fn recv(&self, max: usize, packets: &mut Packets) -> Result<usize>;
    /// Waits until [`Self::recv`] may find a frame, or [`Self::wake`] was called since the last wait.
    ///
    /// # Errors
    /// As for [`Port::wait`].
    fn wait(&self, timeout: Option<Duration>) -> Result<Wake>;
    /// Ends the current wait, or the next one.
    fn wake(&self);
    /// Queues as many frames as fit, in order. Returns how many. A frame that can never be sent is
    /// dropped.
    ///
    /// # Errors
    /// As for [`Port::send`].
    fn send(&self, packets: &Packets) -> Result<usize>;
    /// Called after the host has ended.
    fn end(&self) {}
}

/// One queue pair of a port.
#[derive(Debug)]
pub struct PairWire {
    port: Arc<Port>,
    index: usize,
    mac: Mac,
}

impl PairWire {
    /// The wire of the queue pair `index`.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] if the port does not have it; those of [`QueuePair::recv`].
    pub fn new(port: Arc<Port>, index: usize) -> Result<Self> {
        // Nothing is received, but a port that is closed, or of another process, says so.
        port.pair(index)?.recv(0, &mut Burst::new(port.pool().clone()))?;
        let mac = port.mac();
        Ok(Self { port, index, mac })
    }
    fn pair(&self) -> &QueuePair {
        // Checked by `new`; a port never loses pairs.
        &self.port.pairs()[self.index]
    }
    /// Whether the device supports an offload.
    fn can(&self, offload: Offload) -> bool {
        offload.needs().0 & !self.port.accepted().0 == 0
    }
}

impl Wire for PairWire {
    fn mac(&self) -> Mac {
        self.mac
    }
    fn mtu(&self) -> u16 {
        self.port.config().mtu
    }
    fn abilities(&self) -> Abilities {
        let checksum = self.can(CHECKSUM);
        let longest = self.port.pool().largest_frame().min(LONGEST);
        let worth = longest > 2 * usize::from(self.mtu());
        let segments = checksum && self.can(SEGMENTS) && worth;
        Abilities { checksum, segmentation: segments.then_some(longest) }
    }
    fn recv(&self, max: usize, packets: &mut Packets) -> Result<usize> {
        let mut burst = Burst::new(self.port.pool().clone());
        let received = self.pair().recv(max, &mut burst)?;
        for index in 0..burst.len() {
            let Some((from, length)) = burst.frame(index) else { continue };
            let offload = burst.receive_offload(index);
            // The stack reads bytes more than once and shared memory may change in between, so it
            // gets a copy.
            // SAFETY: `from` is a buffer of the burst with `length` bytes, ours until the burst is
            // dropped. `to` has `length` bytes and is private memory, so they do not overlap.
            packets.push_with(length, offload, |to| unsafe {
                std::ptr::copy_nonoverlapping(from.cast_const(), to.as_mut_ptr(), length);
            });
        }
        Ok(received)
    }
    fn wait(&self, timeout: Option<Duration>) -> Result<Wake> {
        self.pair().wait(timeout)
    }
    fn wake(&self) {
        if let Some(events) = self.pair().events() {
            events.rx.signal();
        }
    }
    fn send(&self, packets: &Packets) -> Result<usize> {
        let mut source = Source::new(packets, self.can(CHECKSUM));
        match self.pair().send(&mut source)? {
            (queued, Some(SendStop::BadFrame(why))) => {
                log::warn!("a frame of the stack cannot be sent: {why}");
                Ok(queued + 1)
            }
            (queued, _) => Ok(queued),
        }
    }
}

/// A wire without a port: its owner moves the frames, with [`Self::feed`] and [`Self::take`].
#[derive(Debug)]
pub struct Fed {
    mac: Mac,
    mtu: u16,
    inner: Mutex<Inner>,
    arrived: Condvar,
    departing: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    inbox: Packets,
    outbox: VecDeque<Vec<u8>>,
    woken: bool,
    failure: Option<crate::Error>,
    ended: bool,
}

impl Fed {
    /// A wire with these properties.
    #[must_use]
    pub fn new(mac: Mac, mtu: u16) -> Self {
        let (inner, arrived, departing) = Default::default();
        Self { mac, mtu, inner, arrived, departing }
    }
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Adds a received frame. Returns false if it is dropped because too many wait.
    pub fn feed(&self, frame: &[u8]) -> bool {
        let mut inner = self.inner();
        let room = inner.inbox.len() < 4 * ROOM;
        if room {
            inner.inbox.push(frame);
            drop(inner);
            self.arrived.notify_one();
        }
        room
    }
    /// Takes the sent frames, waiting for the first; `None` after the host has ended.
    pub fn take(&self, timeout: Duration) -> Option<Vec<Vec<u8>>> {
        let mut inner = self.inner();
        if inner.outbox.is_empty() && !inner.ended {
            let waited = self.departing.wait_timeout(inner, timeout);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if inner.ended && inner.outbox.is_empty() {
            return None;
        }
        Some(inner.outbox.drain(..).collect())
    }
    /// Fails the wire: no more frames are moved.
    pub fn fail(&self, why: crate::Error) {
        self.inner().failure.get_or_insert(why);
        self.wake();
    }
    /// Whether the host has ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.inner().ended
    }
}

impl Wire for Fed {
    fn mac(&self) -> Mac {
        self.mac
    }
    fn mtu(&self) -> u16 {
        self.mtu
    }
    fn abilities(&self) -> Abilities {
        Abilities::default()
    }
    fn recv(&self, max: usize, packets: &mut Packets) -> Result<usize> {
        let mut inner = self.inner();
        if let Some(failure) = &inner.failure {
            return Err(failure.clone());
        }
        let mut count = 0;
        while count < max
            && let Some(packet) = inner.inbox.pop()
        {
            packets.push(&packet.bytes);
            inner.inbox.recycle(packet);
            count += 1;
        }
        Ok(count)
    }
    fn wait(&self, timeout: Option<Duration>) -> Result<Wake> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut inner = self.inner();
        loop {
            if std::mem::take(&mut inner.woken) || !inner.inbox.is_empty() {
                return Ok(Wake::Ready);
            }
            inner = match deadline {
                None => self.arrived.wait(inner).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(Wake::Timeout);
                    }
                    let waited = self.arrived.wait_timeout(inner, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
    fn wake(&self) {
        self.inner().woken = true;
        self.arrived.notify_one();
    }
    fn send(&self, packets: &Packets) -> Result<usize> {
        let mut inner = self.inner();
        if let Some(failure) = &inner.failure {
            return Err(failure.clone());
        }
        let room = ROOM.saturating_sub(inner.outbox.len());
        let mut count = 0;
        for packet in packets.iter().take(room) {
            inner.outbox.push_back(packet.bytes.clone());
            count += 1;
        }
        drop(inner);
        if count > 0 {
            self.departing.notify_one();
        }
        Ok(count)
    }
    fn end(&self) {
        self.inner().ended = true;
        self.departing.notify_all();
    }
}
