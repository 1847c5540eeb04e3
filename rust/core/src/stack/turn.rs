//! Processing of received frames, timers and sockets.

use super::demux::{self, Flow, Kind as Found, Segment};
use super::entry::{Entry, Id, Kind};
use super::hops::SILENT;
use super::packets::Packet;
use super::state::{State, Time};
use super::vlan;
use crate::Error;
use crate::net::{Offload, recalculate};
use smoltcp::iface::{PollIngressSingleResult, PollResult};
use smoltcp::socket::{tcp, udp};
use smoltcp::wire::EthernetAddress;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// The most frames of one socket before the next socket sends.
const FAIR: usize = 16;
/// A socket that claims to have something to do but does nothing is polled again after this time.
const REST: smoltcp::time::Duration = smoltcp::time::Duration::from_millis(1);

/// Why the state of a connection may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    Received,
    Timer,
    Called,
}

/// The result of looking up the listening socket for a SYN.
enum Incoming {
    /// The new connection.
    Socket(Id),
    NotListening,
    BacklogFull,
}

impl State {
    /// Calls smoltcp. If it panics, the host ends.
    fn safely(&mut self, work: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| work(self))).is_err() {
            self.fail(Error::Device(
                "an internal error of the TCP/IP stack (see standard error); please report it"
                    .to_owned(),
            ));
        }
    }

    /// Ends the host with an error.
    pub(super) fn fail(&mut self, error: Error) {
        self.failure.get_or_insert(error);
        for entry in self.sockets.values_mut() {
            entry.error.get_or_insert(libc::ENETDOWN);
            entry.announce();
        }
        self.news.notify_all();
    }

    /// Processes one received frame.
    pub(super) fn ingest(&mut self, packet: Packet, arrived: Instant) {
        if self.failure.is_none() {
            self.safely(|state| state.take(packet, arrived));
        }
    }

    fn take(&mut self, mut packet: Packet, arrived: Instant) {
        self.counters.rx_frames += 1;
        self.counters.rx_bytes += packet.bytes.len() as u64;
        vlan::remove_priority_tags(&mut packet.bytes);
        let done = Offload::NEEDS_CSUM | Offload::DATA_VALID;
        let verified = packet.offload.flags & done != 0;
        match demux::classify(&packet.bytes, self.mac.0, verified) {
            Found::Tcp(flow, segment) => self.take_segment(packet, flow, segment, arrived),
            Found::Udp(flow) => self.take_datagram(packet, flow),
            Found::FirstFragment(flow, key) => {
                self.remember(key, flow);
                self.take_datagram(packet, flow);
            }
            Found::Fragment(key) => match self.fragments.get(&key).copied() {
                Some(flow) => self.take_datagram(packet, flow),
                None => self.take_common(packet),
            },
            Found::Unreachable(flow, is_tcp, errno) => {
                self.unreachable(flow, is_tcp, errno);
                self.take_message(packet, verified);
            }
            Found::Arp => {
                let own = EthernetAddress(self.mac.0);
                self.probes.arp_arrived(&packet.bytes, own, arrived, &self.news);
                self.take_common(packet);
            }
            Found::Other => self.take_message(packet, verified),
            Found::BadChecksum => {
                self.counters.rx_bad_checksum += 1;
                self.device.used.recycle(packet);
            }
            Found::NotOurs => {
                self.counters.rx_not_ours += 1;
                self.device.used.recycle(packet);
            }
        }
    }

    /// Passes an ICMP message and the like on. smoltcp verifies its checksum, which a device that
    /// vouches for it may leave unset.
    fn take_message(&mut self, mut packet: Packet, verified: bool) {
        if verified {
            recalculate(&mut packet.bytes);
        }
        self.take_common(packet);
    }

    /// Passes a frame to the interface and the common sockets.
    fn take_common(&mut self, packet: Packet) {
        if let Some(client) = &mut self.dhcp {
            client.read(&packet.bytes);
        }
        let told = demux::tells_of(&packet.bytes);
        self.device.inbox = Some(packet);
        let now = self.now();
        self.interface.poll_ingress_single(now, &mut self.device, &mut self.common);
        self.device.inbox = None;
        if let Some((hop, target)) = told
            && target.is_none_or(|target| self.is_ours(target))
        {
            self.hop_answered(hop);
        }
        if self.probes.arrived(&mut self.common) {
            self.news.notify_all();
        }
    }

    fn take_segment(&mut self, packet: Packet, flow: Flow, segment: Segment, arrived: Instant) {
        let opening = segment.syn && segment.ack.is_none() && !segment.rst;
        let mut known = self.flows.get(&flow).copied();
        if opening
            && let Some(id) = known
            && let Some(entry) = self.sockets.get(&id)
            && !entry.owned
            && matches!(entry.state(), tcp::State::TimeWait | tcp::State::Closed)
        {
            // A new connection from the same peer and port (RFC 9293, section 3.6.1).
            self.forget(id);
            known = None;
        }
        let id = match known {
            Some(id) => id,
            None if opening => match self.incoming(flow) {
                Incoming::Socket(id) => id,
                Incoming::NotListening => return self.refuse_segment(packet),
                Incoming::BacklogFull => {
                    self.counters.rx_backlog_full += 1;
                    self.device.used.recycle(packet);
                    return;
                }
            },
            None => return self.refuse_segment(packet),
        };
        let largest = self.interface_mtu().saturating_sub(40) as u32;
        let mut lost = false;
        let Some(entry) = self.sockets.get_mut(&id) else { return };
        if let Kind::Stream(stream) = &mut entry.kind {
            lost = stream.recovery.received(&segment, stream.track.end(), largest, arrived);
            let (again, early) = stream.track.received(&segment, arrived);
            stream.heard = arrived;
            entry.counters.rx_packets += 1;
            entry.counters.duplicates += u64::from(again);
            entry.counters.out_of_order += u64::from(early);
            self.counters.duplicates += u64::from(again);
            self.counters.out_of_order += u64::from(early);
        }
        self.feed(id, packet);
        if lost {
            self.retransmit(id);
        }
        self.finish(id, Cause::Received);
        self.enqueue(id);
    }

    /// Makes smoltcp retransmit the first unacknowledged segment of a connection.
    fn retransmit(&mut self, id: Id) {
        let Some(entry) = self.sockets.get_mut(&id) else { return };
        let unsent = entry.tcp().is_none_or(|tcp| tcp.send_queue() == 0);
        let (Some(local), Some(remote)) = (entry.local, entry.remote) else { return };
        let Kind::Stream(stream) = &mut entry.kind else { return };
        // A SYN or a FIN is left to smoltcp's timer.
        if unsent || !stream.connected {
            return;
        }
        let next = stream.track.next();
        for bytes in stream.recovery.frames(Flow { local, remote }, self.mac, next) {
            self.feed(id, Packet { bytes, ..Packet::default() });
        }
    }

    fn refuse_segment(&mut self, packet: Packet) {
        self.counters.rx_no_socket += 1;
        self.take_common(packet);
    }

    /// Passes a frame to one socket.
    fn feed(&mut self, id: Id, packet: Packet) {
        let now = self.now();
        let Some(entry) = self.sockets.get_mut(&id) else { return };
        self.device.inbox = Some(packet);
        let made = self.device.made;
        let result = self.interface.poll_ingress_single(now, &mut self.device, &mut entry.set);
        debug_assert!(result != PollIngressSingleResult::None);
        self.device.inbox = None;
        let answered = self.device.made - made;
        if answered > 0 {
            self.count_sent(id, answered);
        }
    }

    /// Counts the frames that a socket has just sent.
    fn count_sent(&mut self, id: Id, frames: u64) {
        let now = Instant::now();
        let Some(entry) = self.sockets.get_mut(&id) else { return };
        entry.counters.tx_packets += frames;
        if let Kind::Stream(stream) = &mut entry.kind
            && let Some(packet) = self.device.outbox.last_mut()
            && let Some(segment) = demux::sent_segment(&packet.bytes)
        {
            stream.track.acknowledged(segment.ack);
            let again = stream.track.sent(&segment, now);
            if segment.length > 0 {
                stream.recovery.sent(again, now);
            }
            if again {
                entry.counters.retransmits += 1;
                self.counters.retransmits += 1;
            }
        }
    }

    /// Creates a connection for a SYN if a socket listens.
    fn incoming(&mut self, flow: Flow) -> Incoming {
        if !self.is_ours(flow.local.ip()) || flow.remote.port() == 0 {
            return Incoming::NotListening;
        }
        let mut best = None;
        for id in self.tcp_ports.of(flow.local.port()) {
            let Some(entry) = self.sockets.get(id) else { continue };
            let Some(local) = entry.local else { continue };
            let exact = local.ip() == flow.local.ip();
            let fits = exact || (local.ip().is_unspecified() && entry.v6 == flow.local.is_ipv6());
            if matches!(entry.kind, Kind::Listener(_)) && fits && (exact || best.is_none()) {
                best = Some(*id);
            }
        }
        let Some(parent) = best else { return Incoming::NotListening };
        let Some(entry) = self.sockets.get_mut(&parent) else { return Incoming::NotListening };
        let (v6, options) = (entry.v6, entry.options);
        let Kind::Listener(listener) = &mut entry.kind else { return Incoming::NotListening };
        if listener.ready.len() + listener.pending > listener.backlog {
            return Incoming::BacklogFull;
        }
        listener.pending += 1;
        let mut child = Entry::stream(v6, options);
        child.owned = false;
        child.local = Some(flow.local);
        child.remote = Some(flow.remote);
        let socket = child.make_tcp();
        if socket.listen((flow.local.ip(), flow.local.port())).is_err() {
            return Incoming::NotListening;
        }
        if let Kind::Stream(stream) = &mut child.kind {
            stream.parent = Some(parent);
            stream.last = tcp::State::Listen;
        }
        let id = self.add(child);
        self.flows.insert(flow, id);
        Incoming::Socket(id)
    }

    fn take_datagram(&mut self, packet: Packet, flow: Flow) {
        let group = flow.local.ip().is_multicast();
        let mut best: Option<(u8, Id)> = None;
        let mut all = Vec::new();
        for id in self.udp_ports.of(flow.local.port()) {
            let Some(entry) = self.sockets.get(id) else { continue };
            let Some(score) = fits(entry, flow, group) else { continue };
            if group || is_broadcast(flow.local.ip()) {
                all.push(*id);
            }
            if best.is_none_or(|(other, _)| score > other) {
                best = Some((score, *id));
            }
        }
        if all.len() > 1 {
            // Multicast or broadcast: each socket gets a copy.
            for id in &all[1..] {
                let bytes = packet.bytes.clone();
                self.deliver(*id, Packet { bytes, offload: packet.offload });
            }
            self.deliver(all[0], packet);
        } else if let Some((_, id)) = best {
            self.deliver(id, packet);
        } else {
            self.take_common(packet);
        }
    }

    fn deliver(&mut self, id: Id, packet: Packet) {
        let count = |state: &Self| {
            state.sockets.get(&id).and_then(Entry::udp).map_or(0, udp::Socket::recv_queue)
        };
        let before = count(self);
        self.feed(id, packet);
        let after = count(self);
        let Some(entry) = self.sockets.get_mut(&id) else { return };
        if after > before {
            entry.counters.rx_packets += 1;
        } else if before > 0 {
            // An incomplete datagram looks the same, so only count a drop if the buffer is full.
            let full = entry
                .udp()
                .is_some_and(|udp| udp.recv_queue() + 2048 > udp.payload_recv_capacity());
            entry.counters.dropped += u64::from(full);
            self.counters.rx_dropped += u64::from(full);
        }
        entry.announce();
    }

    /// Handles an ICMP error.
    fn unreachable(&mut self, flow: Flow, is_tcp: bool, errno: i32) {
        if is_tcp {
            // Only a connection that is not established fails (RFC 5927).
            if let Some(id) = self.flows.get(&flow).copied()
                && let Some(entry) = self.sockets.get_mut(&id)
                && entry.state() == tcp::State::SynSent
            {
                entry.error = Some(errno);
                if let Some(tcp) = entry.tcp_mut() {
                    tcp.abort();
                }
                self.finish(id, Cause::Received);
                self.enqueue(id);
            }
            return;
        }
        for id in self.udp_ports.of(flow.local.port()) {
            if let Some(entry) = self.sockets.get_mut(id)
                && entry.remote == Some(flow.remote)
            {
                entry.error = Some(errno);
                entry.announce();
            }
        }
    }

    /// Queues a socket that may have something to send.
    pub(super) fn enqueue(&mut self, id: Id) {
        if let Some(entry) = self.sockets.get_mut(&id)
            && !entry.queued
        {
            entry.queued = true;
            self.queue.push_back(id);
        }
    }

    /// Lets queued sockets send while there is room.
    pub(super) fn pump(&mut self) {
        let mut turns = self.queue.len();
        while turns > 0
            && !self.device.full()
            && self.failure.is_none()
            && let Some(id) = self.queue.pop_front()
        {
            turns -= 1;
            self.egress(id, Cause::Called);
        }
    }

    /// Lets one socket send, and sets its timer.
    pub(super) fn egress(&mut self, id: Id, cause: Cause) {
        if self.failure.is_none() {
            self.safely(|state| state.emit(id, cause));
        }
    }

    fn emit(&mut self, id: Id, cause: Cause) {
        let now = self.now();
        let Some(entry) = self.sockets.get_mut(&id) else { return };
        entry.queued = false;
        if matches!(entry.kind, Kind::Datagram(_)) {
            return self.emit_datagrams(id);
        }
        if entry.handle.is_none() {
            return;
        }
        if cause == Cause::Timer
            && entry.probe_at().is_some_and(|at| at <= Instant::now())
            && let Kind::Stream(stream) = &mut entry.kind
        {
            stream.recovery.probe(stream.track.end());
            self.retransmit(id);
        }
        let mut frames = 0;
        let mut more = false;
        let mut unresolved = true;
        loop {
            if self.device.full() || frames >= FAIR {
                more = true;
                break;
            }
            let Some(entry) = self.sockets.get_mut(&id) else { return };
            let made = self.device.made;
            let result = self.interface.poll_egress(now, &mut self.device, &mut entry.set);
            let made = self.device.made - made;
            let last = self.device.outbox.last_mut().filter(|_| made > 0);
            if last.is_some_and(|last| demux::asks_for(&last.bytes).is_none()) {
                unresolved = false;
                self.count_sent(id, made);
            }
            if result == PollResult::None {
                break;
            }
            frames += 1;
        }
        self.finish(id, cause);
        let Some(entry) = self.sockets.get_mut(&id) else { return };
        let wanted = self.interface.poll_at(now, &entry.set);
        // smoltcp waits just so long for a next hop.
        if unresolved
            && wanted == Some(now + SILENT)
            && let Some(remote) = entry.remote
        {
            self.resolve(remote.ip(), Some(id));
        }
        if more && wanted.is_some_and(|at| at <= now) {
            self.enqueue(id);
            self.schedule(id, None);
        } else {
            // It is due but did nothing: wait, to avoid a busy loop.
            self.schedule(id, wanted.map(|at| if at <= now { now + REST } else { at }));
        }
    }

    /// Sends datagrams that wait for their next hop; drops those that have waited too long.
    fn emit_datagrams(&mut self, id: Id) {
        let now = self.now();
        let moment = Instant::now();
        let Some(entry) = self.sockets.get_mut(&id) else { return };
        let Kind::Datagram(datagram) = &mut entry.kind else { return };
        let mut waiting = std::mem::take(&mut datagram.sending);
        let mut wanted: Option<Time> = None;
        let mut lost = 0;
        let mut unresolved = Vec::new();
        waiting.retain_mut(|sending| {
            self.interface.poll_egress(now, &mut self.device, &mut sending.set);
            let socket = sending.set.get::<udp::Socket<'_>>(sending.handle);
            if socket.can_send() {
                return false;
            }
            if moment >= sending.until {
                lost += 1;
                return false;
            }
            let at = self.interface.poll_at(now, &sending.set).unwrap_or(now);
            let at = at.max(now + REST);
            wanted = Some(wanted.map_or(at, |other| other.min(at)));
            unresolved.push(sending.to);
            true
        });
        for to in unresolved {
            self.resolve(to, Some(id));
        }
        self.counters.tx_unresolved += lost;
        self.finish_datagram();
        if let Some(entry) = self.sockets.get_mut(&id) {
            entry.counters.dropped += lost;
            if let Kind::Datagram(datagram) = &mut entry.kind {
                datagram.sending.append(&mut waiting);
            }
            entry.announce();
        }
        self.schedule(id, wanted);
    }

    /// Sends the remaining fragments of a datagram: smoltcp fragments one datagram at a time.
    pub(super) fn finish_datagram(&mut self) {
        let now = self.now();
        self.device.finishing = true;
        for _ in 0..128 {
            let more = self.interface.poll_at(now, &self.none) == Some(Time::ZERO);
            if !more {
                break;
            }
            self.interface.poll_egress(now, &mut self.device, &mut self.none);
        }
        self.device.finishing = false;
    }

    /// Sets a socket's timer.
    fn schedule(&mut self, id: Id, wanted: Option<Time>) {
        let Some(entry) = self.sockets.get(&id) else { return };
        let times_out = entry.times_out().map(|at| self.time(at));
        let probe = entry.probe_at().map(|at| self.time(at));
        let due = [wanted, times_out, probe].into_iter().flatten().min();
        let Some(entry) = self.sockets.get_mut(&id) else { return };
        if entry.due == due {
            return;
        }
        if let Some(old) = entry.due {
            self.timers.remove(&(old, id));
        }
        entry.due = due;
        if let Some(due) = due {
            self.timers.insert((due, id));
        }
    }

    /// Runs the sockets whose timers have ended, and the interface.
    pub(super) fn run_timers(&mut self) {
        let now = self.now();
        while let Some((due, id)) = self.timers.first().copied()
            && due <= now
        {
            self.timers.remove(&(due, id));
            let Some(entry) = self.sockets.get_mut(&id) else { continue };
            entry.due = None;
            if entry.times_out().is_some_and(|at| at <= Instant::now()) {
                if entry.error.is_none() && entry.owned {
                    entry.error = Some(libc::ETIMEDOUT);
                }
                if let Some(tcp) = entry.tcp_mut() {
                    tcp.abort();
                }
            }
            self.egress(id, Cause::Timer);
        }
        if self.failure.is_none() {
            self.safely(|state| {
                state.interface.poll_maintenance(now);
                state.device.finishing = true;
                while state.interface.poll_egress(now, &mut state.device, &mut state.common)
                    == PollResult::SocketStateChanged
                {}
                state.device.finishing = false;
            });
        }
    }

    /// When the next timer ends.
    pub(super) fn wanted(&mut self) -> Option<Instant> {
        let now = self.now();
        let common = self.interface.poll_at(now, &self.common).map(|at| at.max(now + REST));
        let first = self.timers.first().map(|(due, _)| *due);
        let wanted = match (common, first) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        // Without sockets, smoltcp's `poll_at` ignores router solicitations and prefix lifetimes.
        let router = self.ipv6.then(|| now + smoltcp::time::Duration::from_secs(4));
        let wanted = match (wanted, router) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        wanted.map(|at| self.moment(at))
    }

    /// How long the thread may sleep.
    pub(super) fn pause(&mut self) -> Option<Duration> {
        let wanted = self.wanted()?;
        Some(wanted.saturating_duration_since(Instant::now()))
    }
}

fn is_broadcast(address: IpAddr) -> bool {
    address == IpAddr::from([255, 255, 255, 255])
}

/// How well a socket matches a datagram; `None`: not at all.
fn fits(entry: &Entry, flow: Flow, group: bool) -> Option<u8> {
    let local = entry.local?;
    if entry.v6 != flow.local.is_ipv6() {
        return None;
    }
    let exact = local.ip() == flow.local.ip();
    if !exact && !local.ip().is_unspecified() && !is_broadcast(flow.local.ip()) {
        return None;
    }
    if group
        && let Kind::Datagram(datagram) = &entry.kind
        && !datagram.groups.contains(&flow.local.ip())
    {
        return None;
    }
    match entry.remote {
        Some(remote) if remote == flow.remote => Some(3),
        Some(_) => None,
        None if exact => Some(2),
        None => Some(1),
    }
}
