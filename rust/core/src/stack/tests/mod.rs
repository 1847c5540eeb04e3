//! Tests of a host with a peer in memory.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod calls;
mod garbage;
mod hops;
mod leases;
mod peer;
mod segments;
