//! Frames from one port to another, or back to where they came from.

use super::control::{Control, Report};
use super::lanes::{lanes, pairs_of};
use super::{BURST, blame, running, swap};
use crate::Result;
use crate::net::{Burst, Port, RxQueue, TxQueue};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How frames are forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manner {
    /// What is changed in each.
    pub mode: Mode,
    /// With it no more frames are received than the transmit ring has room for: who sends them
    /// finds the receive ring full, and slows down or drops by rules of its own. A ring that
    /// stays full for so long is that of a peer that is gone: frames for it are dropped until
    /// it takes some again. Else two loops that wait for each other's room would wait for ever,
    /// and a peer that returns would get what has long been of no use.
    ///
    /// Without it, frames that find no room are dropped at once.
    pub patience: Option<Duration>,
}

impl Manner {
    /// The patience that suits most: far more than a busy peer needs, and far less than TCP has.
    pub const PATIENCE: Duration = Duration::from_millis(100);

    /// Leaves frames where they are while there is no room for them.
    #[must_use]
    pub const fn patient(mode: Mode) -> Self {
        Self { mode, patience: Some(Self::PATIENCE) }
    }
    /// Drops frames for which there is no room.
    #[must_use]
    pub const fn dropping(mode: Mode) -> Self {
        Self { mode, patience: None }
    }
}

/// What is changed in each frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nothing; the frame is not even looked at.
    Io,
    /// The source address becomes that of the port it leaves by.
    Mac,
    /// The two addresses are exchanged.
    MacSwap,
}

/// One direction: from a receive queue to a transmit queue.
struct Path<'a> {
    from: &'a Port,
    to: &'a Port,
    manner: Manner,
    /// Since when the transmit ring has been full.
    full: Option<Instant>,
}

impl<'a> Path<'a> {
    fn new(from: &'a Port, to: &'a Port, manner: Manner) -> Self {
        Self { from, to, manner, full: None }
    }

    /// How many of `most` frames may be received now.
    #[inline]
    fn welcome(&mut self, tx: &mut TxQueue, most: usize) -> Result<usize> {
        let Some(patience) = self.manner.patience else { return Ok(most) };
        let room = tx.room().map_err(|error| blame(self.to, error))?;
        if room > 0 {
            self.full = None;
            return Ok(most.min(room));
        }
        let since = *self.full.get_or_insert_with(Instant::now);
        Ok(if since.elapsed() < patience { 0 } else { most })
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
        let welcome = self.welcome(tx, most)?;
        if welcome == 0 && most > 0 {
            report.held += 1;
            return Ok(0);
        }
        let received = rx.recv(welcome, burst).map_err(|error| blame(self.from, error))?;
        if received == 0 {
            // Perhaps for want of buffers, which only this queue can give back.
            tx.release().map_err(|error| blame(self.to, error))?;
            return Ok(0);
        }
        match self.manner.mode {
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
        pass_on(burst, self.to, tx, report)?;
        Ok(received)
    }
}

/// Sends a burst by a port, copied where that is of another memory. What does not fit, or cannot be
/// sent so, is dropped; everything is counted.
#[inline]
pub(super) fn pass_on(
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
    let sent = sent.map_err(|error| blame(to, error))?;
    let refused = tx.refused() - refused;
    report.sent += sent as u64;
    report.bytes += tx.bytes() - before;
    report.ring_full += ((wanted - sent) as u64).saturating_sub(refused);
    report.no_offload += refused;
    burst.clear();
    Ok(())
}

/// Forwards between two ports in both directions. Ports of one memory exchange buffers, no
/// byte is copied.
///
/// # Errors
/// What ended a port, [`crate::Error::Busy`] when one is in use by another loop, and
/// [`crate::Error::Invalid`] where one uses more queue pairs than the other.
pub fn forward(a: &Port, b: &Port, manner: Manner, control: Control<'_>) -> Result<Report> {
    lanes(pairs_of(&[a, b])?, control, |lane, control| forward_pair(a, b, lane, manner, control))
}

fn forward_pair(
    a: &Port,
    b: &Port,
    lane: usize,
    manner: Manner,
    mut control: Control<'_>,
) -> Result<Report> {
    let [on_a, on_b] = [a.pair(lane)?, b.pair(lane)?];
    let (mut rx_a, mut tx_a) = (on_a.claim_rx()?, on_a.claim_tx()?);
    let (mut rx_b, mut tx_b) = (on_b.claim_rx()?, on_b.claim_tx()?);
    let mut bursts = (Burst::new(a.pool().clone()), Burst::new(b.pool().clone()));
    let (mut there, mut back) = (Path::new(a, b, manner), Path::new(b, a, manner));
    let mut report = Report::default();
    loop {
        for rx in [&mut rx_a, &mut rx_b] {
            rx.lend();
        }
        for tx in [&mut tx_a, &mut tx_b] {
            tx.lend();
        }
        let most = BURST.min(control.left(report.sent));
        let first = there.turn(&mut rx_a, &mut tx_b, &mut bursts.0, most, &mut report)?;
        let most = BURST.min(control.left(report.sent));
        let second = back.turn(&mut rx_b, &mut tx_a, &mut bursts.1, most, &mut report)?;
        report.idle += u64::from(first + second == 0);
        let alive = || running(a).and_then(|()| running(b));
        if control.is_over(report.sent) || !control.go_on(&mut report, alive)? {
            break;
        }
        control.rest(first + second);
    }
    report.elapsed = control.elapsed();
    Ok(report)
}

/// Sends every received frame back by the port it came from.
///
/// # Errors
/// As for [`forward`].
pub fn reflect(port: &Port, manner: Manner, control: Control<'_>) -> Result<Report> {
    lanes(pairs_of(&[port])?, control, |lane, control| reflect_pair(port, lane, manner, control))
}

fn reflect_pair(
    port: &Port,
    lane: usize,
    manner: Manner,
    mut control: Control<'_>,
) -> Result<Report> {
    let pair = port.pair(lane)?;
    let (mut rx, mut tx) = (pair.claim_rx()?, pair.claim_tx()?);
    let mut burst = Burst::new(port.pool().clone());
    let mut path = Path::new(port, port, manner);
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
        control.rest(moved);
    }
    report.elapsed = control.elapsed();
    Ok(report)
}
