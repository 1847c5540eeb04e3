//! UDP: sending, receiving, multicast groups.

use super::entry::{Id, Kind, Sending};
use super::state::{State, refuse};
use crate::Result;
use smoltcp::iface::SocketSet;
use smoltcp::socket::udp;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// The longest payload over IPv4: 65,535 bytes less the headers.
const LONGEST: usize = 65_507;
/// How long a datagram waits for its next hop's MAC address.
const UNRESOLVED: Duration = Duration::from_secs(3);
/// The most datagrams of a socket that wait for their next hops.
const WAITING: usize = 64;

/// Sets the peer of a socket, and its own address if it has none.
pub(super) fn connect(state: &mut State, id: Id, v6: bool, to: SocketAddr) -> Result<()> {
    state.check()?;
    if to.is_ipv6() != v6 {
        return Err(refuse(libc::EAFNOSUPPORT, format!("{to} has the other address family")));
    }
    let source = state.source(to.ip())?;
    if state.entry(id)?.local.is_none() {
        state.bind(id, SocketAddr::new(source, 0))?;
    }
    state.entry(id)?.remote = Some(to);
    Ok(())
}

/// Sends one datagram of `length` bytes, filled in by `write`. Returns `None` if too many wait.
pub(super) fn send(
    state: &mut State,
    id: Id,
    v6: bool,
    to: Option<SocketAddr>,
    length: usize,
    write: impl FnOnce(&mut [u8]) -> usize,
) -> Result<Option<usize>> {
    let failed = state.check();
    let entry = state.told(id, false);
    failed?;
    let entry = entry?;
    if let Some(errno) = entry.error.take() {
        entry.announce();
        return Err(refuse(errno, "sending"));
    }
    let options = entry.options;
    if entry.shut_write {
        return Err(refuse(libc::EPIPE, "sending: the socket was shut down"));
    }
    let to = to.or(entry.remote);
    let to = to.ok_or_else(|| {
        refuse(libc::EDESTADDRREQ, "sending: the socket is not connected, and no address was given")
    })?;
    let bound = entry.local;
    let to = SocketAddr::new(to.ip(), to.port());
    if to.is_ipv6() != v6 {
        return Err(refuse(libc::EAFNOSUPPORT, format!("{to} has the other address family")));
    }
    if to.port() == 0 || to.ip().is_unspecified() {
        return Err(refuse(libc::EINVAL, format!("nothing can be sent to {to}")));
    }
    let source = state.source(to.ip())?;
    let longest = if v6 { state.interface_mtu() - 48 } else { LONGEST };
    if length > longest {
        let why = if v6 { "; IPv6 datagrams are not fragmented here" } else { "" };
        return Err(refuse(
            libc::EMSGSIZE,
            format!("a datagram to {to} can have at most {longest} bytes, not {length}{why}"),
        ));
    }
    if state.is_broadcast(to.ip()) && !options.broadcast {
        return Err(refuse(libc::EACCES, format!("{to} is a broadcast address: set SO_BROADCAST")));
    }
    if bound.is_none() {
        let any = if v6 { IpAddr::from([0u16; 8]) } else { IpAddr::from([0u8; 4]) };
        state.bind(id, SocketAddr::new(any, 0))?;
    }
    let now = state.now();
    let entry = state.entry(id)?;
    let local = entry.local.unwrap_or(SocketAddr::new(source, 0));
    let Kind::Datagram(datagram) = &mut entry.kind else {
        return Err(refuse(libc::EINVAL, "not a UDP socket"));
    };
    if datagram.sending.len() >= WAITING {
        return Ok(None);
    }
    let mut sending = match datagram.spare.take() {
        Some(spare)
            if spare.set.get::<udp::Socket<'_>>(spare.handle).payload_send_capacity() >= length =>
        {
            spare
        }
        _ => make(local.port(), length),
    };
    let socket = sending.set.get_mut::<udp::Socket<'_>>(sending.handle);
    let hops = if to.ip().is_multicast() { options.multicast_hops } else { options.hops };
    socket.set_hop_limit(Some(hops.max(1)));
    let own =
        if local.ip().is_unspecified() || local.ip().is_multicast() { source } else { local.ip() };
    let meta = udp::UdpMetadata { local_address: Some(own.into()), ..(to.ip(), to.port()).into() };
    match socket.send(length, meta) {
        Ok(room) => write(room),
        Err(error) => return Err(refuse(libc::ENOBUFS, format!("sending to {to}: {error}"))),
    };
    let State { interface, device, .. } = state;
    interface.poll_egress(now, device, &mut sending.set);
    // The buffer has room for one datagram.
    let left = !sending.set.get::<udp::Socket<'_>>(sending.handle).can_send();
    let fragmented = length + 28 > state.interface_mtu();
    if fragmented {
        state.finish_datagram();
    }
    let entry = state.entry(id)?;
    entry.counters.tx_packets += 1;
    entry.counters.tx_bytes += length as u64;
    if let Kind::Datagram(datagram) = &mut entry.kind {
        if left {
            sending.to = to.ip();
            sending.until = Instant::now() + UNRESOLVED;
            datagram.sending.push(sending);
        } else {
            datagram.spare = Some(sending);
        }
    }
    if left {
        state.egress(id, super::turn::Cause::Called);
    }
    Ok(Some(length))
}

