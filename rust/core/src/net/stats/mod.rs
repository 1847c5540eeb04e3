//! Counters of queues, frame classes, time stamps and taps.

pub(in crate::net) mod classes;
mod counter;
mod counters;
pub(in crate::net) mod tap;
pub(in crate::net) mod watch;

pub use classes::{Counting, FrameClasses};
pub(crate) use counter::Counter;
pub use counters::{ExtendedStats, PortStats, QueueStats};
pub(in crate::net) use counters::{LivePairStats, LiveQueueStats};
pub use tap::{TapCounts, TapReader, TapRecord};
