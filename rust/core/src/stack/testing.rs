//! A host without a thread or a wire, for tests and fuzz targets.

use super::addresses::Network;
use super::datagrams;
use super::entry::{Entry, Kind, Listener, Options};
use super::packets::Packet;
use super::state::{HostOptions, State};
use super::streams::begin;
use super::turn::Cause;
use super::wire::Abilities;
use crate::net::{Mac, Offload};
use crate::{Error, Result};
use std::net::SocketAddr;
use std::time::Instant;

/// The host's MAC address.
pub const MAC: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);

/// A host that processes frames when it is called.
pub struct Bare(State);

impl Bare {
    /// A host with these addresses (`10.0.0.1/24`, `fd00::1/64`).
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn new(addresses: &[&str]) -> Result<Self> {
        let options = HostOptions { ipv6: true, mtu: None };
        let mut state = State::new(MAC, 1500, Abilities::default(), options)?;
        for address in addresses {
            let network: Network = address.parse()?;
            state.configure(network, None)?;
        }
        Ok(Self(state))
    }
    /// Adds a listening socket.
    ///
    /// # Errors
    /// As for `bind`.
    pub fn listen(&mut self, address: SocketAddr, backlog: usize) -> Result<()> {
        let id = self.0.add(Entry::stream(address.is_ipv6(), Options::default()));
        self.0.bind(id, address)?;
        self.0.entry(id)?.kind = Kind::Listener(Listener { backlog, ..Listener::default() });
        Ok(())
    }
    /// Adds a UDP socket.
    ///
    /// # Errors
    /// As for `bind`.
    pub fn datagrams(&mut self, address: SocketAddr) -> Result<()> {
        let id = self.0.add(Entry::datagram(address.is_ipv6(), Options::default()));
        self.0.bind(id, address)
    }
    /// Begins a connection from a new socket.
    ///
    /// # Errors
    /// As for `connect`.
    pub fn connect(&mut self, to: SocketAddr) -> Result<()> {
        let id = self.0.add(Entry::stream(to.is_ipv6(), Options::default()));
        begin(&mut self.0, id, to.is_ipv6(), to)
    }
    /// Sends a datagram of one byte from a new socket.
    ///
    /// # Errors
    /// As for `sendto`.
    pub fn send(&mut self, to: SocketAddr) -> Result<()> {
        let id = self.0.add(Entry::datagram(to.is_ipv6(), Options::default()));
        datagrams::send(&mut self.0, id, to.is_ipv6(), Some(to), 1, |_| 1).map(drop)
    }
    /// Receives a frame. `verified`: the device has verified its checksum.
    pub fn receive(&mut self, frame: &[u8], verified: bool) {
        let flags = if verified { Offload::DATA_VALID } else { 0 };
        let offload = Offload { flags, ..Offload::NONE };
        self.0.ingest(Packet { bytes: frame.to_vec(), offload }, Instant::now());
    }
    /// Runs timers and sends. Returns the sent frames.
    pub fn turn(&mut self) -> Vec<Vec<u8>> {
        self.0.run_timers();
        self.0.pump();
        let mut sent = Vec::new();
        while let Some(packet) = self.0.device.outbox.pop() {
            sent.push(packet.bytes);
        }
        sent
    }
    /// Accepts all connections, echoes received data, and closes every second connection.
    pub fn serve(&mut self) {
        let ids: Vec<_> = self.0.sockets.keys().copied().collect();
        for id in ids {
            let Some(entry) = self.0.sockets.get_mut(&id) else { continue };
            if let Kind::Listener(listener) = &mut entry.kind {
                for child in std::mem::take(&mut listener.ready) {
                    if let Some(child) = self.0.sockets.get_mut(&child) {
                        child.owned = true;
                    }
                }
                continue;
            }
            if let Some(tcp) = entry.tcp_mut() {
                let mut bytes = [0; 4096];
                let count = tcp.recv_slice(&mut bytes).unwrap_or(0);
                let _ = tcp.send_slice(&bytes[..count]);
                self.0.egress(id, Cause::Called);
                if id.is_multiple_of(2) {
                    self.0.close(id);
                }
            } else if let Some(udp) = entry.udp_mut() {
                while udp.recv().is_ok() {}
            }
        }
    }
    /// The number of sockets.
    #[must_use]
    pub fn sockets(&self) -> usize {
        self.0.sockets.len()
    }
    /// The error that ended the host.
    #[must_use]
    pub fn failure(&self) -> Option<&Error> {
        self.0.failure.as_ref()
    }
}

impl std::fmt::Debug for Bare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bare").finish_non_exhaustive()
    }
}
