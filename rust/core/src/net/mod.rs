//! The virtio-net device (VIRTIO 1.3, section 5.1): a [`Port`] and its queues of
//! packets, carried in [`Burst`]s.
//!
//! `bring_up` negotiates and makes a port, `port` is the whole of it, `device` what its queues
//! share; `pair` moves frames, `waiting` and `wakeup` wait for them; `control` asks the device, `commands` and `rss` say what.

mod bring_up;
mod burst;
mod commands;
mod config;
mod control;
mod device;
mod frame;
mod header;
mod intx;
mod legacy;
mod merge;
mod pair;
mod port;
mod queue;
mod rss;
mod slot;
mod spin;
mod stats;
mod waiting;
mod wakeup;

pub use bring_up::{Events, PairEvents, PortOptions, RingFormat, Vectors};
pub use burst::Burst;
pub use commands::{Coalescing, ReceiveMode};
pub use config::{Mac, NetConfig, RssLimits};
pub use frame::{FrameBuffer, FrameSource};
pub use header::{HASH_HEADER_LEN, HEADER_LEN};
pub use pair::QueuePair;
pub use port::Port;
pub use queue::SendStop;
pub(crate) use queue::{Magazine, RxQueue, TxQueue};
pub use rss::{HashTypes, Rss};
pub(crate) use slot::Claim;
pub use stats::{PortStats, QueueStats};
pub use waiting::Wake;
