//! What looks at the frames that a queue moves, beside whoever moves them.
//!
//! Nothing does unless asked for: then a burst costs one branch, whatever there is that could look.

use super::classes::{Class, Counting, FrameClasses, LiveClasses};
use super::tap::Tap;
use crate::memory::{BufferId, Pool};
use rustix::time::{ClockId, clock_gettime};
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Frames are counted by length, and by destination.
const SIZES: u8 = 1;
const DESTINATIONS: u8 = 1 << 3;
/// Received bursts get the time.
const STAMPS: u8 = 1 << 1;
/// Frames are copied for somebody.
const TAPS: u8 = 1 << 2;

/// What looks at the frames of one queue.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    what: AtomicU8,
    classes: LiveClasses,
    /// Used by who has the queue; others hold it for a moment, to add or take out one.
    taps: Mutex<Vec<Tap>>,
}

impl Watch {
    /// Whether anything does.
    #[inline]
    pub(crate) fn on(&self) -> bool {
        self.what.load(Relaxed) != 0
    }

    /// The kinds of frames, where they are counted.
    pub(crate) fn classes(&self) -> Option<FrameClasses> {
        self.is(SIZES).then(|| self.classes.snapshot(self.is(DESTINATIONS)))
    }
    pub(crate) fn counting(&self) -> Counting {
        if self.is(DESTINATIONS) {
            Counting::Extended
        } else if self.is(SIZES) {
            Counting::Sizes
        } else {
            Counting::Basic
        }
    }
    pub(crate) fn count_classes(&self, counting: Counting) {
        self.turn(SIZES, counting != Counting::Basic);
        self.turn(DESTINATIONS, counting == Counting::Extended);
    }

    /// Whether received bursts get the time.
    pub(crate) fn stamps(&self) -> bool {
        self.is(STAMPS)
    }
    pub(crate) fn set_stamps(&self, on: bool) {
        self.turn(STAMPS, on);
    }

    /// Copies frames for one more, from the next burst on.
    pub(crate) fn add_tap(&self, tap: Tap) {
        self.taps().push(tap);
        self.turn(TAPS, true);
    }
    /// No longer copies frames for the tap of that number. Twice is fine.
    pub(crate) fn remove_tap(&self, number: u64) {
        let mut taps = self.taps();
        taps.retain(|tap| tap.number() != number);
        if taps.is_empty() {
            self.turn(TAPS, false);
        }
    }

    /// Looks at frames that lie in buffers of the pool: `frame(i)` is the `i`th and its length.
    /// The buffers are the caller's, or with a device that only reads them. Says when that was, where
    /// received bursts get the time and there is a frame. `class`: the `i`th one's, where that is known.
    #[inline(never)]
    pub(crate) fn see(
        &self,
        pool: &Pool,
        frames: usize,
        frame: impl Fn(usize) -> (BufferId, u32),
        class: Option<&dyn Fn(usize) -> Class>,
    ) -> Option<u64> {
        let what = self.what.load(Relaxed);
        if frames == 0 {
            return None;
        }
        let now = if what & (STAMPS | TAPS) != 0 { now() } else { 0 };
        match (what & SIZES != 0, what & DESTINATIONS != 0, class) {
            (false, ..) => {}
            (_, true, Some(class)) => self.classes.add_up(frames, class),
            (_, true, None) => self.classes.count(pool, frames, &frame),
            (_, false, _) => self.classes.count_sizes(frames, &frame),
        }
        if what & TAPS != 0 {
            for tap in self.taps().iter_mut() {
                tap.record(now, pool, frames, &frame);
            }
        }
        (what & STAMPS != 0).then_some(now)
    }

    fn is(&self, what: u8) -> bool {
        self.what.load(Relaxed) & what != 0
    }
    fn turn(&self, what: u8, on: bool) {
        if on {
            self.what.fetch_or(what, Relaxed);
        } else {
            self.what.fetch_and(!what, Relaxed);
        }
    }
    fn taps(&self) -> MutexGuard<'_, Vec<Tap>> {
        self.taps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nanoseconds since 1970, as `time.time_ns()` of Python has them: the system's clock, which is
/// read without a system call.
fn now() -> u64 {
    let now = clock_gettime(ClockId::Realtime);
    (now.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec as u64)
}
