//! A port whose device lies: a catalogue of every field of both ring formats and of the
//! packet header, for both directions; memory that changes while it is read; and what a loop passes on to another.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "port_hostile/catalogue.rs"]
mod catalogue;
#[path = "port_hostile/device.rs"]
mod device;
#[path = "port_hostile/onward.rs"]
mod onward;
#[path = "port_hostile/scribble.rs"]
mod scribble;
