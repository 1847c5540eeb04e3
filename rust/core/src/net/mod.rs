//! The virtio-net device (VIRTIO 1.3, section 5.1): a [`Port`] and its queues of
//! packets, carried in [`Burst`]s.

mod burst;
mod config;
mod frame;
mod header;
mod intx;
mod merge;
mod port;
mod queue;
mod slot;
mod stats;

pub use burst::Burst;
pub use config::{Mac, NetConfig};
pub use frame::{FrameBuffer, FrameSource};
pub use header::HEADER_LEN;
pub use port::{Events, Port, PortOptions, RingFormat, Wake};
pub use queue::SendStop;
pub(crate) use queue::{Magazine, RxQueue, TxQueue};
pub(crate) use slot::Claim;
pub use stats::{PortStats, QueueStats};
