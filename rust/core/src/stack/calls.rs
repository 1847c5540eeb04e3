//! Calls that concern a whole host: addresses, DHCP, ARP, ping, counters.

use super::accounts::{HostCounters, SocketCounters};
use super::addresses::Network;
use super::core::Host;
use super::entry::{Entry, Kind};
use super::probe::{Echo, Request};
use super::sockets::counters;
use super::state::State;
use super::{Check, Cidr, Lease, arp, dhcp, random, spell};
use crate::net::Mac;
use crate::{Error, Result};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::icmp;
use smoltcp::wire::{EthernetAddress, Icmpv4Packet, Icmpv4Repr, Icmpv6Packet, Icmpv6Repr};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

/// The longest payload of an echo request over IPv4: 65,535 bytes less the headers.
const LONGEST: usize = 65_507;

/// A description of one socket.
#[derive(Clone, Debug)]
pub struct Connection {
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// The state, named as `ss` does, in lower case.
    pub state: &'static str,
    /// The local address, if any.
    pub local: Option<SocketAddr>,
    /// The peer's address, if any.
    pub remote: Option<SocketAddr>,
    /// Bytes that the program has not received yet; connections that it has not accepted yet.
    pub receive_queue: usize,
    /// Bytes that the peer has not acknowledged yet.
    pub send_queue: usize,
    /// Its counters.
    pub counters: SocketCounters,
}

impl Host {
    /// All addresses.
    ///
    /// # Errors
    /// [`Error::Closed`] in a forked child.
    pub fn networks(&self) -> Result<Vec<Network>> {
        Ok(self.shared.lock()?.networks())
    }
    /// The default gateways, IPv4 first.
    ///
    /// # Errors
    /// [`Error::Closed`] in a forked child.
    pub fn gateways(&self) -> Result<Vec<IpAddr>> {
        Ok(self.shared.lock()?.gateways())
    }
    /// The name servers of the DHCP lease.
    ///
    /// # Errors
    /// [`Error::Closed`] in a forked child.
    pub fn name_servers(&self) -> Result<Vec<Ipv4Addr>> {
        Ok(self.shared.lock()?.name_servers())
    }
    /// The MAC address.
    #[must_use]
    pub fn mac(&self) -> Mac {
        self.shared.wire.mac()
    }

    /// Adds an address and sets the default gateway of its family.
    ///
    /// # Errors
    /// [`Error::Invalid`]: then nothing has changed.
    pub fn configure(&self, network: Network, gateway: Option<IpAddr>) -> Result<()> {
        self.change(|state| state.configure(network, gateway))
    }

    /// Removes an address, and the gateway that only its network reaches. Removing the address of the
    /// lease ends the lease.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is none of the host's.
    pub fn remove_address(&self, address: IpAddr) -> Result<()> {
        self.change(|state| state.remove_address(address))
    }

    fn change(&self, work: impl FnOnce(&mut State) -> Result<()>) -> Result<()> {
        let mut state = self.shared.lock()?;
        state.check()?;
        let result = work(&mut state);
        state.common_egress();
        self.shared.flush(state);
        result
    }

    /// Gets a lease by DHCP and keeps renewing it.
    ///
    /// # Errors
    /// [`Error::Timeout`]; those of the wire, and what `check` returns.
    pub fn dhcp(&self, timeout: Option<Duration>, check: Check<'_>) -> Result<Lease> {
        let mut state = self.shared.lock()?;
        state.check()?;
        state.begin_lease();
        self.shared.nudge(state);
        let found = self.wait_news(timeout, check, |state| {
            state.check()?;
            let client = state.dhcp.as_ref();
            Ok(client.and_then(|client| client.lease.clone()))
        });
        match found {
            Ok(Some(lease)) => Ok(lease),
            other => {
                let mut state = self.shared.lock()?;
                let error = state.dhcp.as_ref().map(|client| client.timeout(timeout));
                state.end_lease();
                other.and_then(|_| Err(error.unwrap_or_else(dhcp::no_client)))
            }
        }
    }

