//! When a loop ends, and what it reports.

use super::budget::Share;
use crate::Result;
use std::iter::Sum;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// A loop looks at the clock every so many bursts.
const STRIDE: u32 = 64;
/// A ring that was found empty is left alone for so long. One that is looked at all the time has
/// its cache lines pulled away from the peer that fills it, which then fills it more slowly.
const REST: Duration = Duration::from_micros(4);
/// So often in a row; a ring that stays empty is looked at all the time, so that a lone frame
/// does not wait.
const RESTS: u32 = 50;
/// And calls its [`Tick`] this often.
const TICK: Duration = Duration::from_millis(50);

/// What a loop did so far, or in all.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Report {
    /// Frames received.
    pub received: u64,
    /// Frames queued for transmission.
    pub sent: u64,
    /// Bytes of the frames counted in `packets()`, without headers.
    pub bytes: u64,
    /// Turns of the loop that moved frames.
    pub bursts: u64,
    /// Turns that found nothing to do.
    pub idle: u64,
    /// Turns in which nothing was received, because the transmit ring was full.
    pub held: u64,
    /// Frames dropped because the transmit ring was full.
    pub ring_full: u64,
    /// Frames dropped on purpose: by `drop`, or by the verdict of a packet function.
    pub dropped: u64,
    /// Frames dropped because a packet function returned nonsense for them.
    pub bad_verdict: u64,
    /// Frames dropped because the port they would leave by cannot do what is left to do to them
    /// (their checksum, their segmentation), or because that does not fit them.
    pub no_offload: u64,
    /// How long the loop ran.
    pub elapsed: Duration,
}

impl Report {
    /// Frames that the loop moved: sent, or received where it only receives.
    #[must_use]
    pub fn packets(&self) -> u64 {
        if self.sent > 0 || self.received == 0 { self.sent } else { self.received }
    }
}

impl<'a> Sum<&'a Self> for Report {
    /// Of loops that ran at the same time.
    fn sum<I: Iterator<Item = &'a Self>>(reports: I) -> Self {
        reports.fold(Self::default(), |sum, report| Self {
            received: sum.received + report.received,
            sent: sum.sent + report.sent,
            bytes: sum.bytes + report.bytes,
            bursts: sum.bursts + report.bursts,
            idle: sum.idle + report.idle,
            held: sum.held + report.held,
            ring_full: sum.ring_full + report.ring_full,
            dropped: sum.dropped + report.dropped,
            bad_verdict: sum.bad_verdict + report.bad_verdict,
            no_offload: sum.no_offload + report.no_offload,
            elapsed: sum.elapsed.max(report.elapsed),
        })
    }
}

/// Called now and then from a loop, with what it did so far; an error ends the loop, `false` too.
pub type Tick<'a> = &'a mut dyn FnMut(&Report) -> Result<bool>;

/// When a loop ends.
pub struct Control<'a> {
    pub(super) tick: Tick<'a>,
    start: Instant,
    pub(super) deadline: Option<Instant>,
    pub(super) packets: Option<u64>,
    /// The processors of the loop's threads, in turn.
    pub(super) cpus: &'a [usize],
    /// Where several threads have a number of frames in common.
    share: Option<Share<'a>>,
    /// Set by another thread of the loop.
    stop: Option<&'a AtomicBool>,
    next_tick: Instant,
    turns: u32,
    /// How many more rests an empty ring gets.
    rests: u32,
}

impl std::fmt::Debug for Control<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

impl<'a> Control<'a> {
    /// Ends after `duration`, or after `packets` frames, or when `tick` says so.
    pub fn new(duration: Option<Duration>, packets: Option<u64>, tick: Tick<'a>) -> Self {
        let start = Instant::now();
        let deadline = duration.and_then(|duration| start.checked_add(duration));
        let next_tick = start + TICK;
        let (cpus, share, stop) = (&[] as &[usize], None, None);
        Self { tick, start, deadline, packets, cpus, share, stop, next_tick, turns: 0, rests: 0 }
    }

    /// The thread of the first queue pair runs on the first of these processors, and so on, while
    /// the loop runs; from the front again where there are fewer.
    #[must_use]
    pub fn on(self, cpus: &'a [usize]) -> Self {
        Self { cpus, ..self }
    }

    /// Of one of several threads.
    pub(super) fn part(
        tick: Tick<'a>,
        deadline: Option<Instant>,
        share: Option<Share<'a>>,
        stop: &'a AtomicBool,
    ) -> Self {
        Self { deadline, share, stop: Some(stop), ..Self::new(None, None, tick) }
    }

    /// Since the loop started.
    pub(super) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// After a turn that moved `moved` frames: waits a moment where there was none, but was
    /// before.
    #[inline]
    pub(super) fn rest(&mut self, moved: usize) {
        if moved > 0 {
            self.rests = RESTS;
        } else if self.rests > 0 {
            self.rests -= 1;
            let since = Instant::now();
            while since.elapsed() < REST {
                std::hint::spin_loop();
            }
        }
    }

    /// Frames that may be moved now, of which `done` were.
    #[inline]
    pub(super) fn left(&mut self, done: u64) -> usize {
        let left = match (self.packets, &mut self.share) {
            (None, None) => return usize::MAX,
            (Some(packets), _) => packets.saturating_sub(done),
            (None, Some(share)) => share.left(done),
        };
        usize::try_from(left).unwrap_or(usize::MAX)
    }

    /// Whether all were moved that were to be.
    #[inline]
    pub(super) fn is_over(&mut self, done: u64) -> bool {
        match (self.packets, &mut self.share) {
            (None, None) => false,
            (Some(packets), _) => done >= packets,
            (None, Some(share)) => share.is_spent(done),
        }
    }

    /// Whether the loop goes on. `alive` is asked now and then.
    #[inline]
    pub(super) fn go_on(
        &mut self,
        report: &mut Report,
        alive: impl FnOnce() -> Result<()>,
    ) -> Result<bool> {
        self.turns = self.turns.wrapping_add(1);
        if !self.turns.is_multiple_of(STRIDE) {
            return Ok(true);
        }
        self.look(report, alive)
    }

    #[cold]
    fn look(&mut self, report: &mut Report, alive: impl FnOnce() -> Result<()>) -> Result<bool> {
        if self.stop.is_some_and(|stop| stop.load(Relaxed)) {
            return Ok(false);
        }
        let now = Instant::now();
        report.elapsed = now - self.start;
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            return Ok(false);
        }
        if now < self.next_tick {
            return Ok(true);
        }
        self.next_tick = now + TICK;
        // In this order: what `tick` runs may close a port, or fork.
        Ok((self.tick)(report)? && alive().map(|()| true)?)
    }
}
