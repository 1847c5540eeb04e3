//! The state of one socket.

use super::accounts::{SocketCounters, Track};
use super::ready::Ready;
use super::recovery::Recovery;
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::{tcp, udp};
use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Condvar};
use std::time::{Duration, Instant};

/// The default size of a send or receive buffer in bytes.
pub(super) const BUFFER: usize = 1 << 20;
/// The most datagrams in a receive buffer.
const DATAGRAMS: usize = 512;

/// A socket's number, unique in its host.
pub(super) type Id = u64;

/// A congestion control algorithm, for new connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Congestion {
    /// RFC 9438.
    #[default]
    Cubic,
    /// RFC 5681.
    Reno,
    /// No congestion control: sends as much as the peer's window allows.
    None,
}

/// Socket options.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// TCP_NODELAY: segments are sent at once.
    pub no_delay: bool,
    /// SO_KEEPALIVE.
    pub keep_alive: bool,
    /// TCP_KEEPIDLE: silence before the first probe.
    pub keep_idle: Duration,
    /// TCP_KEEPINTVL: time between two probes.
    pub keep_interval: Duration,
    /// TCP_KEEPCNT: number of unanswered probes that ends the connection.
    pub keep_count: u32,
    /// TCP_USER_TIMEOUT: how long data may be unacknowledged.
    pub user_timeout: Duration,
    /// SO_BROADCAST.
    pub broadcast: bool,
    /// SO_REUSEADDR, or SO_REUSEPORT.
    pub reuse: bool,
    /// SO_RCVBUF, bytes.
    pub receive_buffer: usize,
    /// SO_SNDBUF, bytes.
    pub send_buffer: usize,
    /// IP_TTL, IPV6_UNICAST_HOPS.
    pub hops: u8,
    /// IP_MULTICAST_TTL, IPV6_MULTICAST_HOPS.
    pub multicast_hops: u8,
    /// SO_LINGER with 0 s: close resets.
    pub reset_on_close: bool,
    /// TCP_CONGESTION.
    pub congestion: Congestion,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            no_delay: false,
            keep_alive: false,
            // The defaults of Linux.
            keep_idle: Duration::from_secs(7200),
            keep_interval: Duration::from_secs(75),
            keep_count: 9,
            user_timeout: Duration::from_secs(924),
            broadcast: false,
            reuse: false,
            receive_buffer: BUFFER,
            send_buffer: BUFFER,
            hops: 64,
            multicast_hops: 1,
            reset_on_close: false,
            congestion: Congestion::default(),
        }
    }
}

/// A smoltcp socket that sends one datagram.
pub(super) struct Sending {
    pub(super) set: SocketSet<'static>,
    pub(super) handle: SocketHandle,
    /// The destination.
    pub(super) to: IpAddr,
    /// When to stop waiting for the next hop.
    pub(super) until: Instant,
}

pub(super) enum Kind {
    Stream(Stream),
    Listener(Listener),
    Datagram(Datagram),
}

#[derive(Debug)]
pub(super) struct Stream {
    /// The listening socket of an incoming connection.
    pub(super) parent: Option<Id>,
    pub(super) last: tcp::State,
    /// Whether it was ever connected.
    pub(super) connected: bool,
    /// When the last segment was received or the connection was started.
    pub(super) heard: Instant,
    /// Since when sent bytes are unacknowledged.
    pub(super) unacknowledged: Option<Instant>,
    pub(super) track: Track,
    pub(super) recovery: Recovery,
}

#[derive(Debug, Default)]
pub(super) struct Listener {
    pub(super) backlog: usize,
    pub(super) ready: VecDeque<Id>,
    /// Number of connections that are not established yet.
    pub(super) pending: usize,
}

#[derive(Default)]
pub(super) struct Datagram {
    pub(super) groups: Vec<IpAddr>,
    pub(super) sending: Vec<Sending>,
    /// An empty socket for reuse.
    pub(super) spare: Option<Sending>,
}