    /// Waits for an IPv6 address of global scope from a router advertisement (RFC 4862).
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub fn await_global_v6(&self, timeout: Option<Duration>, check: Check<'_>) -> Result<Network> {
        let found = self.wait_news(timeout, check, |state| {
            state.check()?;
            Ok(state.networks().into_iter().find(|network| match network.address {
                IpAddr::V6(address) => !address.is_unicast_link_local(),
                IpAddr::V4(_) => false,
            }))
        })?;
        found.ok_or_else(|| {
            Error::Timeout(format!("no router advertised a prefix within {}", spell(timeout)))
        })
    }

    /// Resolves an address by ARP. Returns the MAC address and the time from request to reply.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an address that no other host of the network can have;
    /// [`Error::Timeout`]; those of the wire, and what `check` returns.
    pub fn arp(
        &self,
        target: Ipv4Addr,
        timeout: Option<Duration>,
        check: Check<'_>,
    ) -> Result<(Mac, Duration)> {
        let mut state = self.shared.lock()?;
        state.check()?;
        let own = state
            .networks()
            .into_iter()
            .find_map(|network| match network.address {
                IpAddr::V4(address) => Some(Cidr { address, prefix: network.prefix }),
                IpAddr::V6(_) => None,
            })
            .ok_or_else(|| {
                Error::Invalid(
                    "arp needs an IPv4 address and the stack has none; use dhcp=True, address= or \
                     configure()"
                        .to_owned(),
                )
            })?;
        arp::check_target(own, target)?;
        let number = state.probes.number();
        state.probes.requests.push(Request { number, target, found: None });
        drop(state);
        let mut sent: Option<Instant> = None;
        let found = self.wait_news(timeout, check, |state| {
            state.check()?;
            let mine = state.probes.requests.iter().find(|request| request.number == number);
            if let (Some(Some((mac, at))), Some(sent)) = (mine.map(|request| request.found), sent) {
                return Ok(Some((Mac(mac.0), at.saturating_duration_since(sent))));
            }
            if sent.is_none_or(|at| at.elapsed() >= arp::REPEAT) {
                let frame = arp::request(EthernetAddress(state.mac.0), own.address, target);
                state.device.outbox.push(&frame);
                sent = Some(Instant::now());
            }
            Ok(None)
        });
        let mut state = self.shared.lock()?;
        state.probes.requests.retain(|request| request.number != number);
        drop(state);
        found?.ok_or_else(|| arp::no_reply(target, timeout))
    }

    /// Sends one ICMP echo request with `payload` bytes. Returns the round-trip time, or `None`
    /// without a reply.
    ///
    /// # Errors
    /// [`Error::Invalid`], ENETUNREACH; those of the wire, and what `check` returns.
    pub fn ping(
        &self,
        target: IpAddr,
        sequence: u16,
        payload: usize,
        timeout: Option<Duration>,
        check: Check<'_>,
    ) -> Result<Option<Duration>> {
        let mut state = self.shared.lock()?;
        state.check()?;
        let bad = |why: String| Error::Invalid(format!("{target} cannot be pinged: {why}"));
        if state.is_ours(target) {
            return Err(bad("it is the stack's own address".to_owned()));
        }
        if target.is_multicast() || target.is_unspecified() || state.is_broadcast(target) {
            return Err(bad("expected the address of one host".to_owned()));
        }
        let longest = if target.is_ipv6() { state.interface_mtu() - 48 } else { LONGEST };
        if payload > longest {
            return Err(bad(format!("a payload has at most {longest} bytes, not {payload}")));
        }
        let source = state.source(target)?;
        let number = state.probes.number();
        let ident = 0x8000 | (number as u16 & 0x7fff);
        let data = pattern(payload);
        let request = echo_request(source, target, ident, sequence, &data);
        let room = request.len();
        let buffer = |packets: usize| {
            icmp::PacketBuffer::new(
                vec![icmp::PacketMetadata::EMPTY; packets],
                vec![0; packets * room],
            )
        };
        let mut socket = icmp::Socket::new(buffer(2), buffer(1));
        let bound = socket.bind(icmp::Endpoint::Ident(ident));
        bound.map_err(|error| bad(error.to_string()))?;
        let sent = socket.send_slice(&request, target.into());
        sent.map_err(|error| bad(error.to_string()))?;
        let handle = state.common.add(socket);
        let (departed, replied) = (None, None);
        state.probes.echoes.push(Echo { number, handle, target, request, departed, replied });
        drop(state);
        let found = self.wait_news(timeout, check, |state| {
            state.check()?;
            let waits = state.probes.echoes.iter().find(|echo| echo.number == number);
            let Some(echo) = waits else { return Ok(None) };
            if let (Some(departed), Some(replied)) = (echo.departed, echo.replied) {
                return Ok(Some(replied.saturating_duration_since(departed)));
            }
            if echo.departed.is_none() {
                state.device.finishing = true;
                state.common_egress();
                state.finish_datagram();
                let State { probes, common, .. } = state;
                probes.arrived(common);
                let echo = state.probes.echoes.iter().find(|echo| echo.number == number);
                if echo.is_some_and(|echo| echo.departed.is_none()) {
                    state.resolve(target, None);
                }
            }
            Ok(None)
        });
        let mut state = self.shared.lock()?;
        if let Some(at) = state.probes.echoes.iter().position(|echo| echo.number == number) {
            let echo = state.probes.echoes.swap_remove(at);
            state.common.remove(echo.handle);
        }
        found
    }

