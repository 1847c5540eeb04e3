//! `Socket`: the calls on one socket.

use super::accounts::SocketCounters;
use super::area::Area;
use super::core::{Host, Shared};
use super::entry::{Entry, Id, Kind, Listener, Options};
use super::ready::Ready;
use super::state::{State, refuse};
use super::streams::{begin, receive, send};
use super::turn::Cause;
use super::{Check, spell};
use crate::{Error, Result};
use smoltcp::socket::tcp;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The longest queue of connections that are not accepted yet.
const BACKLOG: usize = 4096;

/// The transport protocol of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Stream,
    /// UDP.
    Datagram,
}

/// Which half of a connection is shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// Receiving.
    Read,
    /// Sending: the peer gets a FIN.
    Write,
    /// Both.
    Both,
}

/// One socket of a host. Dropping it closes it.
pub struct Socket {
    shared: Arc<Shared>,
    id: Id,
    transport: Transport,
    v6: bool,
}

fn would_block(what: &str) -> Error {
    refuse(libc::EAGAIN, what)
}

impl Host {
    /// Creates a socket.
    ///
    /// # Errors
    /// EBADF after the host was closed, ENETDOWN after its wire failed.
    pub fn socket(&self, transport: Transport, v6: bool) -> Result<Socket> {
        let mut state = self.shared.lock()?;
        state.check()?;
        let options = Options::default();
        let entry = match transport {
            Transport::Stream => Entry::stream(v6, options),
            Transport::Datagram => Entry::datagram(v6, options),
        };
        let id = state.add(entry);
        Ok(Socket { shared: self.shared.clone(), id, transport, v6 })
    }
}

impl Socket {
    /// Its transport protocol.
    #[must_use]
    pub fn transport(&self) -> Transport {
        self.transport
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        let mut state = self.shared.lock()?;
        let result = work(&mut state);
        self.shared.flush(state);
        result
    }

    /// Calls `attempt` after every change of the socket until it succeeds.
    fn wait<T>(
        &self,
        what: &str,
        timeout: Option<Duration>,
        check: Check<'_>,
        mut attempt: impl FnMut(&mut State, Id) -> Result<Option<T>>,
    ) -> Result<T> {
        let id = self.id;
        let found = self.shared.wait_for(
            timeout,
            check,
            |state| attempt(state, id),
            |state, begin| {
                let entry = state.entry(id)?;
                if begin {
                    entry.waiters += 1;
                } else {
                    entry.waiters = entry.waiters.saturating_sub(1);
                }
                Ok(entry.changed.clone())
            },
        )?;
        found.ok_or_else(|| {
            if timeout == Some(Duration::ZERO) {
                would_block(what)
            } else {
                Error::Timeout(format!("{what} within {}", spell(timeout)))
            }
        })
    }

    /// Binds it to an address and a port; port 0 selects a free one.
    ///
    /// # Errors
    /// EADDRINUSE, EADDRNOTAVAIL, EINVAL if it is already bound.
    pub fn bind(&self, address: SocketAddr) -> Result<()> {
        self.with(|state| state.bind(self.id, address))
    }

    /// Listens for connections, of which `backlog` can wait to be accepted.
    ///
    /// # Errors
    /// EINVAL if it is connected, EOPNOTSUPP for UDP.
    pub fn listen(&self, backlog: usize) -> Result<()> {
        if self.transport == Transport::Datagram {
            return Err(refuse(libc::EOPNOTSUPP, "a UDP socket cannot listen"));
        }
        self.with(|state| {
            state.check()?;
            if state.entry(self.id)?.local.is_none() {
                let any = if self.v6 { "[::]:0" } else { "0.0.0.0:0" };
                let any = any.parse().map_err(|_| Host::invalid("no address"))?;
                state.bind(self.id, any)?;
            }
            let entry = state.entry(self.id)?;
            let backlog = backlog.clamp(1, BACKLOG);
            match &mut entry.kind {
                Kind::Listener(listener) => listener.backlog = backlog,
                Kind::Stream(_) if entry.handle.is_none() => {
                    entry.kind = Kind::Listener(Listener { backlog, ..Listener::default() });
                }
                _ => return Err(Host::invalid("a connected socket cannot listen")),
            }
            entry.announce();
            Ok(())
        })
    }

