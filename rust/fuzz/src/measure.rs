//! Frames that arrive at a measurement: ours, of others, and ours with changes.

use crate::Input;
use virtnic::engine::testing::Receiver;
use virtnic::engine::{Field, Pattern, Place, Stream};

/// Frames that were sent.
const SENT: u64 = 50_000;
const LENGTH: usize = 64;

/// Each frame is counted once, and none that was not sent is received.
pub fn target(data: &[u8]) {
    let mut input = Input::new(data);
    let pattern = Pattern::Increment { first: None, step: 1, count: 7 };
    let field = Field { place: Place::At { offset: 20, width: 2 }, pattern };
    let template = vec![7; LENGTH];
    let stream = Stream {
        frames: vec![template.clone()],
        fields: vec![field],
        rate: None,
        burst: 1,
        flow: true,
    };
    let mut receiver = Receiver::new(&stream, SENT).unwrap();
    let mut seen = 0;
    let mut right = std::collections::BTreeSet::new();
    while !input.is_empty() {
        let kind = input.byte();
        let (source, number) = (u16::from(kind >> 7), u64::from(input.word() % (SENT as u32 + 99)));
        let (time, now) = (u64::from(input.short()), u64::from(input.short()));
        let mut frame = template.clone();
        frame.truncate(LENGTH - 18);
        frame.extend(receiver.signature(source, number, time));
        let mut is_right = source == 0 && number < SENT && time <= now;
        match kind % 4 {
            0 | 1 => {}
            2 => {
                let at = usize::from(input.byte()) % LENGTH;
                let by = input.byte();
                frame[at] ^= by;
                // The header of Ethernet may change on the way; the bytes of the field do vary.
                is_right &= by == 0 || at < 14 || (20..22).contains(&at);
                if by != 0 && at >= LENGTH - 18 && by.count_ones() > 1 {
                    continue; // a checksum of 16 bits need not find it
                }
            }
            _ => {
                let length = usize::from(input.byte());
                frame = input.bytes(length).to_vec();
                is_right = false;
            }
        }
        let before = receiver.counts();
        receiver.see(&frame, now);
        seen += 1;
        let counts = receiver.counts();
        let all =
            [counts.received, counts.duplicates, counts.corrupt, counts.foreign, counts.stale];
        assert_eq!(all.iter().sum::<u64>(), seen, "{counts:?}");
        if is_right {
            let is_new = right.insert(number);
            assert_eq!(counts.received - before.received, u64::from(is_new), "frame {number}");
        } else {
            assert_eq!(counts.received, before.received, "a frame that was not sent");
        }
    }
    assert_eq!(receiver.counts().received, right.len() as u64);
}
