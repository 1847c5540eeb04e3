//! TCP connections: connect, send and receive.

use super::area::Area;
use super::core::Host;
use super::demux::Flow;
use super::entry::{Id, Kind};
use super::state::{State, refuse};
use super::turn::Cause;
use crate::Result;
use smoltcp::socket::tcp;
use std::net::SocketAddr;
use std::time::Instant;

/// Starts a connection.
pub(super) fn begin(state: &mut State, id: Id, v6: bool, to: SocketAddr) -> Result<()> {
    if to.is_ipv6() != v6 {
        return Err(refuse(libc::EAFNOSUPPORT, format!("{to} has the other address family")));
    }
    if to.port() == 0 || to.ip().is_multicast() || to.ip().is_unspecified() {
        return Err(refuse(libc::ECONNREFUSED, format!("connecting to {to}")));
    }
    let source = state.source(to.ip())?;
    if state.is_ours(to.ip()) {
        return Err(refuse(
            libc::EADDRNOTAVAIL,
            format!("{to} is the stack's own address, and the stack has no loopback"),
        ));
    }
    let entry = state.entry(id)?;
    if matches!(entry.kind, Kind::Listener(_)) {
        return Err(refuse(libc::EISCONN, "the socket is listening"));
    }
    let bound = entry.local;
    let local = match bound {
        Some(local) if !local.ip().is_unspecified() => local,
        Some(local) => SocketAddr::new(source, local.port()),
        None => SocketAddr::new(source, state.ephemeral(true, Some((source, to)))?),
    };
    let flow = Flow { local, remote: to };
    if state.flows.contains_key(&flow) {
        return Err(refuse(
            libc::EADDRINUSE,
            format!("there is already a connection from {local} to {to}"),
        ));
    }
    let now = Instant::now();
    let State { sockets, interface, .. } = state;
    let Some(entry) = sockets.get_mut(&id) else {
        return Err(refuse(libc::EBADF, "the socket is closed"));
    };
    let socket = entry.make_tcp();
    let begun =
        socket.connect(interface.context(), (to.ip(), to.port()), (local.ip(), local.port()));
    begun.map_err(|error| Host::invalid(format!("connecting to {to}: {error}")))?;
    entry.local = Some(local);
    entry.remote = Some(to);
    if let Kind::Stream(stream) = &mut entry.kind {
        stream.last = tcp::State::SynSent;
        stream.heard = now;
    }
    state.flows.insert(flow, id);
    state.egress(id, Cause::Called);
    Ok(())
}

/// Copies bytes into a connection's send buffer and sends what the peer's window allows.
pub(super) fn send(state: &mut State, id: Id, bytes: Area) -> Result<Option<usize>> {
    let entry = state.told(id, false)?;
    if let Some(errno) = entry.error.take() {
        entry.announce();
        return Err(refuse(errno, "sending"));
    }
    if entry.connecting() {
        return Ok(None);
    }
    let connected = matches!(&entry.kind, Kind::Stream(stream) if stream.connected);
    let Some(tcp) = entry.tcp_mut().filter(|_| connected) else {
        return Err(refuse(libc::ENOTCONN, "sending: the socket is not connected"));
    };
    if !tcp.may_send() {
        return Err(refuse(libc::EPIPE, "sending: the connection is closed"));
    }
    if bytes.is_empty() {
        return Ok(Some(0));
    }
    let mut count = 0;
    // The free space of a ring buffer has at most two parts.
    for _ in 0..2 {
        let rest = bytes.skip(count);
        let taken = tcp.send(|room| {
            let taken = rest.read(room);
            (taken, taken)
        });
        count += taken.unwrap_or(0);
    }
    if count == 0 {
        return Ok(None);
    }
    entry.counters.tx_bytes += count as u64;
    state.egress(id, Cause::Called);
    Ok(Some(count))
}

/// Copies bytes from a connection's receive buffer and updates the window.
pub(super) fn receive(state: &mut State, id: Id, into: Area, peek: bool) -> Result<Option<usize>> {
    let entry = state.told(id, true)?;
    if entry.shut_read {
        return Ok(Some(0));
    }
    let connected = matches!(&entry.kind, Kind::Stream(stream) if stream.connected);
    let connecting = entry.connecting();
    let mut count = 0;
    let mut ended = false;
    match entry.tcp_mut() {
        None => return Err(refuse(libc::ENOTCONN, "receiving: the socket is not connected")),
        Some(_) if connecting => return Ok(None),
        Some(tcp) if peek => match tcp.peek(into.len()) {
            Ok(data) => count = into.write(data),
            Err(_) => ended = true,
        },
        Some(tcp) => {
            // The data in a ring buffer has at most two parts.
            for _ in 0..2 {
                let rest = into.skip(count);
                match tcp.recv(|data| {
                    let taken = rest.write(data);
                    (taken, taken)
                }) {
                    Ok(taken) => count += taken,
                    Err(_) => ended = true,
                }
            }
        }
    }
    if count > 0 {
        if !peek {
            entry.counters.rx_bytes += count as u64;
            state.egress(id, Cause::Called);
        }
        return Ok(Some(count));
    }
    if let Some(errno) = entry.error.take() {
        entry.announce();
        return Err(refuse(errno, "receiving"));
    }
    if into.is_empty() && connected {
        return Ok(Some(0));
    }
    if !ended {
        return Ok(None);
    }
    if !connected {
        return Err(refuse(libc::ENOTCONN, "receiving: the socket is not connected"));
    }
    Ok(Some(0))
}
