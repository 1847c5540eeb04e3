//! The signature in the last bytes of a frame: its stream, its number, and when it was due.

use std::hash::{BuildHasher, Hasher, RandomState};

/// Bytes of a signature: checksum (2), stream and number (8), time and run (8).
pub(in crate::engine) const SIGNATURE: usize = 18;

const TIME: u64 = (1 << 48) - 1;
const NUMBER: u64 = (1 << 48) - 1;
/// Odd, and without 16 equal bits in a row, so that a flipped bit always changes the checksum.
const FACTORS: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f];

/// Distinguishes the signatures of a run from those of other runs.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) struct Key {
    run: u16,
    secret: u64,
}

/// The contents of a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) struct Mark {
    /// The stream and its sending queue.
    pub source: u16,
    /// The frame's number in that queue, from 0.
    pub number: u64,
    /// The low 48 bits of the time at which it was due, in nanoseconds.
    pub time: u64,
}

impl Mark {
    /// Nanoseconds from the frame's time to `now`; `None` if `now` is earlier.
    #[inline]
    pub(in crate::engine) fn age(self, now: u64) -> Option<u64> {
        let age = now.wrapping_sub(self.time) & TIME;
        (age <= TIME / 2).then_some(age)
    }
}

/// The result of reading the last bytes of a received frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum Sight {
    /// A signature of this run.
    Ours(Mark),
    /// A signature of this run with bit errors.
    Corrupt,
    /// Not a signature of this run.
    Foreign,
}

impl Key {
    pub(in crate::engine) fn new() -> Self {
        let random = RandomState::new().build_hasher().finish();
        Self { run: random as u16, secret: random.rotate_left(29) ^ FACTORS[0] }
    }

    #[inline]
    fn check(self, first: u64, second: u64) -> u16 {
        let mixed = first.wrapping_mul(FACTORS[0]).wrapping_add(second.wrapping_mul(FACTORS[1]));
        (mixed.wrapping_add(self.secret) >> 48) as u16
    }

    /// The three parts of a signature: checksum; stream and number; time and run.
    #[inline]
    pub(in crate::engine) fn seal(self, mark: Mark) -> [u64; 3] {
        let first = u64::from(mark.source) << 48 | mark.number & NUMBER;
        let second = (mark.time & TIME) << 16 | u64::from(self.run);
        [self.check(first, second).into(), first, second]
    }

    #[inline]
    pub(in crate::engine) fn read(self, bytes: [u8; SIGNATURE]) -> Sight {
        let [c, d, rest @ ..] = bytes;
        let [a, b] = [0, 8].map(|at| {
            let mut word = [0; 8];
            word.copy_from_slice(&rest[at..at + 8]);
            u64::from_be_bytes(word)
        });
        let check = u16::from_be_bytes([c, d]);
        if b as u16 != self.run {
            // If a single bit of the run is wrong, the checksum matches with the right run.
            let with_ours = b & !0xffff | u64::from(self.run);
            let is_near = (b as u16 ^ self.run).is_power_of_two();
            let is_ours = is_near && check == self.check(a, with_ours);
            return if is_ours { Sight::Corrupt } else { Sight::Foreign };
        }
        if check != self.check(a, b) {
            return Sight::Corrupt;
        }
        Sight::Ours(Mark { source: (a >> 48) as u16, number: a & NUMBER, time: b >> 16 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(parts: [u64; 3]) -> [u8; SIGNATURE] {
        let mut bytes = [0; SIGNATURE];
        bytes[..2].copy_from_slice(&(parts[0] as u16).to_be_bytes());
        bytes[2..10].copy_from_slice(&parts[1].to_be_bytes());
        bytes[10..].copy_from_slice(&parts[2].to_be_bytes());
        bytes
    }

    #[test]
    fn every_single_bit_error_is_detected() {
        for number in [0, 1, 77, NUMBER] {
            let key = Key::new();
            let mark = Mark { source: 3, number, time: 123_456_789 };
            let sealed = bytes(key.seal(mark));
            assert_eq!(key.read(sealed), Sight::Ours(mark));
            for bit in 0..8 * SIGNATURE {
                let mut flipped = sealed;
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(key.read(flipped), Sight::Corrupt, "bit {bit}");
            }
        }
    }

    #[test]
    fn random_bytes_are_nearly_always_foreign() {
        let key = Key::new();
        let ours = (0..100_000u64).filter(|i| {
            let noise = [i.wrapping_mul(FACTORS[1]), i.wrapping_mul(FACTORS[0]), i << 40 | i];
            key.read(bytes(noise)) != Sight::Foreign
        });
        assert!(ours.count() < 20);
    }

    #[test]
    fn the_age_of_a_frame_is_right_when_the_time_wraps() {
        let mark = Mark { source: 0, number: 0, time: TIME - 5 };
        assert_eq!(mark.age(TIME + 10), Some(15));
        assert_eq!(mark.age(TIME - 6), None);
    }
}
