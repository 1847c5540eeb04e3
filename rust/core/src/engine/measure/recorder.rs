//! Records the frames that one receive queue receives.

use super::tracker::{Arrival, Tracker};
use crate::engine::streams::{Key, Program, SIGNATURE, Sight};
use crate::net::Burst;
use crate::{Error, Result, memory};
use hdrhistogram::Histogram;
use std::sync::atomic::{AtomicU64, Ordering::Acquire};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Histograms have latencies from 1 ns to one hour, with three significant digits.
const LONGEST: u64 = 3_600_000_000_000;
const DIGITS: u8 = 3;

/// An empty histogram of latencies.
pub(super) fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, LONGEST, DIGITS)
        .map_err(|error| Error::Invalid(format!("a histogram: {error}")))
}

/// What the receive queues of a run have in common.
#[derive(Debug)]
pub(super) struct Expected<'a> {
    pub key: Key,
    pub programs: &'a [Program],
    /// One tracker for each queue of each stream.
    pub trackers: &'a [Mutex<Tracker>],
    /// For each tracker: the number after the last frame sent.
    pub below: &'a [AtomicU64],
    /// The number of sending queues.
    pub lanes: usize,
    /// Whether the payload before the signature is compared.
    pub verify: bool,
}

/// The counts of one receive queue.
#[derive(Debug)]
pub(super) struct Recorder {
    /// A histogram for each stream.
    pub latencies: Vec<Histogram<u64>>,
    /// All frames received, and their bytes.
    pub frames: u64,
    pub bytes: u64,
    /// Frames without a signature of this run.
    pub foreign: u64,
    /// Frames of this run with bit errors in the signature or in the payload.
    pub corrupt: u64,
    /// Since the last glance: number of frames, sum of latencies, longest latency.
    pub lately: (u64, u64, u64),
    scratch: Vec<u8>,
}

impl Recorder {
    pub(super) fn new(streams: usize) -> Result<Self> {
        Ok(Self {
            latencies: (0..streams).map(|_| histogram()).collect::<Result<_>>()?,
            frames: 0,
            bytes: 0,
            foreign: 0,
            corrupt: 0,
            lately: (0, 0, 0),
            scratch: Vec::new(),
        })
    }

    /// Records a burst received at `now`. Returns whether any frame was of this run.
    pub(super) fn see(&mut self, expected: &Expected<'_>, burst: &Burst, now: u64) -> bool {
        let mut held: Option<(usize, MutexGuard<'_, Tracker>)> = None;
        let mut any = false;
        for index in 0..burst.len() {
            if let Some((data, length)) = burst.frame(index) {
                memory::prefetch(data.wrapping_add(length.saturating_sub(SIGNATURE)));
            }
        }
        for index in 0..burst.len() {
            let Some((data, length)) = burst.frame(index) else { break };
            self.frames += 1;
            self.bytes += length as u64;
            any |= self.look(expected, data, length, now, &mut held);
        }
        any
    }

    #[inline]
    pub(super) fn look<'a>(
        &mut self,
        expected: &Expected<'a>,
        data: *const u8,
        length: usize,
        now: u64,
        held: &mut Option<(usize, MutexGuard<'a, Tracker>)>,
    ) -> bool {
        let Some(end) = length.checked_sub(SIGNATURE) else {
            self.foreign += 1;
            return false;
        };
        let mut bytes = [0; SIGNATURE];
        // SAFETY: the bytes are within a frame of the burst. They are copied once, because the
        // device may change them at any time.
        unsafe { std::ptr::copy_nonoverlapping(data.add(end), bytes.as_mut_ptr(), SIGNATURE) };
        let mark = match expected.key.read(bytes) {
            Sight::Ours(mark) => mark,
            Sight::Corrupt => {
                self.corrupt += 1;
                return true;
            }
            Sight::Foreign => {
                self.foreign += 1;
                return false;
            }
        };
        let source = usize::from(mark.source);
        let stream = source / expected.lanes;
        let is_sent = expected.below.get(source).is_some_and(|end| mark.number < end.load(Acquire));
        let program = expected.programs.get(stream).filter(|program| program.is_signed());
        let (Some(program), true, Some(latency)) = (program, is_sent, mark.age(now)) else {
            self.corrupt += 1;
            return true;
        };
        if held.as_ref().is_none_or(|(number, _)| *number != source) {
            *held = None; // unlock before locking another
            let tracker = expected.trackers[source].lock();
            *held = Some((source, tracker.unwrap_or_else(PoisonError::into_inner)));
        }
        let Some((_, tracker)) = held else { return true };
        let read = |to: &mut [u8]| {
            let Some(from) = end.checked_sub(to.len()) else { return false };
            // SAFETY: the bytes are within the same frame, before the signature.
            unsafe { std::ptr::copy_nonoverlapping(data.add(from), to.as_mut_ptr(), to.len()) };
            true
        };
        if expected.verify && !program.is_whole(tracker.whole(mark.number), &mut self.scratch, read)
        {
            self.corrupt += 1;
            return true;
        }
        if tracker.arrived(mark.number, latency) == Arrival::New {
            self.latencies[stream].saturating_record(latency);
            let (count, sum, most) = &mut self.lately;
            *count += 1;
            *sum = sum.saturating_add(latency);
            *most = (*most).max(latency);
        }
        true
    }
}
