//! State changes of connections: established, queued for accepting, closed, reset, removed.

use super::demux::Flow;
use super::entry::{Entry, Id, Kind};
use super::state::State;
use super::turn::Cause;
use smoltcp::socket::tcp;
use std::time::Instant;

impl State {
    /// Acts on a socket's change of state.
    pub(super) fn finish(&mut self, id: Id, cause: Cause) {
        let Some(entry) = self.sockets.get_mut(&id) else { return };
        let state = entry.state();
        let queued = entry.tcp().map_or(0, tcp::Socket::send_queue);
        let gone = entry.tcp().is_some_and(|tcp| tcp.remote_endpoint().is_none());
        let Kind::Stream(stream) = &mut entry.kind else {
            entry.announce();
            return;
        };
        let last = std::mem::replace(&mut stream.last, state);
        if cause == Cause::Received || queued == 0 {
            stream.unacknowledged = None;
        }
        if queued > 0 {
            stream.unacknowledged.get_or_insert_with(Instant::now);
        }
        let established = matches!(
            state,
            tcp::State::Established
                | tcp::State::CloseWait
                | tcp::State::FinWait1
                | tcp::State::FinWait2
        );
        let begun = established && !stream.connected;
        stream.connected |= established;
        let parent = stream.parent;
        if begun {
            match parent {
                Some(parent) => {
                    self.counters.accepted += 1;
                    self.hand_to(parent, id);
                }
                None => self.counters.connected += 1,
            }
        }
        if state == last {
            self.tell(id);
            return;
        }
        let mut forget = false;
        if let Some(entry) = self.sockets.get_mut(&id) {
            match (last, state) {
                // The peer has reset a half-open connection.
                (tcp::State::SynReceived, tcp::State::Listen) => forget = true,
                (tcp::State::SynSent, tcp::State::Closed) if cause == Cause::Received => {
                    entry.error.get_or_insert(libc::ECONNREFUSED);
                }
                (
                    tcp::State::Established
                    | tcp::State::CloseWait
                    | tcp::State::FinWait1
                    | tcp::State::FinWait2,
                    tcp::State::Closed,
                ) => match cause {
                    Cause::Received => {
                        self.counters.resets += 1;
                        entry.error.get_or_insert(libc::ECONNRESET);
                    }
                    Cause::Timer if gone => {
                        entry.error.get_or_insert(libc::ECONNABORTED);
                    }
                    _ => {}
                },
                _ => {}
            }
        }
        let over = self.is_over(id);
        let waits = parent.is_some_and(|parent| {
            self.sockets.get(&parent).is_some_and(|entry| match &entry.kind {
                Kind::Listener(listener) => listener.ready.contains(&id),
                _ => false,
            })
        });
        if forget || (over && !waits) {
            self.forget(id);
            return;
        }
        self.tell(id);
    }

    fn tell(&mut self, id: Id) {
        if let Some(entry) = self.sockets.get_mut(&id) {
            entry.announce();
        }
    }

    /// Queues an established connection at its listening socket.
    fn hand_to(&mut self, parent: Id, id: Id) {
        let Some(entry) = self.sockets.get_mut(&parent) else { return };
        if let Kind::Listener(listener) = &mut entry.kind {
            listener.pending = listener.pending.saturating_sub(1);
            listener.ready.push_back(id);
        }
        entry.announce();
    }

    /// Removes a socket and all references to it.
    pub(super) fn forget(&mut self, id: Id) {
        let Some(entry) = self.sockets.remove(&id) else { return };
        if let Some(due) = entry.due {
            self.timers.remove(&(due, id));
        }
        if let (Some(local), Some(remote)) = (entry.local, entry.remote) {
            let flow = Flow { local, remote };
            if self.flows.get(&flow) == Some(&id) {
                self.flows.remove(&flow);
            }
        }
        match &entry.kind {
            Kind::Stream(stream) => {
                if let Some(parent) = stream.parent.and_then(|parent| self.sockets.get_mut(&parent))
                    && let Kind::Listener(listener) = &mut parent.kind
                    && !stream.connected
                {
                    listener.pending = listener.pending.saturating_sub(1);
                }
                if let Some(local) = entry.local {
                    self.tcp_ports.remove(local.port(), id);
                }
            }
            Kind::Listener(_) => {
                if let Some(local) = entry.local {
                    self.tcp_ports.remove(local.port(), id);
                }
            }
            Kind::Datagram(datagram) => {
                if let Some(local) = entry.local {
                    self.udp_ports.remove(local.port(), id);
                }
                for group in datagram.groups.clone() {
                    let _ = self.group(group, false);
                }
            }
        }
        entry.changed.notify_all();
    }

    /// Closes a socket. Data sent before is still delivered.
    pub(super) fn close(&mut self, id: Id) {
        let Some(entry) = self.sockets.get_mut(&id) else { return };
        if !entry.owned {
            return;
        }
        entry.owned = false;
        entry.ready = None;
        entry.announce();
        match &mut entry.kind {
            Kind::Datagram(_) => self.forget(id),
            Kind::Listener(listener) => {
                let waiting: Vec<Id> = listener.ready.drain(..).collect();
                let begun: Vec<Id> = self
                    .sockets
                    .iter()
                    .filter(|(_, other)| {
                        matches!(&other.kind, Kind::Stream(s) if s.parent == Some(id) && !s.connected)
                    })
                    .map(|(id, _)| *id)
                    .collect();
                self.forget(id);
                for child in waiting.into_iter().chain(begun) {
                    self.abort(child);
                }
            }
            Kind::Stream(_) => {
                let unread = entry.tcp().is_some_and(|tcp| tcp.recv_queue() > 0);
                let at_once = entry.options.reset_on_close || unread;
                match entry.tcp_mut() {
                    None => self.forget(id),
                    // Unread data is lost, so the peer gets a reset (RFC 2525, section 2.17).
                    Some(_) if at_once => self.abort(id),
                    Some(tcp) => {
                        tcp.close();
                        self.egress(id, Cause::Called);
                        self.drop_if_over(id);
                    }
                }
            }
        }
    }

    /// Resets a connection that is not open.
    fn abort(&mut self, id: Id) {
        if let Some(tcp) = self.sockets.get_mut(&id).and_then(Entry::tcp_mut) {
            tcp.abort();
        }
        self.egress(id, Cause::Called);
        self.drop_if_over(id);
    }

    fn drop_if_over(&mut self, id: Id) {
        if self.is_over(id) {
            self.forget(id);
        }
    }

    /// Whether a closed connection can be removed: the program has closed it, and nothing of it is
    /// still to be sent.
    ///
    /// A reset that could not be sent, for example because the peer's MAC address is unknown, is not
    /// retried (RFC 9293, section 3.10.5). Only a reset that waits for room in the device is kept.
    fn is_over(&self, id: Id) -> bool {
        self.sockets.get(&id).is_some_and(|entry| {
            let gone = entry.tcp().is_none_or(|tcp| tcp.remote_endpoint().is_none());
            let tried = gone || !self.device.full();
            !entry.owned && entry.state() == tcp::State::Closed && tried
        })
    }
}