pub(super) struct Entry {
    pub(super) kind: Kind,
    pub(super) v6: bool,
    pub(super) set: SocketSet<'static>,
    /// The smoltcp socket, if any.
    pub(super) handle: Option<SocketHandle>,
    /// When its timer ends.
    pub(super) due: Option<smoltcp::time::Instant>,
    /// Whether it is in the queue of sockets that may have something to send.
    pub(super) queued: bool,
    /// Whether the program has it open.
    pub(super) owned: bool,
    pub(super) changed: Arc<Condvar>,
    pub(super) waiters: u32,
    pub(super) ready: Option<Ready>,
    /// The error that the next call returns.
    pub(super) error: Option<i32>,
    pub(super) local: Option<SocketAddr>,
    pub(super) remote: Option<SocketAddr>,
    pub(super) options: Options,
    pub(super) counters: SocketCounters,
    pub(super) shut_read: bool,
    pub(super) shut_write: bool,
}

impl Entry {
    pub(super) fn new(kind: Kind, v6: bool, options: Options) -> Self {
        Self {
            kind,
            v6,
            set: SocketSet::new(Vec::new()),
            handle: None,
            due: None,
            queued: false,
            owned: true,
            changed: Arc::default(),
            waiters: 0,
            ready: None,
            error: None,
            local: None,
            remote: None,
            options,
            counters: SocketCounters::default(),
            shut_read: false,
            shut_write: false,
        }
    }
    /// When the end of what a connection sent is to be probed.
    pub(super) fn probe_at(&self) -> Option<Instant> {
        let Kind::Stream(stream) = &self.kind else { return None };
        stream.recovery.probe_at(stream.track.end(), stream.track.rtt())
    }
    pub(super) fn stream(v6: bool, options: Options) -> Self {
        let stream = Stream {
            parent: None,
            last: tcp::State::Closed,
            connected: false,
            heard: Instant::now(),
            unacknowledged: None,
            track: Track::default(),
            recovery: Recovery::default(),
        };
        Self::new(Kind::Stream(stream), v6, options)
    }
    pub(super) fn datagram(v6: bool, options: Options) -> Self {
        Self::new(Kind::Datagram(Datagram::default()), v6, options)
    }

