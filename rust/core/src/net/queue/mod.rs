//! A receive and a transmit queue: a ring and the packet buffers that pass through it.
//!
//! `common` is shared, `ring` is the ring of either format; `receive` posts buffers and takes
//! filled ones, `merge` assembles frames of several buffers; `transmit` sends frames and takes
//! their buffers back, `described` sends frames with offloads, and `replay` sends frames
//! repeatedly. `claim` is the lock of a queue, which a loop can claim, in the order of
//! [`crate::locks`]; `outage` is a ring whose backend is gone. `pair` has one queue of each
//! direction, `waiting` and `waits` wait for it.

pub(in crate::net) mod claim;
mod common;
mod described;
pub(in crate::net) mod merge;
pub(in crate::net) mod outage;
pub(in crate::net) mod pair;
mod receive;
mod replay;
mod ring;
mod transmit;
pub(in crate::net) mod waiting;
mod waits;

pub(crate) use claim::Claim;
pub(in crate::net) use common::Common;
pub use outage::Outage;
pub use pair::QueuePair;
pub(crate) use receive::RxQueue;
pub(crate) use replay::Replay;
pub(in crate::net) use ring::AnyRing;
pub use ring::RingFormat;
pub use transmit::SendStop;
pub(crate) use transmit::TxQueue;
pub use waiting::Wake;
