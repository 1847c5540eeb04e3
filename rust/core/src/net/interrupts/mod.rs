//! Interrupts: what they signal, when a queue shall raise one, the level-triggered line, and whether
//! polling before a sleep pays.

pub(in crate::net) mod events;
pub(in crate::net) mod intx;
pub(in crate::net) mod spin;
pub(in crate::net) mod too_long;
pub(in crate::net) mod wakeup;

pub use events::{Events, PairEvents, Vectors};
