//! Loss recovery for the segments that a connection sends, in addition to smoltcp's own.
//!
//! smoltcp retransmits one segment after three duplicate acknowledgements, and other segments only
//! after a timeout of at least one second. This module detects further losses:
//!
//! - several lost segments in one window, by partial acknowledgements (RFC 6582);
//! - with too few segments in flight for three duplicates: early retransmit (RFC 5827);
//! - duplicate acknowledgements that carry data or SACK blocks;
//! - lost segments at the end of a flight, by a probe after two round trips (RFC 8985, section 7).
//!
//! It then passes duplicates of the last acknowledgement to smoltcp, which makes smoltcp retransmit
//! its first unacknowledged segment.

use super::accounts::before;
use super::demux::{Flow, Segment};
use crate::net::Mac;
use smoltcp::wire::Ipv4Packet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Duplicate acknowledgements after which smoltcp retransmits.
const DUPLICATES: u32 = 3;
/// How long a peer may delay an acknowledgement.
const DELAYED: Duration = Duration::from_millis(60);
/// The longest time before a probe: less than smoltcp's own timeout of one second.
const LATEST: Duration = Duration::from_millis(900);

#[derive(Debug, Default)]
pub(super) struct Recovery {
    /// The highest acknowledgement number, and the latest window field.
    last: Option<(u32, u16)>,
    duplicates: u32,
    /// The sequence number after everything sent when the loss was detected. Recovery ends once it
    /// is acknowledged.
    point: Option<u32>,
    /// Whether a requested retransmission has not been sent yet.
    asked: bool,
    /// About when the first unacknowledged segment was sent; `None`: everything is acknowledged.
    moved: Option<Instant>,
    /// Whether a probe was sent since new data was last acknowledged.
    probed: bool,
}

impl Recovery {
    /// Processes a received segment. `sent` is the sequence number after everything sent, `largest`
    /// the length of a full segment. Returns whether the first unacknowledged segment was lost.
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

    /// Records that a segment with data was sent; `again`: it was a retransmission.
    pub(super) fn sent(&mut self, again: bool, now: Instant) {
        self.moved.get_or_insert(now);
        if again && !std::mem::take(&mut self.asked) {
            // After a timeout, smoltcp itself retransmits everything.
            self.point = None;
        }
    }

    /// When to send a probe for the end of a flight.
    pub(super) fn probe_at(&self, sent: Option<u32>, rtt: Option<Duration>) -> Option<Instant> {
        let (last, _) = self.last?;
        if self.probed || sent? == last {
            return None;
        }
        Some(self.moved? + (rtt? * 2 + DELAYED).min(LATEST))
    }

    /// Records that a probe is sent.
    pub(super) fn probe(&mut self, sent: Option<u32>) {
        self.probed = true;
        self.point = self.point.or(sent);
    }

    /// Returns frames that make smoltcp retransmit; `next` is the peer's next sequence number.
    pub(super) fn frames(&mut self, flow: Flow, mac: Mac, next: Option<u32>) -> Vec<Vec<u8>> {
        let (Some((ack, window @ 1..)), Some(next)) = (self.last, next) else { return Vec::new() };
        self.asked = true;
        // A changed window makes smoltcp restart its count of duplicates.
        [window ^ 1, window, window, window, window]
            .map(|window| acknowledgement(flow, mac, next, ack, window))
            .into()
    }
}

/// Builds a frame with an acknowledgement from the peer of a flow.
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
    fn a_loss_is_detected_by_three_duplicates_and_by_partial_acknowledgements() {
        let mut recovery = Recovery::default();
        let found: Vec<bool> =
            [1000, 1000, 1000, 1000, 1000].map(|n| lost(&mut recovery, ack(n), 10_000)).into();
        assert_eq!(found, [false, false, false, true, false]);
        assert!(lost(&mut recovery, ack(3000), 12_000));
        assert!(!lost(&mut recovery, ack(3000), 12_000));
        assert!(lost(&mut recovery, ack(9000), 12_000));
        // Recovery ends with what had been sent when the loss was detected.
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
    fn few_segments_need_few_duplicates_and_window_updates_do_not_count() {
        let mut recovery = Recovery::default();
        assert!(!lost(&mut recovery, ack(1000), 3000));
        assert!(!lost(&mut recovery, Segment { window: 600, ..ack(1000) }, 3000));
        assert!(!lost(&mut recovery, Segment { window: 600, length: 5, ..ack(1000) }, 3000));
        assert!(!lost(&mut recovery, ack(900), 3000));
        assert!(lost(&mut recovery, Segment { sack: true, length: 5, ..ack(1000) }, 3000));
        // With everything acknowledged, nothing is lost.
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
