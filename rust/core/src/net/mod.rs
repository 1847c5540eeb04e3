//! The virtio-net device (VIRTIO 1.3, section 5.1): a [`Port`] and its packet queues; frames are
//! carried in [`Burst`]s.
//!
//! Bottom up: `stats` counts, `packet` holds frames and their offloads, `interrupts` decides when a
//! queue interrupts; `device` is shared by the queues of a port, `queue` moves frames, `control`
//! sends commands; `port` combines them, and `lifecycle` starts, resets and restarts the device.

mod config;
mod control;
mod device;
mod interruptible;
mod interrupts;
mod lifecycle;
mod packet;
mod port;
mod queue;
mod stats;
mod watching;

pub use config::{Line, Mac, NetConfig, RssLimits};
pub use control::{Coalescing, ReceiveMode, Rss};
pub use interrupts::{Events, PairEvents, Vectors};
pub use lifecycle::PortOptions;
pub use packet::{
    Burst, FrameBuffer, FrameSource, HASH_HEADER_LEN, HEADER_LEN, HashTypes, Offload, Refusal,
    segmentation_name,
};
pub(crate) use packet::{Layout, Transport, recalculate};
pub use port::Port;
pub(crate) use queue::{Claim, Replay, RxQueue, TxQueue};
pub use queue::{Outage, QueuePair, RingFormat, SendStop, Wake};
pub use stats::{
    Counting, ExtendedStats, FrameClasses, PortStats, QueueStats, TapCounter, TapCounts, TapReader,
    TapRecord,
};
pub use watching::QueueTap;
