//! The generate loop: sends frames cyclically.
//!
//! Buffers are filled once. A transmitted buffer still holds its frame, so sending it again only
//! takes a descriptor.

use super::BURST;
use super::control::{Control, Report};
use super::lanes::{lanes, pairs_of};
use crate::memory::Pool;
use crate::net::{Claim, Port, Replay, TxQueue};
use crate::{Error, Result};
use std::time::{Duration, Instant};

/// Sleep between two checks of a slow load.
const NAP: Duration = Duration::from_micros(100);
/// How long the device may take to return the frames of an earlier load.
const LEFTOVERS: Duration = Duration::from_secs(1);

/// What to send, and how fast.
#[derive(Clone, Debug)]
pub struct Load {
    /// The frames, sent in turn.
    pub frames: Vec<Vec<u8>>,
    /// Frames per second in total; `None` sends as fast as the device takes them.
    pub rate: Option<f64>,
}

impl Load {
    /// The load of each of several queues: the same frames at a part of the rate.
    pub(super) fn shared_by(&self, queues: usize) -> Self {
        let rate = self.rate.map(|rate| rate / queues.max(1) as f64);
        Self { frames: self.frames.clone(), rate }
    }
}

/// Sends a load until the control ends it.
///
/// # Errors
/// [`Error::Invalid`] without a frame, for a frame that does not fit a buffer, or for a bad rate;
/// [`Error::MemoryUnavailable`] without free buffers; what ended the port; [`Error::Busy`].
pub fn generate(port: &Port, load: &Load, control: Control<'_>) -> Result<Report> {
    let pairs = pairs_of(&[port])?;
    let load = load.shared_by(pairs);
    lanes(pairs, control, |lane, control| generate_by_pair(port, lane, &load, control))
}

fn generate_by_pair(
    port: &Port,
    lane: usize,
    load: &Load,
    mut control: Control<'_>,
) -> Result<Report> {
    let mut source = Source::new(port, lane, load)?;
    let mut report = Report::default();
    loop {
        let busy = source.turn(control.left(report.sent), &mut report)?;
        report.bursts += u64::from(busy);
        report.idle += u64::from(!busy);
        if control.is_over(report.sent) || !control.go_on(&mut report, || port.running())? {
            break;
        }
        if !busy && source.is_slow() {
            std::thread::sleep(NAP);
        }
    }
    report.elapsed = control.elapsed();
    Ok(report)
}

/// Claims a transmit queue, and waits until frames of an earlier load have come back.
pub(super) fn emptied(port: &Port, lane: usize) -> Result<Claim<'_, TxQueue>> {
    let mut tx = port.pair(lane)?.claim_tx()?;
    let give_up = Instant::now() + LEFTOVERS;
    while tx.has_replay() {
        tx.reclaim().map_err(|error| port.fault(error))?;
        if Instant::now() > give_up {
            return Err(Error::Busy(format!(
                "the device has not returned all frames of an earlier generate loop after \
                 {LEFTOVERS:?}"
            )));
        }
    }
    Ok(tx)
}

/// A claimed transmit queue with a load. Dropping it unloads the queue.
pub(super) struct Source<'a> {
    port: &'a Port,
    tx: Claim<'a, TxQueue>,
    rate: Option<f64>,
    start: Instant,
}

impl<'a> Source<'a> {
    /// Claims the queue and fills buffers with the load's frames.
    pub(super) fn new(port: &'a Port, lane: usize, load: &Load) -> Result<Self> {
        check(load, port.pool())?;
        let mut tx = emptied(port, lane)?;
        let replay = fill(port.pool(), tx.size(), load)?;
        tx.load(replay);
        Ok(Self { port, tx, rate: load.rate, start: Instant::now() })
    }

    /// Whether less than one frame is due per [`NAP`].
    fn is_slow(&self) -> bool {
        self.rate.is_some_and(|rate| rate * NAP.as_secs_f64() < 1.0)
    }

    /// Sends the frames that are due now, at most a burst. Returns whether any were sent.
    #[inline]
    pub(super) fn turn(&mut self, most: usize, report: &mut Report) -> Result<bool> {
        self.tx.lend();
        let due = match self.rate {
            None => BURST,
            Some(rate) => due(rate, self.start.elapsed(), report.sent).min(BURST),
        };
        let sent = self.tx.send_replay(due.min(most));
        let (sent, bytes) = sent.map_err(|error| self.port.fault(error))?;
        report.sent += sent as u64;
        report.bytes += bytes;
        Ok(sent > 0)
    }
}

