//! Sends the same frames again and again.
//!
//! Buffers are filled once: a transmitted buffer comes back with its frame still in it,
//! so that sending it again costs a descriptor and nothing else.

use super::BURST;
use super::control::{Control, Report};
use super::lanes::{lanes, pairs_of};
use crate::memory::Pool;
use crate::net::{Claim, Port, Replay, TxQueue};
use crate::{Error, Result};
use std::time::{Duration, Instant};

/// Between two looks at the clock of a load of a few frames a second.
const NAP: Duration = Duration::from_micros(100);
/// How long frames of an earlier load may take to come back.
const LEFTOVERS: Duration = Duration::from_secs(1);

/// What to send, and how fast.
#[derive(Clone, Debug)]
pub struct Load {
    /// The frames, sent in turn.
    pub frames: Vec<Vec<u8>>,
    /// Frames a second in all; as fast as the device takes them without.
    pub rate: Option<f64>,
}

impl Load {
    /// What each of so many queues sends: the same frames, and its part of the rate.
    pub(super) fn shared_by(&self, queues: usize) -> Self {
        let rate = self.rate.map(|rate| rate / queues.max(1) as f64);
        Self { frames: self.frames.clone(), rate }
    }
}

/// Sends a load until the control ends it.
///
/// # Errors
/// [`Error::Invalid`] for a load with no frame or one that does not fit a buffer;
/// [`Error::MemoryUnavailable`] without buffers; what ended the port; [`Error::Busy`].
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
            // Nothing is due for a long while yet: leave the processor to others.
            std::thread::sleep(NAP);
        }
    }
    report.elapsed = control.elapsed();
    Ok(report)
}

/// A port's transmit queue with a load in it, until dropped.
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
        let mut tx = port.pair(lane)?.claim_tx()?;
        let give_up = Instant::now() + LEFTOVERS;
        while tx.has_replay() {
            tx.reclaim().map_err(|error| port.fault(error))?;
            if Instant::now() > give_up {
                return Err(Error::Busy(format!(
                    "the device still has frames of an earlier generate after {LEFTOVERS:?}"
                )));
            }
        }
        let replay = fill(port.pool(), tx.size(), load)?;
        tx.load(replay);
        Ok(Self { port, tx, rate: load.rate, start: Instant::now() })
    }

    /// Whether frames are so few that a nap between two is not noticed.
    fn is_slow(&self) -> bool {
        self.rate.is_some_and(|rate| rate * NAP.as_secs_f64() < 1.0)
    }

    /// Sends what is due now, at most a burst; false when that was nothing, or nothing fitted.
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

/// How many frames the rate has made due that are not sent yet.
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
        return Err(Error::Invalid(format!("a rate is above 0 frames a second, not {rate}")));
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

/// A buffer for each place in the ring and for two bursts besides, filled in turn; fewer where the
/// memory has not so many beside those that are kept for receiving. Long frames take half of the
/// free jumbo buffers at most: received ones need some too.
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
                "{long} of {frames} frames to generate have more than {} bytes and take a jumbo \
                 buffer each, together at most half of those that are free ({free} of {}); make \
                 the memory with jumbo_buffers={} or more",
                pool.capacity(),
                pool.jumbo_count(),
                pool.jumbo_count() - free + 2 * long
            )));
        }
    }
    let too_few = || {
        Error::MemoryUnavailable(format!(
            "generating {frames} frames takes as many buffers, and {spare} of {} are free beside \
             those that are kept for receiving; make the memory larger, or release bursts",
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
            // Somebody else has taken some meanwhile.
            pool.give(&ids);
            pool.give(common.as_slice());
            return Err(too_few());
        };
        // SAFETY: the buffer is ours and holds the frame (checked before); the frame is
        // private memory, so they do not overlap.
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
    fn a_rate_makes_frames_due_as_time_passes() {
        assert_eq!(due(1000.0, Duration::from_millis(500), 0), 500);
        assert_eq!(due(1000.0, Duration::from_millis(500), 490), 10);
        assert_eq!(due(1000.0, Duration::from_millis(500), 600), 0);
    }
}
