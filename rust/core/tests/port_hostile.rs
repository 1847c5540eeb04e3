//! Ports with a hostile device: invalid values in every field of both ring formats and of the
//! packet header, in both directions; memory that changes while it is read; and forwarding from
//! such a port to another.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "port_hostile/catalogue.rs"]
mod catalogue;
#[path = "port_hostile/device.rs"]
mod device;
#[path = "port_hostile/forwarding.rs"]
mod forwarding;
#[path = "port_hostile/scribble.rs"]
mod scribble;
