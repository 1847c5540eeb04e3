//! The smoltcp device of a link: receives and sends one burst per turn.

use super::link::{Frames, Link};
use super::vlan;
use crate::Result;
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::wire::ETHERNET_HEADER_LEN;
use std::time::Instant;

/// Frames taken from the link at once.
pub(super) const BURST: usize = 64;
/// With this many frames to send, none is received.
const BACKLOG: usize = 2 * BURST;

#[derive(Debug)]
pub(super) struct Device<L> {
    pub(super) link: L,
    mtu: usize,
    inbox: Frames,
    outbox: Frames,
    /// When the last burst was received.
    pub(super) arrived: Instant,
    /// When the last burst was sent.
    pub(super) departed: Instant,
    /// Number of sent frames.
    pub(super) sent: u64,
}

impl<L: Link> Device<L> {
    pub(super) fn new(link: L) -> Self {
        let mtu = usize::from(link.mtu());
        let now = Instant::now();
        let (inbox, outbox) = Default::default();
        Self { link, mtu, inbox, outbox, arrived: now, departed: now, sent: 0 }
    }

    /// The longest IP packet in bytes.
    pub(super) fn mtu(&self) -> usize {
        self.mtu
    }

    /// Receives a burst and calls `look` for each frame. Returns the number of frames.
    pub(super) fn fill(&mut self, look: impl FnMut(&[u8])) -> Result<usize> {
        let room = BURST.saturating_sub(self.inbox.len());
        if room == 0 || self.outbox.len() >= BACKLOG {
            return Ok(0);
        }
        let received = self.link.recv(room, &mut self.inbox)?;
        if received > 0 {
            self.arrived = Instant::now();
            self.inbox.last_mut(received).for_each(vlan::remove_priority_tags);
            self.inbox.last(received).for_each(look);
        }
        Ok(received)
    }

    /// Sends queued frames with one doorbell. Those that do not fit remain queued.
    pub(super) fn flush(&mut self) -> Result<()> {
        if self.outbox.is_empty() {
            return Ok(());
        }
        let now = Instant::now();
        let sent = self.link.send(self.outbox.all())?;
        if sent > 0 {
            self.departed = now;
            self.sent += sent as u64;
            self.outbox.done(sent);
        }
        Ok(())
    }

    /// Queues a frame to send.
    pub(super) fn push(&mut self, frame: &[u8]) {
        self.outbox.push(frame);
    }

    /// Whether the link had no room for some frames.
    pub(super) fn stuck(&self) -> bool {
        !self.outbox.is_empty()
    }
    /// Whether received frames are not processed yet.
    pub(super) fn behind(&self) -> bool {
        !self.inbox.is_empty()
    }
}

impl<L: Link> phy::Device for Device<L> {
    type RxToken<'a>
        = RxToken<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = TxToken<'a>
    where
        Self: 'a;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(RxToken<'_>, TxToken<'_>)> {
        if self.outbox.len() >= BACKLOG {
            return None;
        }
        let frame = self.inbox.pop()?;
        Some((RxToken { frame, inbox: &mut self.inbox }, TxToken { outbox: &mut self.outbox }))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<TxToken<'_>> {
        (self.outbox.len() < BACKLOG).then_some(TxToken { outbox: &mut self.outbox })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.mtu + ETHERNET_HEADER_LEN;
        capabilities.max_burst_size = Some(BURST);
        capabilities
    }
}

/// One received frame.
pub(super) struct RxToken<'a> {
    frame: Vec<u8>,
    inbox: &'a mut Frames,
}

impl phy::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, look: F) -> R {
        let result = look(&self.frame);
        self.inbox.recycle(self.frame);
        result
    }
}

/// A frame to send.
pub(super) struct TxToken<'a> {
    outbox: &'a mut Frames,
}

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        self.outbox.push_with(length, write)
    }
}
