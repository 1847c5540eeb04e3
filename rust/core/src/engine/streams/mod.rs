//! Streams of frames: a template, fields that vary from frame to frame, a rate, and a signature by
//! which the receiver recognises each frame.
//!
//! The fields of a frame depend only on its number, so several queues can share a stream, and the
//! receiver can compute what was sent. Checksums are updated incrementally: each template stores
//! the sum of its constant part. Headers are written whole: a template has a head for each
//! combination of the fields that repeat soon, and only the others are written one by one.

mod heads;
mod pattern;
mod signature;
mod source;
mod template;
mod written;

pub use pattern::{Field, Pattern, Place};
#[cfg(any(test, feature = "testing"))]
pub(super) use signature::Mark;
pub(super) use signature::{Key, SIGNATURE, Sight};
pub(super) use source::Source;
#[cfg(any(test, feature = "testing"))]
pub(super) use template::first_frames;
pub(super) use template::{Program, divisor};

/// A stream: frames that are sent cyclically.
#[derive(Clone, Debug)]
pub struct Stream {
    /// The frames to send in turn.
    pub frames: Vec<Vec<u8>>,
    /// The fields that vary.
    pub fields: Vec<Field>,
    /// Frames per second; `None`: as fast as the device takes them.
    pub rate: Option<f64>,
    /// The number of frames that are due at the same time.
    pub burst: u64,
    /// Whether each frame has a signature: its last 18 bytes.
    pub flow: bool,
}