    /// Accepts the next connection.
    ///
    /// # Errors
    /// [`Error::Timeout`], or EAGAIN with a timeout of 0; EINVAL if it does not listen.
    pub fn accept(
        &self,
        timeout: Option<Duration>,
        check: Check<'_>,
    ) -> Result<(Self, SocketAddr)> {
        self.wait("no connection arrived", timeout, check, |state, id| {
            let failed = state.check();
            if failed.is_err()
                && let Ok(entry) = state.told(id, true)
            {
                entry.error = None;
                entry.announce();
            }
            failed?;
            let entry = state.entry(id)?;
            let Kind::Listener(listener) = &mut entry.kind else {
                return Err(Host::invalid("the socket does not listen: call listen() first"));
            };
            if listener.ready.is_empty() {
                return Ok(None);
            }
            // A connection that is accepted without waiting will be waited on. Without a descriptor
            // for that it stays in the queue, as in the kernel's.
            let ready = if timeout == Some(Duration::ZERO) { Some(Ready::new()?) } else { None };
            let Some(child) = listener.ready.pop_front() else { return Ok(None) };
            entry.announce();
            let Some(entry) = state.sockets.get_mut(&child) else { return Ok(None) };
            entry.owned = true;
            entry.ready = ready;
            entry.announce();
            let remote = entry.remote;
            let Some(remote) = remote else { return Ok(None) };
            let socket = Self {
                shared: self.shared.clone(),
                id: child,
                transport: self.transport,
                v6: self.v6,
            };
            Ok(Some((socket, remote)))
        })
    }

    /// Connects to a peer. For UDP, only sets the peer's address.
    ///
    /// # Errors
    /// ECONNREFUSED, ETIMEDOUT, EHOSTUNREACH, ENETUNREACH, EISCONN; [`Error::Timeout`], or
    /// EINPROGRESS with a timeout of 0.
    pub fn connect(
        &self,
        to: SocketAddr,
        timeout: Option<Duration>,
        check: Check<'_>,
    ) -> Result<()> {
        let to = SocketAddr::new(to.ip(), to.port());
        if self.transport == Transport::Datagram {
            return self.with(|state| super::datagrams::connect(state, self.id, self.v6, to));
        }
        let mut begun = false;
        let result = self.wait(&format!("no answer from {to}"), timeout, check, |state, id| {
            state.check()?;
            if !begun && state.entry(id)?.handle.is_none() {
                begin(state, id, self.v6, to)?;
            } else if !begun && !state.entry(id)?.connecting() {
                return Err(refuse(libc::EISCONN, "the socket is already connected"));
            }
            begun = true;
            let entry = state.entry(id)?;
            if let Some(errno) = entry.error.take() {
                return Err(refuse(errno, format!("connecting to {to}")));
            }
            if entry.connecting() {
                return Ok(None);
            }
            if entry.tcp().is_some_and(|tcp| tcp.may_send() || tcp.may_recv()) {
                Ok(Some(()))
            } else {
                Err(refuse(libc::ECONNABORTED, format!("connecting to {to}")))
            }
        });
        match result {
            Err(Error::Os { errno: libc::EAGAIN, .. }) => {
                Err(refuse(libc::EINPROGRESS, format!("connecting to {to}")))
            }
            other => other,
        }
    }

    /// Sends at least one of the bytes. Returns how many.
    ///
    /// # Errors
    /// EPIPE, ECONNRESET, ENOTCONN; [`Error::Timeout`], or EAGAIN with a timeout of 0.
    pub fn send(&self, bytes: Area, timeout: Option<Duration>, check: Check<'_>) -> Result<usize> {
        if self.transport == Transport::Datagram {
            return self.send_to(bytes, None, timeout, check);
        }
        self.wait("the peer takes no more", timeout, check, |state, id| send(state, id, bytes))
    }

