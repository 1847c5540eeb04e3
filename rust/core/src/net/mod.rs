//! The virtio-net device (VIRTIO 1.3, section 5.1): a [`Port`] and its queues of
//! packets, carried in [`Burst`]s.
//!
//! `bring_up` negotiates and makes a port, `port` is the whole of it, `device` what its queues
//! share; `pair` moves frames, `offload` is what is left to do to one and `onward` sends it so,
//! `waiting` and `wakeup` wait for them; `control` asks the device, `commands` and `rss` say what.
//! `vacancy` is a ring whose backend is gone; `slot` is the lock of a queue and `exclusive` that of a
//! change, in the order of [`crate::locks`];
//! `restart` brings a device up again that was reset, or lost with its QEMU.

mod bring_up;
mod burst;
mod classes;
mod commands;
mod config;
mod control;
mod device;
mod exclusive;
mod frame;
mod header;
mod intx;
mod legacy;
mod less;
mod merge;
mod offload;
mod onward;
mod pair;
mod patiently;
mod port;
mod queue;
mod restart;
mod rss;
mod slot;
mod spin;
mod stats;
mod vacancy;
mod waiting;
mod wakeup;

pub use bring_up::{Events, PairEvents, PortOptions, RingFormat, Vectors};
pub use burst::Burst;
pub use classes::FrameClasses;
pub use commands::{Coalescing, ReceiveMode};
pub use config::{Line, Mac, NetConfig, RssLimits};
pub use frame::{FrameBuffer, FrameSource};
pub use header::{HASH_HEADER_LEN, HEADER_LEN};
pub use offload::{Offload, Refusal, name as segmentation_name};
pub use pair::QueuePair;
pub use port::Port;
pub use queue::SendStop;
pub(crate) use queue::{Magazine, RxQueue, TxQueue};
pub use rss::{HashTypes, Rss};
pub(crate) use slot::Claim;
pub use stats::{ExtendedStats, PortStats, QueueStats};
pub use vacancy::Vacancy;
pub use waiting::Wake;
