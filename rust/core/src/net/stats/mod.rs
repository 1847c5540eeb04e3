//! Counters of queues, and frame classes.

pub(in crate::net) mod classes;
mod counter;
mod counters;

pub use classes::FrameClasses;
pub(crate) use counter::Counter;
pub use counters::{ExtendedStats, PortStats, QueueStats};
pub(in crate::net) use counters::{LivePairStats, LiveQueueStats};
