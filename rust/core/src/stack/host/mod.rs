//! A host: TCP, UDP, ICMP, IPv4 and IPv6 on any wire, served by a thread of its own.
//!
//! From the bottom: `packets` and `wire` carry frames; `demux` finds out whom a received one is for, so that
//! each socket is a smoltcp set of its own, and idle ones cost nothing; `device` is smoltcp's side of
//! the wire. `entry` is one socket, `state` all that the host's lock protects, `turn` what is done with
//! frames and timers, `addresses` and `lease` what the host is called. `core` has the thread and the lock;
//! `sockets`, `datagrams` and `calls` are what a program calls.
//!
//! The lock is held for a bounded piece of work in memory only. Frames are taken from the wire and given
//! to it with the lock let go of. Whoever calls sends at once, in his own thread; the host's own
//! thread receives, and does what is due. It sleeps in [`Wire::wait`] until a frame comes, a timer
//! ends or it is woken.

mod accounts;
mod addresses;
mod calls;
mod core;
mod datagrams;
mod demux;
mod device;
mod entry;
mod lease;
mod packets;
mod probe;
mod ready;
mod sockets;
mod state;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod turn;
mod wire;

pub use accounts::{HostCounters, SocketCounters};
pub use addresses::Network;
pub use calls::Connection;
pub use core::Host;
pub use entry::{Congestion, Options};
pub use packets::{Packet, Packets};
pub use sockets::{Area, Half, Socket, Transport};
pub use state::HostOptions;
pub use wire::{Abilities, Fed, PairWire, Wire};
