//! What is counted of a socket and of a host. smoltcp counts nothing: segments are looked at on their way
//! in and out.

use super::demux::Segment;
use std::time::{Duration, Instant};

/// Counters of one socket.
#[derive(Clone, Copy, Debug, Default)]
pub struct SocketCounters {
    /// Bytes of payload that the program took.
    pub rx_bytes: u64,
    /// Segments or datagrams received.
    pub rx_packets: u64,
    /// Bytes of payload that the program gave.
    pub tx_bytes: u64,
    /// Segments (a frame to be segmented is one) or datagrams sent.
    pub tx_packets: u64,
    /// Segments sent again.
    pub retransmits: u64,
    /// Segments received again.
    pub duplicates: u64,
    /// Segments received before others that come before them.
    pub out_of_order: u64,
    /// Datagrams that there was no room for, or that were not for this socket.
    pub dropped: u64,
    /// The smoothed round-trip time (RFC 6298), where there was one to measure.
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
    /// Bytes of them.
    rx_bytes,
    /// Frames given to the wire.
    tx_frames,
    /// Bytes of them.
    tx_bytes,
    /// Received frames for another address, or too short.
    rx_not_ours,
    /// Received TCP and UDP packets with a wrong checksum.
    rx_bad_checksum,
    /// TCP segments for a port that nobody listens on: answered by a reset.
    rx_no_socket,
    /// SYNs that a listening socket had no room for.
    rx_backlog_full,
    /// UDP datagrams that a socket had no room for, or that were not from its peer.
    rx_dropped,
    /// UDP datagrams whose next hop did not answer.
    tx_unresolved,
    /// TCP segments sent again.
    retransmits,
    /// TCP segments received again.
    duplicates,
    /// TCP segments received before others that come before them.
    out_of_order,
    /// Connections made.
    connected,
    /// Connections accepted.
    accepted,
    /// Connections that the peer reset.
    resets,
    /// Times that the thread slept.
    sleeps,
}

/// What is remembered of a connection to count.
#[derive(Debug, Default)]
pub(super) struct Track {
    /// The end of what was sent.
    sent: Option<u32>,
    /// The end of what was received in order.
    received: Option<u32>,
    /// (the end of a segment, when it was sent).
    sample: Option<(u32, Instant)>,
    smooth: Option<Duration>,
}

/// Whether sequence number `a` is before `b`.
fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

impl Track {
    /// A segment was received; its place: (again, too early).
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
    /// What is acknowledged was received in order, whichever way.
    pub(super) fn acknowledged(&mut self, ack: Option<u32>) {
        if let Some(ack) = ack
            && self.received.is_none_or(|next| before(next, ack))
        {
            self.received = Some(ack);
        }
    }
    /// A segment is sent; whether it was before.
    pub(super) fn sent(&mut self, segment: &Segment, now: Instant) -> bool {
        let length = segment.length + u32::from(segment.syn) + u32::from(segment.fin);
        if length == 0 || segment.rst {
            return false;
        }
        let end = segment.seq.wrapping_add(length);
        if self.sent.is_some_and(|sent| !before(sent, end)) {
            // Whose answer comes is not known any more (Karn).
            self.sample = None;
            return true;
        }
        self.sent = Some(end);
        self.sample.get_or_insert((end, now));
        false
    }
    /// The smoothed round-trip time.
    pub(super) fn rtt(&self) -> Option<Duration> {
        self.smooth
    }
}
