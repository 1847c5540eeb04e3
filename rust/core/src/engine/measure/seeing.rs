//! The receiving side of a measurement without ports, for tests and fuzzing.

use super::recorder::{Expected, Recorder};
use super::tracker::{FlowCounts, Tracker};
use crate::Result;
use crate::engine::streams::{Key, Mark, Program};
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

/// What was counted.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) struct Counted {
    pub total: FlowCounts,
    pub corrupt: u64,
    pub foreign: u64,
    pub stale: u64,
}

/// One stream, one queue, and the frames that arrive.
#[derive(Debug)]
pub(in crate::engine) struct Seeing {
    key: Key,
    programs: [Program; 1],
    trackers: [Mutex<Tracker>; 1],
    below: [AtomicU64; 1],
    recorder: Recorder,
}

impl Seeing {
    pub(in crate::engine) fn new(program: Program, sent: u64) -> Result<Self> {
        let mut tracker = Tracker::new(0, 1, program.flows);
        tracker.begin(0);
        Ok(Self {
            key: Key::new(),
            programs: [program],
            trackers: [Mutex::new(tracker)],
            below: [AtomicU64::new(sent)],
            recorder: Recorder::new(1)?,
        })
    }

    pub(in crate::engine) fn signature(&self, source: u16, number: u64, time: u64) -> Vec<u8> {
        let [check, first, second] = self.key.seal(Mark { source, number, time });
        let mut bytes = (check as u16).to_be_bytes().to_vec();
        bytes.extend(first.to_be_bytes());
        bytes.extend(second.to_be_bytes());
        bytes
    }

    pub(in crate::engine) fn see(&mut self, frame: &[u8], now: u64) {
        let expected = Expected {
            key: self.key,
            programs: &self.programs,
            trackers: &self.trackers,
            below: &self.below,
            lanes: 1,
            verify: true,
        };
        self.recorder.look(&expected, frame.as_ptr(), frame.len(), now, &mut None);
    }

    pub(in crate::engine) fn counts(&self) -> Counted {
        let tracker = super::lock(&self.trackers[0]);
        Counted {
            total: tracker.total,
            corrupt: self.recorder.corrupt,
            foreign: self.recorder.foreign,
            stale: tracker.stale,
        }
    }
}
