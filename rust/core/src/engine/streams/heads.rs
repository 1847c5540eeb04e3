//! The first bytes of a template's frames, for each combination of the fields that repeat.

use super::pattern::Variation;
use super::written::{Sum, Sums, Written};
use std::ptr;

/// Buffers are multiples of 64 bytes, so whole lines fit wherever the frame does.
pub(super) const LINE: usize = 64;
/// The longest heads. Fields behind are written separately.
pub(super) const LONGEST: usize = 2 * LINE;

/// The heads of a template: the whole lines with its headers.
#[derive(Debug)]
pub(super) struct Heads {
    /// The lines of each head in turn.
    lines: Vec<[u8; LINE]>,
    /// The number of lines of each head.
    height: usize,
    /// For each head, the sums of its varying bytes.
    sums: Vec<[u16; 2]>,
}

impl Heads {
    /// The heads of the frame `bytes`, up to the byte `end` at least. `fields` are those that
    /// repeat after `count` frames or a part of that; `baked` are the checksums that depend on
    /// nothing else.
    pub(super) fn new(
        bytes: &[u8],
        end: usize,
        count: usize,
        fields: &mut [(Variation, Written)],
        baked: &[Sum],
    ) -> Self {
        let height = end.clamp(1, LONGEST).div_ceil(LINE);
        let mut scratch = bytes.to_vec();
        scratch.resize(bytes.len().next_multiple_of(LINE), 0);
        let mut heads =
            Self { lines: Vec::with_capacity(count * height), height, sums: Vec::new() };
        for _ in 0..count {
            let mut sums: Sums = [0, 0];
            for (variation, field) in fields.iter_mut() {
                // SAFETY: the scratch is as long as the template at least, and ours.
                unsafe { field.put(variation.next(), scratch.as_mut_ptr(), &mut sums) };
            }
            for sum in baked {
                // SAFETY: as before.
                unsafe { sum.put(sums, scratch.as_mut_ptr()) };
            }
            let lines = scratch.chunks_exact(LINE).take(height);
            heads.lines.extend(lines.map(|line| {
                let mut copy = [0; LINE];
                copy.copy_from_slice(line);
                copy
            }));
            heads.sums.push(sums.map(super::written::folded));
        }
        heads
    }

    /// Copies a head into a buffer and returns the sums of its varying bytes.
    ///
    /// # Safety
    /// The caller must have exclusive access to the buffer at `to`, which has room for the
    /// template and whose capacity is a multiple of [`LINE`].
    #[inline(always)]
    pub(super) unsafe fn copy(&self, number: usize, to: *mut u8) -> Sums {
        let at = number * self.height;
        for line in 0..self.height {
            let Some(from) = self.lines.get(at + line) else { break };
            // SAFETY: by the contract of this function; the heads are private memory.
            unsafe { ptr::copy_nonoverlapping(from, to.add(line * LINE).cast(), 1) };
        }
        let [header, transport] = self.sums.get(number).copied().unwrap_or_default();
        [header.into(), transport.into()]
    }
}
