//! Checksums of received frames that are handed on as plain bytes.

use crate::net::Offload;
use crate::net::packet::layout::Layout;

/// IP protocol numbers.
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// The flags and the offset of an IPv4 fragment.
const FRAGMENT: u16 = 0x3fff;

impl Offload {
    /// Completes the checksum of a received frame that has this metadata: the one that is not
    /// calculated yet, and the one that the device vouches for, which may be unset (section
    /// 5.1.6.4). Nothing is changed if the frame does not match the metadata.
    pub fn finish(self, frame: &mut [u8]) {
        if self.needs_checksum() {
            // SAFETY: these are the bytes of `frame`.
            let _ = unsafe { self.complete(frame.as_mut_ptr(), frame.len()) };
        } else if self.flags & Self::DATA_VALID != 0 {
            recalculate(frame);
        }
    }
}

/// Calculates the TCP, UDP or ICMP checksum of a frame. That of a fragment covers others as well, so
/// it is left as it is.
pub(crate) fn recalculate(frame: &mut [u8]) {
    let Some(Message { start, end, field, mut sum }) = Message::of(frame) else { return };
    let Some(message) = frame.get_mut(start..end) else { return };
    let Some(old) = message.get_mut(field..field + 2) else { return };
    old.fill(0);
    sum += add(message);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // Zero means "none" in UDP; its complement is equivalent (RFC 768).
    let checksum = match !(sum as u16) {
        0 => 0xffff,
        checksum => checksum,
    };
    message[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// What a checksum covers, and where it is.
struct Message {
    start: usize,
    end: usize,
    /// From the start.
    field: usize,
    /// The sum of the pseudo-header.
    sum: u64,
}

impl Message {
    fn of(frame: &[u8]) -> Option<Self> {
        let layout = Layout::of(frame);
        let word = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
        let (protocol, start, end, addresses) = if let Some((ip, start)) = layout.ip4 {
            if word(ip + 6)? & FRAGMENT != 0 {
                return None;
            }
            (*frame.get(ip + 9)?, start, ip + usize::from(word(ip + 2)?), ip + 12..ip + 20)
        } else {
            let ip = layout.ip6?;
            let start = ip + 40;
            (*frame.get(ip + 6)?, start, start + usize::from(word(ip + 4)?), ip + 8..ip + 40)
        };
        let pseudo =
            add(frame.get(addresses)?) + u64::from(protocol) + end.checked_sub(start)? as u64;
        let (field, sum) = match (protocol, layout.ip4.is_some()) {
            (TCP, _) => (16, pseudo),
            // Over IPv4, 0 means no checksum.
            (UDP, true) if word(start + 6)? == 0 => return None,
            (UDP, _) => (6, pseudo),
            (ICMP, true) => (2, 0),
            (ICMPV6, false) => (2, pseudo),
            _ => return None,
        };
        Some(Self { start, end, field, sum })
    }
}

/// The sum of the 16-bit numbers of the bytes, the last of which is padded with a zero.
fn add(bytes: &[u8]) -> u64 {
    let mut pairs = bytes.chunks_exact(2);
    let whole: u64 =
        pairs.by_ref().map(|pair| u64::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    whole + pairs.remainder().first().map_or(0, |&last| u64::from(last) << 8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const VALID: Offload = Offload { flags: Offload::DATA_VALID, ..Offload::NONE };

    /// A frame with a message of this protocol, its checksum field included.
    fn frame(v6: bool, protocol: u8, message: &[u8]) -> Vec<u8> {
        let length = message.len() as u16;
        let mut frame = [&[2; 12][..], if v6 { &[0x86, 0xdd] } else { &[8, 0] }].concat();
        if v6 {
            frame.extend([0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([protocol, 64]);
            frame.extend((0..32).map(|byte| byte * 7));
        } else {
            frame.extend([0x45, 0]);
            frame.extend((20 + length).to_be_bytes());
            frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 9, 10, 0, 0, 1]);
        }
        frame.extend(message);
        frame
    }

    /// The example of section 3.
    #[test]
    fn sums_are_those_of_rfc_1071() {
        assert_eq!(add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0x2_ddf0);
        assert_eq!(add(&[0x12, 0x34, 0x56]), 0x1234 + 0x5600);
    }

    #[test]
    fn the_checksum_that_a_device_vouches_for_is_set() {
        for v6 in [false, true] {
            for (protocol, field, length) in
                [(TCP, 16, 33), (UDP, 6, 12), (if v6 { ICMPV6 } else { ICMP }, 2, 9)]
            {
                let mut message: Vec<u8> = (1..=length).collect();
                if protocol == TCP {
                    message[12] = 5 << 4;
                }
                let wrong = frame(v6, protocol, &message);
                let mut right = wrong.clone();
                VALID.finish(&mut right);
                let start = wrong.len() - message.len();
                let differs: Vec<_> =
                    (0..wrong.len()).filter(|&at| wrong[at] != right[at]).collect();
                assert!(!differs.is_empty(), "{v6} {protocol}");
                assert!(differs.iter().all(|at| [start + field, start + field + 1].contains(at)));
                // The sum of the message, its pseudo-header included, is right now.
                let ip = &right[14..start];
                let addresses = if v6 { &ip[8..40] } else { &ip[12..20] };
                let pseudo = add(addresses) + u64::from(protocol) + u64::from(length);
                let mut sum = add(&right[start..]) + if protocol == ICMP { 0 } else { pseudo };
                while sum > 0xffff {
                    sum = (sum & 0xffff) + (sum >> 16);
                }
                assert_eq!(sum, 0xffff, "{v6} {protocol}");
                // It is not changed again, nor one that nobody vouches for.
                let mut again = right.clone();
                VALID.finish(&mut again);
                assert_eq!(again, right);
                let mut alone = wrong.clone();
                Offload::NONE.finish(&mut alone);
                assert_eq!(alone, wrong);
            }
        }
    }

    #[test]
    fn what_has_no_checksum_of_its_own_is_unchanged() {
        let datagram = [0, 53, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4];
        let mut fragment = frame(false, UDP, &[9; 12]);
        fragment[20] = 0x20;
        for given in [
            frame(false, UDP, &datagram), // none, over IPv4
            fragment,
            frame(false, 47, &[9; 12]),
            frame(true, ICMP, &[9; 12]),
            vec![2; 60],
        ] {
            let mut left = given.clone();
            VALID.finish(&mut left);
            assert_eq!(left, given);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_safe(
            mut bytes in prop::collection::vec(any::<u8>(), 0..120),
            kind in 0usize..3,
            flags in 0u8..4,
        ) {
            if kind < 2 && bytes.len() > 14 {
                bytes[12..14].copy_from_slice(&[[8, 0], [0x86, 0xdd]][kind]);
                bytes[14] = [0x45, 0x60][kind];
            }
            let length = bytes.len();
            Offload { flags, csum_start: 34, csum_offset: 16, ..Offload::NONE }.finish(&mut bytes);
            prop_assert_eq!(bytes.len(), length);
        }
    }
}
