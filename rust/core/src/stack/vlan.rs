//! Priority tags: VLAN tags with a priority and VLAN identifier 0.
//!
//! A receiver treats such a frame as untagged (IEEE 802.1Q-2018, section 6.9.1 and table 9-2).
//! Switches, and Linux on PCP-aware drivers, send them.

/// The types of customer and service provider tags (IEEE 802.1Q-2018, table 9-1).
const TAGS: [[u8; 2]; 2] = [[0x81, 0x00], [0x88, 0xa8]];
/// The offset of a tag: after the two addresses.
const AT: usize = 12;
const TAG: usize = 4;
/// The bits of the tag control information with the VLAN identifier.
const VLAN: u16 = 0x0fff;

/// Removes the leading priority tags of a frame.
pub(super) fn remove_priority_tags(frame: &mut Vec<u8>) {
    while has_priority_tag(frame) {
        frame.drain(AT..AT + TAG);
    }
}

fn has_priority_tag(frame: &[u8]) -> bool {
    match frame.get(AT..AT + TAG + 2) {
        // A tag is followed by an EtherType.
        Some(&[a, b, high, low, ..]) => {
            TAGS.contains(&[a, b]) && u16::from_be_bytes([high, low]) & VLAN == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESSES: [u8; 12] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];

    fn without(behind: &[u8]) -> Vec<u8> {
        let mut frame = [&ADDRESSES, behind].concat();
        remove_priority_tags(&mut frame);
        assert_eq!(frame[..12], ADDRESSES);
        frame.split_off(12)
    }

    #[test]
    fn priority_tags_are_removed() {
        for priority in [0x00, 0x10, 0x20, 0xe0, 0xf0] {
            assert_eq!(without(&[0x81, 0, priority, 0, 8, 0, 7]), [8, 0, 7]);
            assert_eq!(without(&[0x88, 0xa8, priority, 0, 8, 6]), [8, 6]);
        }
        assert_eq!(without(&[0x88, 0xa8, 0, 0, 0x81, 0, 0xe0, 0, 8, 0]), [8, 0]);
    }

    #[test]
    fn everything_else_is_unchanged() {
        let stays: [&[u8]; 8] = [
            &[],
            &[0x81],
            &[0x81, 0, 0],
            &[0x81, 0, 0, 0],
            &[0x81, 0, 0, 0, 8],
            &[0x81, 0, 0, 1, 8, 0],
            &[0x81, 0, 0x0f, 0xff, 8, 0],
            &[0x81, 0, 0, 5, 0x81, 0, 0, 0, 8, 0],
        ];
        for frame in stays {
            assert_eq!(without(frame), frame);
        }
        assert_eq!(without(&[8, 0, 0, 0, 0, 0]), [8, 0, 0, 0, 0, 0]);
        assert_eq!(without(&[0x81, 0, 0, 0, 0x81, 0, 0, 5, 8, 0]), [0x81, 0, 0, 5, 8, 0]);
        for length in 0..ADDRESSES.len() {
            let mut short = ADDRESSES[..length].to_vec();
            remove_priority_tags(&mut short);
            assert_eq!(short, ADDRESSES[..length]);
        }
    }
}
