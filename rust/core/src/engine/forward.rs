//! The forward and reflect loops.

use super::control::{Control, Report};
use super::lanes::{lanes, pairs_of};
use super::{BURST, of_port, running, swap};
use crate::Result;
use crate::net::{Burst, Port, RxQueue, TxQueue};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How frames are forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forwarding {
    /// What is changed in each frame.
    pub mode: Mode,
    /// With backpressure, only as many frames are received as the transmit ring has room for, so
    /// the sender finds the receive ring full and slows down or drops frames itself. A transmit
    /// ring that stays full for this long belongs to a peer that has stopped: frames for it are
    /// dropped until it takes some again. Otherwise two loops could wait for each other forever,
    /// and a returning peer would get stale frames.
    ///
    /// Without backpressure, frames that do not fit are dropped at once.
    pub backpressure: Option<Duration>,
}

impl Forwarding {
    /// The default limit: far longer than a busy peer needs, far shorter than TCP's timeouts.
    pub const LIMIT: Duration = Duration::from_millis(100);

    /// Leaves frames in the receive ring while the transmit ring is full.
    #[must_use]
    pub const fn with_backpressure(mode: Mode) -> Self {
        Self { mode, backpressure: Some(Self::LIMIT) }
    }
    /// Drops frames while the transmit ring is full.
    #[must_use]
    pub const fn dropping(mode: Mode) -> Self {
        Self { mode, backpressure: None }
    }
}

/// What is changed in each frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nothing: the frame is not read.
    Io,
    /// The source address becomes that of the transmitting port.
    Mac,
    /// Source and destination address are swapped.
    MacSwap,
}

/// One direction: from a receive queue to a transmit queue.
struct Path<'a> {
    from: &'a Port,
    to: &'a Port,
    forwarding: Forwarding,
    /// Since when the transmit ring has been full.
    full: Option<Instant>,
}

impl<'a> Path<'a> {
    fn new(from: &'a Port, to: &'a Port, forwarding: Forwarding) -> Self {
        Self { from, to, forwarding, full: None }
    }

    /// How many of `most` frames may be received now.
    #[inline]
    fn allowed(&mut self, tx: &mut TxQueue, most: usize) -> Result<usize> {
        let Some(limit) = self.forwarding.backpressure else { return Ok(most) };
        let room = tx.room().map_err(|error| of_port(self.to, error))?;
        if room > 0 {
            self.full = None;
            return Ok(most.min(room));
        }
        let since = *self.full.get_or_insert_with(Instant::now);
        Ok(if since.elapsed() < limit { 0 } else { most })
    }

    #[inline]
    fn turn(
        &mut self,
        rx: &mut RxQueue,
        tx: &mut TxQueue,
        burst: &mut Burst,
        most: usize,
        report: &mut Report,
    ) -> Result<usize> {
        let allowed = self.allowed(tx, most)?;
        if allowed == 0 && most > 0 {
            report.held += 1;
            return Ok(0);
        }
        let received = rx.recv(allowed, burst).map_err(|error| of_port(self.from, error))?;
        if received == 0 {
            // The pool may be empty, and only this queue can return its buffers.
            tx.release().map_err(|error| of_port(self.to, error))?;
            return Ok(0);
        }
        match self.forwarding.mode {
            Mode::Io => {}
            Mode::Mac => {
                swap::prefetch(burst);
                swap::set_source(burst, self.to.mac());
            }
            Mode::MacSwap => {
                swap::prefetch(burst);
                swap::swap_addresses(burst);
            }
        }
        report.received += received as u64;
        report.bursts += 1;
        send_or_drop(burst, self.to, tx, report)?;
        Ok(received)
    }
}

