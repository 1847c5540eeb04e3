//! Counters of queues, and what kinds of frames they moved.

pub(in crate::net) mod classes;
mod counter;
mod counters;

pub use classes::{Counting, FrameClasses};
pub(crate) use counter::Counter;
pub use counters::{ExtendedStats, PortStats, QueueStats};
pub(in crate::net) use counters::{LivePairStats, LiveQueueStats};
