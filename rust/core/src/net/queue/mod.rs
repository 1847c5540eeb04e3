//! A receive and a transmit queue: a ring, and the packet buffers that pass through it.
//!
//! `common` is what both have, `ring` the ring of either format; `receive` posts buffers and takes
//! them with frames in them, `transmit` sends frames and takes their buffers back. `magazine` has
//! frames that are sent again and again.

mod common;
mod magazine;
mod receive;
mod ring;
mod transmit;

pub(super) use common::Common;
pub(crate) use magazine::Magazine;
pub(crate) use receive::RxQueue;
pub(super) use ring::AnyRing;
pub use transmit::SendStop;
pub(crate) use transmit::TxQueue;
