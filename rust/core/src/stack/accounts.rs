//! Counters of sockets and hosts. smoltcp has none, so received and sent segments are inspected.

use super::demux::Segment;
use std::time::{Duration, Instant};

/// Counters of one socket.
#[derive(Clone, Copy, Debug, Default)]
pub struct SocketCounters {
    /// Payload bytes that the program has received.
    pub rx_bytes: u64,
    /// Segments or datagrams received.
    pub rx_packets: u64,
    /// Payload bytes that the program has sent.
    pub tx_bytes: u64,
    /// Segments (a frame that the device segments counts as one) or datagrams sent.
    pub tx_packets: u64,
    /// Segments retransmitted.
    pub retransmits: u64,
    /// Segments received again.
    pub duplicates: u64,
    /// Segments received before earlier ones.
    pub out_of_order: u64,
    /// Datagrams dropped: the socket had no room, or the next hop did not answer.
    pub dropped: u64,
    /// The smoothed round-trip time (RFC 6298), if it could be measured.
    pub rtt: Option<Duration>,
}

impl SocketCounters {
    /// Names and values.
    #[must_use]
    pub fn fields(&self) -> [(&'static str, u64); 8] {
        [
            ("rx_bytes", self.rx_bytes),
            ("rx_packets", self.rx_packets),
            ("tx_bytes", self.tx_bytes),
            ("tx_packets", self.tx_packets),
            ("retransmits", self.retransmits),
            ("duplicates", self.duplicates),
            ("out_of_order", self.out_of_order),
            ("dropped", self.dropped),
        ]
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counters of a host.
        #[derive(Clone, Copy, Debug, Default)]
        pub struct HostCounters { $($(#[$doc])* pub $name: u64,)* }
        impl HostCounters {
            /// Names and values.
            #[must_use]
            pub fn fields(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

counters! {
    /// Frames received.
    rx_frames,
    /// Bytes of received frames.
    rx_bytes,
    /// Frames sent.
    tx_frames,
    /// Bytes of sent frames.
    tx_bytes,
    /// Received frames for another address, or too short.
    rx_not_ours,
    /// Received TCP and UDP packets with a wrong checksum.
    rx_bad_checksum,
    /// TCP segments without a socket: answered by a reset.
    rx_no_socket,
    /// SYNs dropped because a listening socket's backlog was full.
    rx_backlog_full,
    /// UDP datagrams dropped because their socket had no room.
    rx_dropped,
    /// UDP datagrams whose next hop did not answer.
    tx_unresolved,
    /// TCP segments retransmitted.
    retransmits,
    /// TCP segments received again.
    duplicates,
    /// TCP segments received before earlier ones.
    out_of_order,
    /// Outgoing connections established.
    connected,
    /// Incoming connections established.
    accepted,
    /// Connections that the peer reset.
    resets,
    /// How often the thread slept.
    sleeps,
}

/// The sequence numbers and times that a connection's counters need.
#[derive(Debug, Default)]
pub(super) struct Track {
    /// The sequence number after everything sent.
    sent: Option<u32>,
    /// The sequence number after everything received in order.
    received: Option<u32>,
    /// The end of a segment, and when it was sent.
    sample: Option<(u32, Instant)>,
    smooth: Option<Duration>,
}

/// Whether sequence number `a` is before `b`.
pub(super) fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

impl Track {
    /// Records a received segment. Returns whether it is a duplicate, and whether it is out of order.
    pub(super) fn received(&mut self, segment: &Segment, now: Instant) -> (bool, bool) {
        if let (Some(ack), Some((end, at))) = (segment.ack, self.sample)
            && !before(ack, end)
        {
            let took = now.saturating_duration_since(at);
            self.smooth = Some(self.smooth.map_or(took, |old| old - old / 8 + took / 8));
            self.sample = None;
        }
        let length = segment.length + u32::from(segment.syn) + u32::from(segment.fin);
        if length == 0 || segment.rst {
            return (false, false);
        }
        let end = segment.seq.wrapping_add(length);
        match self.received {
            Some(next) if !before(next, end) => (true, false),
            Some(next) if before(next, segment.seq) => (false, true),
            _ => {
                self.received = Some(end);
                (false, false)
            }
        }
    }
    /// Records our acknowledgement: everything before it was received.
    pub(super) fn acknowledged(&mut self, ack: Option<u32>) {
        if let Some(ack) = ack
            && self.received.is_none_or(|next| before(next, ack))
        {
            self.received = Some(ack);
        }
    }
    /// Records a sent segment. Returns whether it is a retransmission.
    pub(super) fn sent(&mut self, segment: &Segment, now: Instant) -> bool {
        let length = segment.length + u32::from(segment.syn) + u32::from(segment.fin);
        if length == 0 || segment.rst {
            return false;
        }
        let end = segment.seq.wrapping_add(length);
        if self.sent.is_some_and(|sent| !before(sent, end)) {
            // An acknowledgement could be for either transmission (Karn's algorithm).
            self.sample = None;
            return true;
        }
        self.sent = Some(end);
        self.sample.get_or_insert((end, now));
        false
    }
    /// The sequence number after everything sent.
    pub(super) fn end(&self) -> Option<u32> {
        self.sent
    }
    /// The sequence number after everything received in order.
    pub(super) fn next(&self) -> Option<u32> {
        self.received
    }
    /// The smoothed round-trip time.
    pub(super) fn rtt(&self) -> Option<Duration> {
        self.smooth
    }
}