    /// The counters.
    ///
    /// # Errors
    /// [`Error::Closed`] in a forked child.
    pub fn counters(&self) -> Result<HostCounters> {
        Ok(self.shared.lock()?.counters)
    }

    /// All sockets, in the order of creation.
    ///
    /// # Errors
    /// [`Error::Closed`] in a forked child.
    pub fn connections(&self) -> Result<Vec<Connection>> {
        let state = self.shared.lock()?;
        let mut ids: Vec<_> = state.sockets.keys().copied().collect();
        ids.sort_unstable();
        let all = ids.iter().filter_map(|id| state.sockets.get(id));
        Ok(all.map(describe).collect())
    }
}

fn describe(entry: &Entry) -> Connection {
    use smoltcp::socket::tcp::State as Tcp;
    let (protocol, state, receive_queue, send_queue) = match &entry.kind {
        Kind::Listener(listener) => ("tcp", "listen", listener.ready.len(), 0),
        Kind::Datagram(_) => {
            let state = if entry.remote.is_some() { "connected" } else { "unconnected" };
            let (received, sent) =
                entry.udp().map_or((0, 0), |udp| (udp.recv_queue(), udp.send_queue()));
            ("udp", state, received, sent)
        }
        Kind::Stream(_) => {
            let state = match entry.state() {
                Tcp::Closed => "closed",
                Tcp::Listen => "listen",
                Tcp::SynSent => "syn-sent",
                Tcp::SynReceived => "syn-received",
                Tcp::Established => "established",
                Tcp::FinWait1 => "fin-wait-1",
                Tcp::FinWait2 => "fin-wait-2",
                Tcp::CloseWait => "close-wait",
                Tcp::Closing => "closing",
                Tcp::LastAck => "last-ack",
                Tcp::TimeWait => "time-wait",
            };
            let (received, sent) =
                entry.tcp().map_or((0, 0), |tcp| (tcp.recv_queue(), tcp.send_queue()));
            ("tcp", state, received, sent)
        }
    };
    Connection {
        protocol,
        state,
        local: entry.local,
        remote: entry.remote,
        receive_queue,
        send_queue,
        counters: counters(entry),
    }
}

/// A payload: up to 8 random bytes, which distinguish it from earlier ones, then a pattern.
fn pattern(length: usize) -> Vec<u8> {
    let nonce = random().to_ne_bytes();
    (0..length).map(|at| nonce.get(at).copied().unwrap_or(at as u8)).collect()
}

/// An ICMP echo request.
fn echo_request(source: IpAddr, target: IpAddr, ident: u16, seq_no: u16, data: &[u8]) -> Vec<u8> {
    let checksums = ChecksumCapabilities::default();
    match (source, target) {
        (IpAddr::V6(source), IpAddr::V6(target)) => {
            let request = Icmpv6Repr::EchoRequest { ident, seq_no, data };
            let mut bytes = vec![0; request.buffer_len()];
            let mut packet = Icmpv6Packet::new_unchecked(&mut bytes);
            request.emit(&source, &target, &mut packet, &checksums);
            bytes
        }
        _ => {
            let request = Icmpv4Repr::EchoRequest { ident, seq_no, data };
            let mut bytes = vec![0; request.buffer_len()];
            request.emit(&mut Icmpv4Packet::new_unchecked(&mut bytes), &checksums);
            bytes
        }
    }
}
