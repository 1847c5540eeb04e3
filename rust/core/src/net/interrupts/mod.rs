//! Interrupts: eventfds, suppression, the level-triggered line, and whether to poll before
//! sleeping.

pub(in crate::net) mod events;
pub(in crate::net) mod intx;
pub(in crate::net) mod spin;
pub(in crate::net) mod too_long;
pub(in crate::net) mod wakeup;

pub use events::{Events, PairEvents, Vectors};