fn make(port: u16, length: usize) -> Sending {
    let nothing = udp::PacketBuffer::new(Vec::new(), Vec::new());
    let room = length.next_power_of_two().clamp(2048, 1 << 16);
    let one = udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 1], vec![0; room]);
    let mut socket = udp::Socket::new(nothing, one);
    // Cannot fail: the port is not 0 and the socket is not bound.
    let _ = socket.bind(port);
    let mut set = SocketSet::new(Vec::new());
    let handle = set.add(socket);
    Sending { set, handle, to: IpAddr::from([0; 4]), until: Instant::now() }
}

/// Takes the next datagram. Returns the bytes taken, its length, and its sender.
pub(super) fn receive(
    state: &mut State,
    id: Id,
    peek: bool,
    take: impl FnOnce(&[u8]) -> usize,
) -> Result<Option<(usize, usize, SocketAddr)>> {
    let failed = state.check();
    let entry = state.told(id, true)?;
    if let Some(errno) = entry.error.take() {
        entry.announce();
        return Err(refuse(errno, "receiving"));
    }
    let peer = entry.remote;
    let Some(udp) = entry.udp_mut() else {
        failed?;
        return Ok(None);
    };
    let found = loop {
        let next = if peek { udp.peek().map(|(data, meta)| (data, *meta)) } else { udp.recv() };
        let Ok((data, meta)) = next else { break None };
        let from = SocketAddr::new(meta.endpoint.addr.into(), meta.endpoint.port);
        // The senders of fragmented datagrams were not checked before.
        if peer.is_some_and(|peer| peer != from) {
            if peek {
                let _ = udp.recv();
            }
            continue;
        }
        break Some((take(data), data.len(), from));
    };
    match found {
        Some((count, whole, from)) => {
            if !peek {
                entry.counters.rx_bytes += whole as u64;
                entry.announce();
            }
            Ok(Some((count, whole, from)))
        }
        None => {
            entry.announce();
            failed?;
            Ok(None)
        }
    }
}

/// Joins or leaves a multicast group.
pub(super) fn membership(
    state: &mut State,
    id: Id,
    v6: bool,
    group: IpAddr,
    join: bool,
) -> Result<()> {
    if !group.is_multicast() || group.is_ipv6() != v6 {
        return Err(refuse(
            libc::EINVAL,
            format!("{group} is not a multicast group of the socket's address family"),
        ));
    }
    let Kind::Datagram(datagram) = &mut state.entry(id)?.kind else {
        return Err(refuse(libc::EINVAL, "only UDP sockets can join multicast groups"));
    };
    let member = datagram.groups.contains(&group);
    match (join, member) {
        (true, true) => Err(refuse(libc::EADDRINUSE, format!("the socket is already in {group}"))),
        (false, false) => Err(refuse(libc::EADDRNOTAVAIL, format!("the socket is not in {group}"))),
        (true, false) => {
            state.group(group, true)?;
            if let Kind::Datagram(datagram) = &mut state.entry(id)?.kind {
                datagram.groups.push(group);
            }
            state.common_egress();
            Ok(())
        }
        (false, true) => {
            if let Kind::Datagram(datagram) = &mut state.entry(id)?.kind {
                datagram.groups.retain(|other| *other != group);
            }
            state.group(group, false)?;
            state.common_egress();
            Ok(())
        }
    }
}

impl State {
    /// The longest IP packet, bytes.
    pub(super) fn interface_mtu(&self) -> usize {
        self.device.mtu()
    }
    /// Whether an address is a broadcast address.
    pub(super) fn is_broadcast(&self, address: IpAddr) -> bool {
        let IpAddr::V4(address) = address else { return false };
        address.is_broadcast()
            || self.networks().iter().any(|network| match network.address {
                IpAddr::V4(own) if network.prefix < 31 => {
                    let mask = u32::MAX.checked_shl(32 - u32::from(network.prefix)).unwrap_or(0);
                    address.to_bits() == own.to_bits() | !mask
                }
                _ => false,
            })
    }
    /// Sends the interface's own pending packets.
    pub(super) fn common_egress(&mut self) {
        let now = self.now();
        self.interface.poll_egress(now, &mut self.device, &mut self.common);
    }
}
