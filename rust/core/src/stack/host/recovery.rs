//! Recovery from losses of what a connection sent, beyond what smoltcp does.
//!
//! smoltcp retransmits one segment after three duplicate acknowledgements, and the rest only after a
//! timeout of at least one second. Here a loss is noticed where the second segment of a window was
//! lost as well (a partial acknowledgement, RFC 6582), where too few segments are in flight for three
//! duplicates (early retransmit, RFC 5827), where duplicates carry data or SACK blocks, and at the end
//! of a flight (a probe after two round trips, RFC 8985, section 7). smoltcp is then given duplicates
//! of the last acknowledgement, after which it retransmits its first unacknowledged segment.

use super::accounts::before;
use super::demux::{Flow, Segment};
use crate::net::Mac;
use smoltcp::wire::Ipv4Packet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Duplicate acknowledgements after which smoltcp retransmits.
const DUPLICATES: u32 = 3;
/// How long a peer may delay an acknowledgement, and how long a probe may be delayed at most: smoltcp's
/// own timeout comes after one second.
const DELAYED: Duration = Duration::from_millis(60);
const LATEST: Duration = Duration::from_millis(900);

#[derive(Debug, Default)]
pub(super) struct Recovery {
    /// The highest acknowledgement, and the window field that came last.
    last: Option<(u32, u16)>,
    duplicates: u32,
    /// The end of what was sent when a loss was noticed. Once that is acknowledged, the recovery is over.
    point: Option<u32>,
    /// A retransmission that was asked for here has not been sent yet.
    asked: bool,
    /// Since when the first unacknowledged segment is on its way, about; `None`: there is none.
    moved: Option<Instant>,
    /// Whether there was a probe since the last acknowledgement of something new.
    probed: bool,
}

impl Recovery {
    /// Looks at a received segment. `sent` is the sequence number after everything sent, `largest` the
    /// length of a full segment. Returns whether the first unacknowledged segment was lost.
    pub(super) fn received(
        &mut self,
        segment: &Segment,
        sent: Option<u32>,
        largest: u32,
        now: Instant,
    ) -> bool {
        let (Some(ack), Some(sent)) = (segment.ack, sent) else { return false };
        if segment.rst || before(sent, ack) {
            return false;
        }
        let known = self.last;
        if known.is_some_and(|(last, _)| before(ack, last)) {
            return false;
        }
        self.last = Some((ack, segment.window));
        let Some((last, window)) = known else { return false };
        if before(last, ack) {
            (self.duplicates, self.probed) = (0, false);
            self.moved = (ack != sent).then_some(now);
            self.point = self.point.filter(|point| before(ack, *point));
            return self.point.is_some();
        }
        let pure = segment.length == 0 && !segment.fin && segment.window == window;
        if ack == sent || segment.syn || !(pure || segment.sack) {
            return false;
        }
        self.duplicates += 1;
        let flying = sent.wrapping_sub(ack).div_ceil(largest.max(1));
        let enough = flying.saturating_sub(1).clamp(1, DUPLICATES);
        if self.duplicates != enough || self.point.is_some() {
            return false;
        }
        self.point = Some(sent);
        true
    }

    /// Notes that a segment with data was sent; `again`: retransmitted.
    pub(super) fn sent(&mut self, again: bool, now: Instant) {
        self.moved.get_or_insert(now);
        if again && !std::mem::take(&mut self.asked) {
            // A timeout: smoltcp sends everything again by itself.
            self.point = None;
        }
    }

    /// When the end of a flight is to be probed.
    pub(super) fn probe_at(&self, sent: Option<u32>, rtt: Option<Duration>) -> Option<Instant> {
        let (last, _) = self.last?;
        if self.probed || sent? == last {
            return None;
        }
        Some(self.moved? + (rtt? * 2 + DELAYED).min(LATEST))
    }

    /// Notes that the end of a flight is probed.
    pub(super) fn probe(&mut self, sent: Option<u32>) {
        self.probed = true;
        self.point = self.point.or(sent);
    }

    /// The frames after which smoltcp retransmits; `next` is the next sequence number of the peer.
    pub(super) fn frames(&mut self, flow: Flow, mac: Mac, next: Option<u32>) -> Vec<Vec<u8>> {
        let (Some((ack, window @ 1..)), Some(next)) = (self.last, next) else { return Vec::new() };
        self.asked = true;
        // A changed window makes smoltcp count duplicates anew.
        [window ^ 1, window, window, window, window]
            .map(|window| acknowledgement(flow, mac, next, ack, window))
            .into()
    }
}

