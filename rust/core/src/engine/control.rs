//! When a loop ends, and what it reports.

use crate::Result;
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

/// Called now and then from a loop, with what it did so far; an error ends the loop, `false` too.
pub type Tick<'a> = &'a mut dyn FnMut(&Report) -> Result<bool>;

/// When a loop ends.
pub struct Control<'a> {
    tick: Tick<'a>,
    start: Instant,
    deadline: Option<Instant>,
    packets: Option<u64>,
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
        Self { tick, start, deadline, packets, next_tick: start + TICK, turns: 0, rests: 0 }
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

    /// Frames that may still be moved.
    #[inline]
    pub(super) fn left(&self, done: u64) -> usize {
        match self.packets {
            Some(packets) => usize::try_from(packets.saturating_sub(done)).unwrap_or(usize::MAX),
            None => usize::MAX,
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

    /// Whether the loop goes on, of one that asks rarely.
    #[cold]
    pub(super) fn look(
        &mut self,
        report: &mut Report,
        alive: impl FnOnce() -> Result<()>,
    ) -> Result<bool> {
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
