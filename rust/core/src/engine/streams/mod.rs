//! Streams of frames: a template, fields that differ from frame to frame, a rate, and a signature by
//! which a receiver recognises each frame.
//!
//! What a frame has in its fields depends on its number only, so that several queues can share a
//! stream, and a receiver knows what was sent. Checksums are not calculated anew: each template knows
//! the sum of what does not change.

mod layout;
mod pattern;
mod signature;
mod source;
mod template;

pub use pattern::{Field, Pattern, Place};
pub(super) use signature::{Key, SIGNATURE, Sight};
pub(super) use source::Source;
pub(super) use template::{Program, divisor};

/// Frames that are sent in turn.
#[derive(Clone, Debug)]
pub struct Stream {
    /// What is sent, one after the other, from the front again; with one, always that.
    pub frames: Vec<Vec<u8>>,
    /// What differs.
    pub fields: Vec<Field>,
    /// Frames a second; as fast as the device takes them without.
    pub rate: Option<f64>,
    /// So many frames are sent at one moment, as the rate allows.
    pub burst: u64,
    /// Whether each frame has a signature: its last 18 bytes.
    pub flow: bool,
}
