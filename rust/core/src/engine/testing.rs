//! Streams and the receiving side of a measurement without ports, for tests and fuzzing.

use super::measure::{Counted, Seeing};
use super::streams::{Program, Stream, first_frames};
use crate::Result;

/// The longest frame of a stream.
pub const LONGEST: usize = 2048;

/// The first frames that one queue sends of a stream. Panics if one of them is written beyond the
/// lines of its buffer.
///
/// # Errors
/// [`crate::Error::Invalid`] for a stream that cannot be sent.
pub fn frames(stream: &Stream, count: u64) -> Result<Vec<Vec<u8>>> {
    Ok(first_frames(&Program::new(stream, LONGEST)?, count))
}

/// What was made of frames that arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrived {
    /// As in [`super::Glance`].
    pub received: u64,
    /// As in [`super::Glance`].
    pub duplicates: u64,
    /// As in [`super::Glance`].
    pub reordered: u64,
    /// As in [`super::Glance`].
    pub corrupt: u64,
    /// As in [`super::Glance`].
    pub foreign: u64,
    /// As in [`super::StreamOutcome`].
    pub stale: u64,
}

impl From<Counted> for Arrived {
    fn from(counted: Counted) -> Self {
        let Counted { total, corrupt, foreign, stale } = counted;
        Self {
            received: total.received,
            duplicates: total.duplicates,
            reordered: total.reordered,
            corrupt,
            foreign,
            stale,
        }
    }
}

/// The receiving side of a measurement of one stream and one queue.
#[derive(Debug)]
pub struct Receiver(Seeing);

impl Receiver {
    /// Of a stream of which `sent` frames were sent.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] for a stream that cannot be sent.
    pub fn new(stream: &Stream, sent: u64) -> Result<Self> {
        Seeing::new(Program::new(stream, LONGEST)?, sent).map(Self)
    }

    /// The signature of a frame of this run, whether it was sent or not.
    #[must_use]
    pub fn signature(&self, source: u16, number: u64, time: u64) -> Vec<u8> {
        self.0.signature(source, number, time)
    }

    /// A frame arrives.
    pub fn see(&mut self, frame: &[u8], now: u64) {
        self.0.see(frame, now);
    }

    /// What was counted so far.
    #[must_use]
    pub fn counts(&self) -> Arrived {
        self.0.counts().into()
    }
}