    /// Sends all; `done` is how many have been taken, whatever ends it.
    ///
    /// # Errors
    /// As for [`Self::send`].
    pub fn send_all(
        &self,
        bytes: Area,
        timeout: Option<Duration>,
        check: Check<'_>,
        done: &mut usize,
    ) -> Result<()> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        while *done < bytes.len() {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            *done += self.send(bytes.skip(*done), left, check)?;
        }
        Ok(())
    }

    /// Receives at least one byte, waiting if necessary. Returns 0 after the peer's FIN.
    ///
    /// # Errors
    /// ECONNRESET, ENOTCONN; [`Error::Timeout`], or EAGAIN with a timeout of 0.
    pub fn recv(
        &self,
        into: Area,
        peek: bool,
        timeout: Option<Duration>,
        check: Check<'_>,
    ) -> Result<usize> {
        if self.transport == Transport::Datagram {
            return self.recv_from(into, peek, timeout, check).map(|(count, _, _)| count);
        }
        self.wait("nothing arrived", timeout, check, |state, id| receive(state, id, into, peek))
    }

    /// Sends one datagram; `None`: to the connected peer.
    ///
    /// # Errors
    /// EDESTADDRREQ, EMSGSIZE, EACCES, ENETUNREACH, ECONNREFUSED.
    pub fn send_to(
        &self,
        bytes: Area,
        to: Option<SocketAddr>,
        timeout: Option<Duration>,
        check: Check<'_>,
    ) -> Result<usize> {
        if self.transport == Transport::Stream {
            return self.send(bytes, timeout, check);
        }
        self.wait("too many datagrams wait for a next hop", timeout, check, |state, id| {
            super::datagrams::send(state, id, self.v6, to, bytes.len(), |room| bytes.read(room))
        })
    }

    /// Receives one datagram. Returns the bytes received, its whole length, and its sender.
    ///
    /// # Errors
    /// [`Error::Timeout`], or EAGAIN with a timeout of 0; ECONNREFUSED.
    pub fn recv_from(
        &self,
        into: Area,
        peek: bool,
        timeout: Option<Duration>,
        check: Check<'_>,
    ) -> Result<(usize, usize, Option<SocketAddr>)> {
        if self.transport == Transport::Stream {
            let count = self.recv(into, peek, timeout, check)?;
            return Ok((count, count, None));
        }
        self.wait("nothing arrived", timeout, check, |state, id| {
            let found = super::datagrams::receive(state, id, peek, |data| into.write(data))?;
            Ok(found.map(|(count, whole, from)| (count, whole, Some(from))))
        })
    }

    /// The number of bytes that can be received now; for UDP, the length of the next datagram.
    ///
    /// # Errors
    /// EBADF.
    pub fn available(&self) -> Result<usize> {
        self.with(|state| {
            let entry = state.entry(self.id)?;
            if let Some(udp) = entry.udp_mut() {
                return Ok(udp.peek().map_or(0, |(data, _)| data.len()));
            }
            Ok(entry.tcp().map_or(0, tcp::Socket::recv_queue))
        })
    }

    /// Waits until receiving would return at once. Returns what [`Self::available`] would.
    ///
    /// # Errors
    /// [`Error::Timeout`], or EAGAIN with a timeout of 0; EBADF, ENOTCONN.
    pub fn wait_readable(&self, timeout: Option<Duration>, check: Check<'_>) -> Result<usize> {
        self.wait("nothing arrived", timeout, check, |state, id| {
            let failed = state.check();
            let entry = state.told(id, true)?;
            if !entry.readable() {
                failed?;
                return Ok(None);
            }
            if let Some(udp) = entry.udp_mut() {
                return Ok(Some(udp.peek().map_or(0, |(data, _)| data.len())));
            }
            Ok(Some(entry.tcp().map_or(0, tcp::Socket::recv_queue)))
        })
    }

    /// Shuts down one half of a connection, or both.
    ///
    /// # Errors
    /// ENOTCONN.
    pub fn shutdown(&self, half: Half) -> Result<()> {
        self.with(|state| {
            let entry = state.entry(self.id)?;
            if self.transport == Transport::Datagram {
                if entry.remote.is_none() {
                    return Err(refuse(libc::ENOTCONN, "the socket is not connected"));
                }
                entry.shut_read |= half != Half::Write;
                entry.shut_write |= half != Half::Read;
                return Ok(());
            }
            if matches!(entry.kind, Kind::Listener(_)) {
                return Ok(());
            }
            if entry.tcp().is_none_or(|tcp| tcp.remote_endpoint().is_none()) {
                return Err(refuse(libc::ENOTCONN, "the socket is not connected"));
            }
            entry.shut_read |= half != Half::Write;
            if half != Half::Read {
                entry.shut_write = true;
                if let Some(tcp) = entry.tcp_mut() {
                    tcp.close();
                }
                state.egress(self.id, Cause::Called);
            }
            state.entry(self.id)?.announce();
            Ok(())
        })
    }

    /// Closes it. Data sent before is still delivered.
    pub fn close(&self) {
        if let Ok(mut state) = self.shared.lock() {
            state.ended.remove(&self.id);
            state.close(self.id);
            self.shared.flush(state);
        }
    }

    /// The local address, if it is bound.
    ///
    /// # Errors
    /// EBADF.
    pub fn local(&self) -> Result<Option<SocketAddr>> {
        self.with(|state| Ok(state.entry(self.id)?.local))
    }
    /// The peer's address.
    ///
    /// # Errors
    /// ENOTCONN.
    pub fn peer(&self) -> Result<SocketAddr> {
        self.with(|state| {
            let entry = state.entry(self.id)?;
            let connected = match &entry.kind {
                Kind::Stream(stream) => stream.connected,
                _ => true,
            };
            entry
                .remote
                .filter(|_| connected)
                .ok_or_else(|| refuse(libc::ENOTCONN, "the socket is not connected"))
        })
    }
    /// Its options.
    ///
    /// # Errors
    /// EBADF.
    pub fn options(&self) -> Result<Options> {
        self.with(|state| Ok(state.entry(self.id)?.options))
    }
    /// Changes its options.
    ///
    /// # Errors
    /// EBADF, EINVAL.
    pub fn set_options(&self, change: impl FnOnce(&mut Options)) -> Result<()> {
        self.with(|state| {
            let entry = state.entry(self.id)?;
            let before = entry.options;
            change(&mut entry.options);
            entry.options.receive_buffer = entry.options.receive_buffer.clamp(4096, 1 << 28);
            entry.options.send_buffer = entry.options.send_buffer.clamp(4096, 1 << 28);
            let (old, new) = (before.receive_buffer, entry.options.receive_buffer);
            if (old, before.send_buffer) != (new, entry.options.send_buffer)
                && entry.handle.is_some()
            {
                // smoltcp cannot resize its buffers.
                entry.options.receive_buffer = before.receive_buffer;
                entry.options.send_buffer = before.send_buffer;
                return Err(Host::invalid(
                    "a buffer size can only be set before the socket is connected or bound",
                ));
            }
            entry.apply_options();
            state.egress(self.id, Cause::Called);
            Ok(())
        })
    }
    /// Returns and clears the pending error (SO_ERROR).
    ///
    /// # Errors
    /// EBADF.
    pub fn take_error(&self) -> Result<i32> {
        self.with(|state| {
            let entry = state.entry(self.id)?;
            let error = entry.error.take().unwrap_or(0);
            entry.announce();
            Ok(error)
        })
    }
    /// Joins or leaves a multicast group.
    ///
    /// # Errors
    /// EINVAL, EADDRINUSE, EADDRNOTAVAIL, ENOBUFS.
    pub fn membership(&self, group: IpAddr, join: bool) -> Result<()> {
        self.with(|state| super::datagrams::membership(state, self.id, self.v6, group, join))
    }
    /// A descriptor that is readable and writable when the socket is.
    ///
    /// # Errors
    /// EBADF; [`Error::Os`] if no more descriptors can be opened.
    pub fn descriptor(&self) -> Result<RawFd> {
        self.with(|state| {
            let entry = state.entry(self.id)?;
            if entry.ready.is_none() {
                entry.ready = Some(Ready::new()?);
                entry.announce();
            }
            let ready = entry.ready.as_ref().map(Ready::number);
            ready.ok_or_else(|| refuse(libc::EBADF, "the socket is closed"))
        })
    }
    /// Whether receiving, and whether sending, would return at once.
    ///
    /// # Errors
    /// EBADF.
    pub fn ready(&self) -> Result<(bool, bool)> {
        self.with(|state| {
            let entry = state.entry(self.id)?;
            Ok((entry.readable(), entry.writable()))
        })
    }
    /// Its counters.
    ///
    /// # Errors
    /// EBADF.
    pub fn counters(&self) -> Result<SocketCounters> {
        self.with(|state| Ok(counters(state.entry(self.id)?)))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.close();
    }
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket").field("id", &self.id).finish_non_exhaustive()
    }
}

pub(super) fn counters(entry: &Entry) -> SocketCounters {
    let mut counters = entry.counters;
    if let Kind::Stream(stream) = &entry.kind {
        counters.rtt = stream.track.rtt();
    }
    counters
}
