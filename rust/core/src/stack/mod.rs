//! A TCP/IP stack: TCP, UDP, ICMP, IPv4 and IPv6 (smoltcp) on any wire, with its own thread.
//!
//! From the bottom: `packets` and `wire` carry frames; `demux` classifies received ones, so that each
//! socket has its own smoltcp set and idle sockets cost nothing; `device` is the smoltcp device.
//! `entry` is one socket, `state` everything behind the host's lock, `turn` the processing of frames
//! and timers, `life` the end of connections, `recovery` the retransmission of what was lost,
//! `addresses` the addresses and the lease of the `dhcp` client, `neighbours` the search for MAC
//! addresses. `core` has the thread and the lock; `sockets`, with `streams` and `datagrams`, and
//! `calls` are the API.
//!
//! The lock is only held for a bounded amount of work in memory, and released while the wire sends or
//! receives. A caller sends in its own thread; the host's thread receives and runs timers. It sleeps
//! in [`Wire::wait`] until a frame arrives, a timer ends or it is woken.

mod accounts;
mod address;
mod addresses;
mod area;
mod arp;
mod calls;
mod core;
mod datagrams;
mod demux;
mod device;
mod dhcp;
mod entry;
mod hops;
mod life;
mod neighbours;
mod packets;
mod probe;
mod ready;
mod recovery;
mod sockets;
mod state;
mod streams;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod turn;
mod vlan;
mod wire;

pub use accounts::{HostCounters, SocketCounters};
pub use address::{Cidr, parse_ipv4};
pub use addresses::Network;
pub use area::Area;
pub use calls::Connection;
pub use core::Host;
pub use dhcp::Lease;
pub use entry::{Congestion, Options};
pub use packets::{Packet, Packets};
pub use sockets::{Half, Socket, Transport};
pub use state::HostOptions;
pub use wire::{Abilities, Fed, PairWire, Wire};

use crate::Result;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// Called at least every 50 ms, and after a signal, while a call waits. The call returns its error.
pub type Check<'a> = &'a mut dyn FnMut() -> Result<()>;

/// A random number: the hash of nothing with random keys.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// A timeout, for messages.
fn spell(timeout: Option<Duration>) -> String {
    timeout.map_or_else(|| "any time".to_owned(), |timeout| format!("{} s", timeout.as_secs_f64()))
}
