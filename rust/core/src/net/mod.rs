//! The virtio-net device (VIRTIO 1.3, section 5.1): a [`Port`] and its queues of
//! packets, carried in [`Burst`]s.
//!
//! From the bottom: `stats` counts, `packet` has frames and what is left to do to them, `interrupts`
//! says when a queue shall interrupt; `device` is what the queues of a port share, and `queue` moves
//! frames; `control` asks the device; `port` is the whole of it, and `lifecycle` brings it up, resets
//! it, and brings it up again after it was lost with its QEMU.

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
pub use port::Port;
pub(crate) use queue::{Claim, Replay, RxQueue, TxQueue};
pub use queue::{Outage, QueuePair, RingFormat, SendStop, Wake};
pub use stats::{
    ExtendedStats, FrameClasses, PortStats, QueueStats, TapCounts, TapReader, TapRecord,
};
pub use watching::QueueTap;