    /// Creates the smoltcp socket of a connection.
    pub(super) fn make_tcp(&mut self) -> &mut tcp::Socket<'static> {
        let buffer = |size: usize| tcp::SocketBuffer::new(vec![0; size]);
        let mut socket =
            tcp::Socket::new(buffer(self.options.receive_buffer), buffer(self.options.send_buffer));
        socket.set_congestion_control(match self.options.congestion {
            Congestion::Cubic => tcp::CongestionControl::Cubic,
            Congestion::Reno => tcp::CongestionControl::Reno,
            Congestion::None => tcp::CongestionControl::None,
        });
        self.set = SocketSet::new(Vec::new());
        let handle = self.set.add(socket);
        self.handle = Some(handle);
        self.apply_options();
        self.set.get_mut(handle)
    }
    /// Creates the smoltcp socket for received datagrams.
    pub(super) fn make_udp(&mut self) -> &mut udp::Socket<'static> {
        let received = udp::PacketBuffer::new(
            vec![udp::PacketMetadata::EMPTY; DATAGRAMS],
            vec![0; self.options.receive_buffer],
        );
        let nothing = udp::PacketBuffer::new(Vec::new(), Vec::new());
        self.set = SocketSet::new(Vec::new());
        let handle = self.set.add(udp::Socket::new(received, nothing));
        self.handle = Some(handle);
        self.set.get_mut(handle)
    }
    /// Applies the options that can change to the smoltcp socket.
    pub(super) fn apply_options(&mut self) {
        let options = self.options;
        if let Some(tcp) = self.tcp_mut() {
            // A burst is acknowledged at once, after its last frame. With a delay, smoltcp would delay
            // the acknowledgement of a frame regardless of the number of segments in it.
            tcp.set_ack_delay(None);
            tcp.set_nagle_enabled(!options.no_delay);
            tcp.set_hop_limit(Some(options.hops.max(1)));
            tcp.set_keep_alive(options.keep_alive.then(|| options.keep_idle.into()));
        }
    }
    pub(super) fn tcp(&self) -> Option<&tcp::Socket<'static>> {
        match (&self.kind, self.handle) {
            (Kind::Stream(_), Some(handle)) => Some(self.set.get(handle)),
            _ => None,
        }
    }
    pub(super) fn tcp_mut(&mut self) -> Option<&mut tcp::Socket<'static>> {
        match (&self.kind, self.handle) {
            (Kind::Stream(_), Some(handle)) => Some(self.set.get_mut(handle)),
            _ => None,
        }
    }
    pub(super) fn udp(&self) -> Option<&udp::Socket<'static>> {
        match (&self.kind, self.handle) {
            (Kind::Datagram(_), Some(handle)) => Some(self.set.get(handle)),
            _ => None,
        }
    }
    pub(super) fn udp_mut(&mut self) -> Option<&mut udp::Socket<'static>> {
        match (&self.kind, self.handle) {
            (Kind::Datagram(_), Some(handle)) => Some(self.set.get_mut(handle)),
            _ => None,
        }
    }
    /// The state of the connection; closed without a smoltcp socket.
    pub(super) fn state(&self) -> tcp::State {
        self.tcp().map_or(tcp::State::Closed, tcp::Socket::state)
    }
    /// Whether the connection is being established.
    pub(super) fn connecting(&self) -> bool {
        matches!(self.state(), tcp::State::SynSent | tcp::State::SynReceived)
    }

    /// Whether receiving or accepting would return at once.
    pub(super) fn readable(&self) -> bool {
        match &self.kind {
            Kind::Listener(listener) => self.error.is_some() || !listener.ready.is_empty(),
            Kind::Datagram(_) => {
                self.error.is_some() || self.udp().is_some_and(udp::Socket::can_recv)
            }
            Kind::Stream(_) => {
                self.error.is_some()
                    || self.shut_read
                    || self
                        .tcp()
                        .is_none_or(|tcp| tcp.can_recv() || (!tcp.may_recv() && !self.connecting()))
            }
        }
    }
    /// Whether sending would return at once.
    pub(super) fn writable(&self) -> bool {
        match &self.kind {
            Kind::Listener(_) => false,
            Kind::Datagram(_) => true,
            Kind::Stream(_) => {
                self.error.is_some()
                    || self.tcp().is_none_or(|tcp| {
                        if tcp.may_send() {
                            let free = tcp.send_capacity() - tcp.send_queue();
                            free >= tcp.send_capacity() / 4
                        } else {
                            !self.connecting()
                        }
                    })
            }
        }
    }
    /// Wakes waiters after a possible change.
    pub(super) fn announce(&mut self) {
        if self.waiters > 0 {
            self.changed.notify_all();
        }
        if self.ready.is_some() {
            let (readable, writable) = (self.readable(), self.writable());
            if let Some(ready) = &mut self.ready {
                ready.set(readable, writable);
            }
        }
    }
    /// When the connection times out if nothing is received until then.
    pub(super) fn times_out(&self) -> Option<Instant> {
        let Kind::Stream(stream) = &self.kind else { return None };
        let options = &self.options;
        let state = self.state();
        let after = match state {
            tcp::State::SynSent => CONNECT,
            tcp::State::SynReceived => HALF_OPEN,
            tcp::State::FinWait2 if !self.owned => FINISH,
            _ => {
                let unacknowledged = stream
                    .unacknowledged
                    .map(|since| since.max(stream.heard) + options.user_timeout);
                let silent = (options.keep_alive && stream.connected).then(|| {
                    stream.heard + options.keep_idle + options.keep_interval * options.keep_count
                });
                return match (unacknowledged, silent) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                };
            }
        };
        Some(stream.heard + after)
    }
}

/// Timeout of an outgoing connection: that of six retransmissions of a SYN on Linux.
const CONNECT: Duration = Duration::from_secs(127);
/// Timeout of an incoming connection's handshake.
const HALF_OPEN: Duration = Duration::from_secs(10);
/// How long a closed connection waits for the peer's FIN.
const FINISH: Duration = Duration::from_secs(60);