/// A frame with an acknowledgement from the peer of a flow.
fn acknowledgement(flow: Flow, mac: Mac, seq: u32, ack: u32, window: u16) -> Vec<u8> {
    let mut frame = [mac.0, mac.0].concat();
    match (flow.remote.ip(), flow.local.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            frame.extend([0x08, 0x00, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0]);
            frame.extend(from.octets());
            frame.extend(to.octets());
            Ipv4Packet::new_unchecked(&mut frame[14..]).fill_checksum();
        }
        (from, to) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64]);
            for address in [from, to] {
                if let IpAddr::V6(address) = address {
                    frame.extend(address.octets());
                }
            }
        }
    }
    frame.extend(flow.remote.port().to_be_bytes());
    frame.extend(flow.local.port().to_be_bytes());
    frame.extend(seq.to_be_bytes());
    frame.extend(ack.to_be_bytes());
    frame.extend([0x50, 0x10]);
    frame.extend(window.to_be_bytes());
    frame.extend([0; 4]);
    frame
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ack(number: u32) -> Segment {
        Segment {
            seq: 1,
            ack: Some(number),
            length: 0,
            window: 500,
            sack: false,
            syn: false,
            fin: false,
            rst: false,
        }
    }

    fn lost(recovery: &mut Recovery, segment: Segment, sent: u32) -> bool {
        recovery.received(&segment, Some(sent), 1000, Instant::now())
    }

    #[test]
    fn three_duplicates_and_then_each_partial_acknowledgement() {
        let mut recovery = Recovery::default();
        let found: Vec<bool> =
            [1000, 1000, 1000, 1000, 1000].map(|n| lost(&mut recovery, ack(n), 10_000)).into();
        assert_eq!(found, [false, false, false, true, false]);
        assert!(lost(&mut recovery, ack(3000), 12_000));
        assert!(!lost(&mut recovery, ack(3000), 12_000));
        assert!(lost(&mut recovery, ack(9000), 12_000));
        // The point is what had been sent when the loss was noticed.
        assert!(!lost(&mut recovery, ack(10_000), 12_000));
        assert!(!lost(&mut recovery, ack(11_000), 12_000));
    }

    #[test]
    fn a_timeout_ends_the_recovery() {
        let mut recovery = Recovery::default();
        for _ in 0..4 {
            lost(&mut recovery, ack(1000), 10_000);
        }
        recovery.asked = true;
        recovery.sent(true, Instant::now());
        assert!(lost(&mut recovery, ack(2000), 10_000));
        recovery.asked = false;
        recovery.sent(true, Instant::now());
        assert!(!lost(&mut recovery, ack(3000), 10_000));
    }

    #[test]
    fn few_segments_need_few_duplicates_and_windows_and_data_are_none() {
        let mut recovery = Recovery::default();
        assert!(!lost(&mut recovery, ack(1000), 3000));
        assert!(!lost(&mut recovery, Segment { window: 600, ..ack(1000) }, 3000));
        assert!(!lost(&mut recovery, Segment { window: 600, length: 5, ..ack(1000) }, 3000));
        assert!(!lost(&mut recovery, ack(900), 3000));
        assert!(lost(&mut recovery, Segment { sack: true, length: 5, ..ack(1000) }, 3000));
        // Everything is acknowledged: it is not lost.
        let mut recovery = Recovery::default();
        assert_eq!([3000; 5].map(|n| lost(&mut recovery, ack(n), 3000)), [false; 5]);
    }

    #[test]
    fn the_end_of_a_flight_is_probed_once() {
        let mut recovery = Recovery::default();
        let (now, rtt) = (Instant::now(), Some(Duration::from_millis(20)));
        lost(&mut recovery, ack(1000), 1000);
        recovery.sent(false, now);
        assert_eq!(recovery.probe_at(Some(1000), rtt), None);
        let at = recovery.probe_at(Some(2000), rtt).unwrap();
        assert_eq!(at - now, Duration::from_millis(100));
        recovery.probe(Some(2000));
        assert_eq!(recovery.probe_at(Some(2000), rtt), None);
        lost(&mut recovery, ack(1500), 2000);
        assert!(recovery.probe_at(Some(2000), rtt).is_some());
    }
}