/// Sends a burst on a port, copying it if the port uses another memory. Frames that do not fit or
/// cannot be sent are dropped. Everything is counted.
#[inline]
pub(super) fn send_or_drop(
    burst: &mut Burst,
    to: &Port,
    tx: &mut TxQueue,
    report: &mut Report,
) -> Result<()> {
    let wanted = burst.len();
    let (before, refused) = (tx.bytes(), tx.refused());
    let sent = if Arc::ptr_eq(burst.pool(), to.pool()) {
        tx.send_burst(burst)
    } else {
        tx.send_copies(burst)
    };
    let sent = sent.map_err(|error| of_port(to, error))?;
    let refused = tx.refused() - refused;
    report.sent += sent as u64;
    report.bytes += tx.bytes() - before;
    report.ring_full += ((wanted - sent) as u64).saturating_sub(refused);
    report.no_offload += refused;
    burst.clear();
    Ok(())
}

/// Forwards between two ports in both directions. Between ports of the same memory, no byte is
/// copied.
///
/// # Errors
/// What ended a port; [`crate::Error::Busy`] if another loop uses one; [`crate::Error::Invalid`]
/// if the ports use different numbers of queue pairs.
pub fn forward(a: &Port, b: &Port, forwarding: Forwarding, control: Control<'_>) -> Result<Report> {
    lanes(pairs_of(&[a, b])?, control, |lane, control| {
        forward_pair(a, b, lane, forwarding, control)
    })
}

fn forward_pair(
    a: &Port,
    b: &Port,
    lane: usize,
    forwarding: Forwarding,
    mut control: Control<'_>,
) -> Result<Report> {
    let [pair_a, pair_b] = [a.pair(lane)?, b.pair(lane)?];
    let (mut rx_a, mut tx_a) = (pair_a.claim_rx()?, pair_a.claim_tx()?);
    let (mut rx_b, mut tx_b) = (pair_b.claim_rx()?, pair_b.claim_tx()?);
    let mut bursts = (Burst::new(a.pool().clone()), Burst::new(b.pool().clone()));
    let (mut a_to_b, mut b_to_a) = (Path::new(a, b, forwarding), Path::new(b, a, forwarding));
    let mut report = Report::default();
    loop {
        for rx in [&mut rx_a, &mut rx_b] {
            rx.lend();
        }
        for tx in [&mut tx_a, &mut tx_b] {
            tx.lend();
        }
        let most = BURST.min(control.left(report.sent));
        let first = a_to_b.turn(&mut rx_a, &mut tx_b, &mut bursts.0, most, &mut report)?;
        let most = BURST.min(control.left(report.sent));
        let second = b_to_a.turn(&mut rx_b, &mut tx_a, &mut bursts.1, most, &mut report)?;
        report.idle += u64::from(first + second == 0);
        let alive = || running(a).and_then(|()| running(b));
        if control.is_over(report.sent) || !control.go_on(&mut report, alive)? {
            break;
        }
        control.pause(first + second);
    }
    report.elapsed = control.elapsed();
    Ok(report)
}

/// Sends each received frame back on the port it came from.
///
/// # Errors
/// As for [`forward`].
pub fn reflect(port: &Port, forwarding: Forwarding, control: Control<'_>) -> Result<Report> {
    lanes(pairs_of(&[port])?, control, |lane, control| {
        reflect_pair(port, lane, forwarding, control)
    })
}

fn reflect_pair(
    port: &Port,
    lane: usize,
    forwarding: Forwarding,
    mut control: Control<'_>,
) -> Result<Report> {
    let pair = port.pair(lane)?;
    let (mut rx, mut tx) = (pair.claim_rx()?, pair.claim_tx()?);
    let mut burst = Burst::new(port.pool().clone());
    let mut path = Path::new(port, port, forwarding);
    let mut report = Report::default();
    loop {
        rx.lend();
        tx.lend();
        let most = BURST.min(control.left(report.sent));
        let moved = path.turn(&mut rx, &mut tx, &mut burst, most, &mut report)?;
        report.idle += u64::from(moved == 0);
        if control.is_over(report.sent) || !control.go_on(&mut report, || port.running())? {
            break;
        }
        control.pause(moved);
    }
    report.elapsed = control.elapsed();
    Ok(report)
}
