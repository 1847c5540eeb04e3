//! When a loop ends, and what it reports.

use super::budget::Share;
use crate::Result;
use std::iter::Sum;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Bursts between two reads of the clock.
const STRIDE: u32 = 64;
/// Pause after an empty ring. Polling without a pause takes the ring's cache lines from the peer
/// that fills it and slows that peer down.
const PAUSE: Duration = Duration::from_micros(4);
/// Pauses in a row. After that the ring is polled without a pause, so that a lone frame does not
/// wait.
const PAUSES: u32 = 50;
/// Time between two calls of a loop's [`Tick`].
const TICK: Duration = Duration::from_millis(50);

/// What a loop has done.
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
    /// Frames dropped because a packet function returned an invalid verdict.
    pub bad_verdict: u64,
    /// Frames dropped because the transmitting port cannot do their pending offload (checksum or
    /// segmentation), or because the offload does not fit the frame.
    pub no_offload: u64,
    /// How long the loop has run.
    pub elapsed: Duration,
}

impl Report {
    /// Frames that the loop moved: those sent, or those received if it only receives.
    #[must_use]
    pub fn packets(&self) -> u64 {
        if self.sent > 0 || self.received == 0 { self.sent } else { self.received }
    }
}

impl<'a> Sum<&'a Self> for Report {
    /// The report of loops that ran at the same time.
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

/// Called by a loop about 20 times a second with its report so far. `false` or an error ends the
/// loop.
pub type Tick<'a> = &'a mut dyn FnMut(&Report) -> Result<bool>;

/// When a loop ends.
pub struct Control<'a> {
    pub(super) tick: Tick<'a>,
    start: Instant,
    pub(super) deadline: Option<Instant>,
    pub(super) packets: Option<u64>,
    /// The processors of the loop's threads, used cyclically.
    pub(super) cpus: &'a [usize],
    /// This thread's part of a number of frames that several threads share.
    share: Option<Share<'a>>,
    /// Set by another thread of the loop.
    stop: Option<&'a AtomicBool>,
    next_tick: Instant,
    turns: u32,
    /// Pauses left for an empty ring.
    pauses: u32,
}

impl std::fmt::Debug for Control<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

impl<'a> Control<'a> {
    /// The loop ends after `duration`, after `packets` frames, or when `tick` returns `false`.
    pub fn new(duration: Option<Duration>, packets: Option<u64>, tick: Tick<'a>) -> Self {
        let start = Instant::now();
        let deadline = duration.and_then(|duration| start.checked_add(duration));
        let next_tick = start + TICK;
        let (cpus, share, stop) = (&[] as &[usize], None, None);
        Self { tick, start, deadline, packets, cpus, share, stop, next_tick, turns: 0, pauses: 0 }
    }

    /// Pins the thread of each queue pair to one of these processors, in order and cyclically,
    /// while the loop runs.
    #[must_use]
    pub fn on(self, cpus: &'a [usize]) -> Self {
        Self { cpus, ..self }
    }

    /// The control of one of several threads.
    pub(super) fn of_thread(
        tick: Tick<'a>,
        deadline: Option<Instant>,
        share: Option<Share<'a>>,
        stop: &'a AtomicBool,
    ) -> Self {
        Self { deadline, share, stop: Some(stop), ..Self::new(None, None, tick) }
    }

    /// Its time and its frames end it no more; only [`Tick`], and an error.
    pub(super) fn go_on_without_end(&mut self) {
        (self.deadline, self.packets, self.share) = (None, None, None);
    }

    /// Time since the loop started.
    pub(super) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Pauses if a turn moved no frame, soon after one that did.
    #[inline]
    pub(super) fn pause(&mut self, moved: usize) {
        if moved > 0 {
            self.pauses = PAUSES;
        } else if self.pauses > 0 {
            self.pauses -= 1;
            let since = Instant::now();
            while since.elapsed() < PAUSE {
                std::hint::spin_loop();
            }
        }
    }

    /// How many more frames may be moved after `done`.
    #[inline]
    pub(super) fn left(&mut self, done: u64) -> usize {
        let left = match (self.packets, &mut self.share) {
            (None, None) => return usize::MAX,
            (Some(packets), _) => packets.saturating_sub(done),
            (None, Some(share)) => share.left(done),
        };
        usize::try_from(left).unwrap_or(usize::MAX)
    }

    /// Whether all requested frames were moved.
    #[inline]
    pub(super) fn is_over(&mut self, done: u64) -> bool {
        match (self.packets, &mut self.share) {
            (None, None) => false,
            (Some(packets), _) => done >= packets,
            (None, Some(share)) => share.is_spent(done),
        }
    }

    /// Whether the loop goes on. Reads the clock and calls `alive` once in [`STRIDE`] turns.
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
        self.check(report, alive)
    }

    /// [`Control::go_on`] for callers that ask rarely: checks every time.
    #[cold]
    pub(super) fn check(
        &mut self,
        report: &mut Report,
        alive: impl FnOnce() -> Result<()>,
    ) -> Result<bool> {
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
        // `alive` comes second because `tick` may close a port or fork.
        Ok((self.tick)(report)? && alive().map(|()| true)?)
    }
}
