//! The control queue (section 5.1.6.5): its commands, and the executed ones.

pub(in crate::net) mod class;
pub(in crate::net) mod commands;
pub(in crate::net) mod journal;
mod pairs;
pub(in crate::net) mod queue;
pub(in crate::net) mod rss;

pub use commands::{Coalescing, ReceiveMode};
pub use rss::Rss;