impl Drop for Source<'_> {
    fn drop(&mut self) {
        self.tx.unload();
    }
}

/// Frames that are due and not sent yet.
#[inline]
fn due(rate: f64, elapsed: Duration, sent: u64) -> usize {
    let due = (rate * elapsed.as_secs_f64()) as u64;
    usize::try_from(due.saturating_sub(sent)).unwrap_or(usize::MAX)
}

fn check(load: &Load, pool: &Pool) -> Result<()> {
    if load.frames.is_empty() {
        return Err(Error::Invalid("there is no frame to send".to_owned()));
    }
    if let Some(rate) = load.rate
        && !(rate > 0.0 && rate.is_finite())
    {
        return Err(Error::Invalid(format!(
            "the rate must be above 0 frames a second, not {rate}"
        )));
    }
    for (i, frame) in load.frames.iter().enumerate() {
        if frame.is_empty() || frame.len() > pool.largest_frame() {
            return Err(Error::Invalid(format!(
                "frame {i} has {} bytes; a buffer holds 1 to {}",
                frame.len(),
                pool.largest_frame()
            )));
        }
    }
    Ok(())
}

/// Fills buffers with the frames in turn: one for each place in the ring and two more bursts, or
/// as many as the pool has beside those kept for receiving. Long frames take at most half of the
/// free jumbo buffers, as receiving needs some too.
fn fill(pool: &Pool, ring: usize, load: &Load) -> Result<Replay> {
    let frames = load.frames.len();
    let is_long = |frame: &Vec<u8>| frame.len() > pool.capacity();
    let long = load.frames.iter().filter(|frame| is_long(frame)).count();
    let (spare, spare_jumbos) = pool.spare();
    let free = pool.jumbo_free();
    let mut turns = (ring + 2 * BURST).div_ceil(frames);
    if let Some(most) = free.div_ceil(2).min(spare_jumbos).checked_div(long) {
        turns = turns.min(most);
        if turns == 0 {
            return Err(Error::MemoryUnavailable(format!(
                "{long} of {frames} frames to generate are longer than {} bytes and need a jumbo \
                 buffer each, but only half of the free ones can be used ({free} of {} are free); \
                 create the memory with jumbo_buffers={} or more",
                pool.capacity(),
                pool.jumbo_count(),
                pool.jumbo_count() - free + 2 * long
            )));
        }
    }
    let too_few = || {
        Error::MemoryUnavailable(format!(
            "generating {frames} frames needs as many buffers, but only {spare} of {} are free \
             besides those kept for receiving; make the memory larger, or release bursts",
            pool.count()
        ))
    };
    if let Some(most) = spare.checked_div(frames - long) {
        turns = turns.min(most);
        if turns == 0 {
            return Err(too_few());
        }
    }
    let mut common = Vec::with_capacity(turns * (frames - long));
    pool.take_spare(&mut common, turns * (frames - long));
    let mut common = common.into_iter();
    let wanted = turns * frames;
    let mut ids = Vec::with_capacity(wanted);
    for frame in load.frames.iter().cycle().take(wanted) {
        let id = if is_long(frame) { pool.take_spare_jumbo() } else { common.next() };
        let Some(id) = id else {
            // Another thread has taken buffers meanwhile.
            pool.give(&ids);
            pool.give(common.as_slice());
            return Err(too_few());
        };
        // SAFETY: the buffer is ours and large enough (checked before); the frame is in private
        // memory, so they do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(frame.as_ptr(), pool.data_ptr(id), frame.len()) };
        ids.push(id);
    }
    let lengths = load.frames.iter().cycle().take(wanted).map(|frame| frame.len() as u32);
    Ok(Replay::new(pool, ids, lengths.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_become_due_at_the_rate() {
        assert_eq!(due(1000.0, Duration::from_millis(500), 0), 500);
        assert_eq!(due(1000.0, Duration::from_millis(500), 490), 10);
        assert_eq!(due(1000.0, Duration::from_millis(500), 600), 0);
    }
}
