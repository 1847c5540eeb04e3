//! The bytes of a frame that vary, and the checksums that cover them.

use super::pattern::Span;
use super::signature::{Key, Mark};
use crate::net::{Layout, Transport};

/// The sums of the varying bytes that the checksum of the IPv4 header covers, and of those that
/// the checksum of TCP or UDP covers.
pub(super) type Sums = [u64; 2];

/// A field in a template.
#[derive(Clone, Copy, Debug)]
pub(super) struct Written {
    pub span: Span,
    /// The bits of the template outside the mask.
    keep: u64,
    /// The bits covered by each checksum.
    pub cover: [u64; 2],
    counts: Counts,
}

/// How the checksums cover a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counts {
    /// No checksum covers it.
    Not,
    /// Each checksum covers all of it or none, and it ends at a 16-bit boundary.
    Whole,
    /// A checksum covers a part of it, or it ends between two 16-bit boundaries.
    Partial,
}

/// A checksum in a template.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sum {
    pub at: usize,
    /// 0: that of the IPv4 header; 1: that of TCP or UDP.
    pub which: usize,
    /// The sum of the constant part.
    pub rest: u16,
    pub is_udp: bool,
}

/// The ones' complement sum of two numbers. Words may be added as they are: the 16-bit numbers in
/// them are summed when the result is folded (RFC 1071, section 2).
#[inline(always)]
fn plus(a: u64, b: u64) -> u64 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u64::from(carry)
}

/// The ones' complement sum of the four 16-bit numbers in a word.
#[inline(always)]
pub(super) fn folded(sum: u64) -> u16 {
    // Each half is the sum of both, with the carry of the lower half added to the upper one.
    let sum = (sum.wrapping_add(sum.rotate_left(32)) >> 32) as u32;
    (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
}

impl Written {
    /// A field of a template; `is_none` says which checksums the frame does not have.
    pub(super) fn new(span: Span, bytes: &[u8], layout: &Layout, is_none: [bool; 2]) -> Self {
        let mut cover = covers(&span, layout);
        for (cover, is_none) in cover.iter_mut().zip(is_none) {
            *cover = if is_none { 0 } else { *cover };
        }
        let all = Span::new(span.offset, span.width).mask;
        let counts = match cover {
            [0, 0] => Counts::Not,
            _ if span.end().is_multiple_of(2) && cover.iter().all(|&c| c == 0 || c == all) => {
                Counts::Whole
            }
            _ => Counts::Partial,
        };
        Self { span, keep: span.word(bytes) & !span.mask, cover, counts }
    }

    #[inline(always)]
    pub(super) fn add(&self, word: u64, sums: &mut Sums) {
        match self.counts {
            Counts::Not => {}
            Counts::Whole => {
                sums[0] = plus(sums[0], if self.cover[0] == 0 { 0 } else { word });
                sums[1] = plus(sums[1], if self.cover[1] == 0 { 0 } else { word });
            }
            Counts::Partial => self.add_part(word, sums),
        }
    }

    #[cold]
    fn add_part(&self, word: u64, sums: &mut Sums) {
        for (sum, cover) in sums.iter_mut().zip(self.cover) {
            let covered = folded(word & cover);
            // Where the field ends at an odd offset, its bytes are swapped (RFC 1071).
            let is_odd = self.span.end() % 2 == 1;
            *sum = plus(*sum, if is_odd { covered.swap_bytes() } else { covered }.into());
        }
    }

    /// # Safety
    /// The caller must have exclusive access to the frame at `to`, as long as the template.
    #[inline(always)]
    pub(super) unsafe fn put(&self, value: u64, to: *mut u8, sums: &mut Sums) {
        let word = value & self.span.mask | self.keep;
        // SAFETY: the span is inside the frame.
        unsafe { store(to.add(self.span.offset), self.span.width, word) };
        self.add(word, sums);
    }
}

/// The three parts of the signature in a template.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sealed {
    pub parts: [Written; 3],
    covered: Covered,
}

/// How the checksums cover a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Covered {
    /// No checksum covers it.
    Not,
    /// That of TCP or UDP, and no other, covers all of it, from an even offset on.
    Whole,
    /// In some other way.
    Otherwise,
}

impl Sealed {
    pub(super) fn new(parts: [Written; 3]) -> Self {
        let is_whole = |part: &Written| {
            part.counts == Counts::Whole && part.cover[0] == 0 && part.cover[1] != 0
        };
        let covered = if parts.iter().all(|part| part.counts == Counts::Not) {
            Covered::Not
        } else if parts.iter().all(is_whole) {
            Covered::Whole
        } else {
            Covered::Otherwise
        };
        Self { parts, covered }
    }

    /// # Safety
    /// The caller must have exclusive access to the frame at `to`, as long as the template.
    #[inline(always)]
    pub(super) unsafe fn put(&self, key: Key, mark: Mark, to: *mut u8, sums: &mut Sums) {
        let [check, first, second] = key.seal(mark);
        // SAFETY: the signature is inside the frame; byte arrays need no alignment.
        unsafe {
            let to = to.add(self.parts[0].span.offset);
            to.cast::<[u8; 2]>().write((check as u16).to_be_bytes());
            to.add(2).cast::<[u8; 8]>().write(first.to_be_bytes());
            to.add(10).cast::<[u8; 8]>().write(second.to_be_bytes());
        }
        match self.covered {
            Covered::Not => {}
            Covered::Whole => sums[1] = plus(sums[1], plus(check, plus(first, second))),
            Covered::Otherwise => self.add([check, first, second], sums),
        }
    }

    #[cold]
    fn add(&self, words: [u64; 3], sums: &mut Sums) {
        for (part, word) in self.parts.iter().zip(words) {
            part.add(word, sums);
        }
    }
}

impl Sum {
    /// Writes the checksum, given the sums of all that varies.
    ///
    /// # Safety
    /// The caller must have exclusive access to the frame at `to`, as long as the template.
    #[inline(always)]
    pub(super) unsafe fn put(&self, sums: Sums, to: *mut u8) {
        let differs = if self.which == 0 { sums[0] } else { sums[1] };
        let mut checksum = !folded(plus(differs, self.rest.into()));
        if self.is_udp && checksum == 0 {
            checksum = 0xffff;
        }
        // SAFETY: the checksum is inside the template, and so inside the buffer.
        unsafe { to.add(self.at).cast::<[u8; 2]>().write(checksum.to_be_bytes()) };
    }
}

/// Writes the lowest `width` bytes of a word in big-endian order.
///
/// # Safety
/// The caller must have exclusive access to `width` bytes at `to`.
#[inline(always)]
unsafe fn store(to: *mut u8, width: usize, word: u64) {
    let bytes = (word << (64 - 8 * width)).to_be_bytes();
    let [a, b, c, d, e, f, ..] = bytes;
    // SAFETY: by the contract of this function; byte arrays need no alignment.
    unsafe {
        match width {
            2 => to.cast::<[u8; 2]>().write([a, b]),
            4 => to.cast::<[u8; 4]>().write([a, b, c, d]),
            8 => to.cast::<[u8; 8]>().write(bytes),
            6 => to.cast::<[u8; 6]>().write([a, b, c, d, e, f]),
            _ => {
                for (at, byte) in bytes.iter().take(width).enumerate() {
                    to.add(at).write(*byte);
                }
            }
        }
    }
}

/// The bits of a span that each checksum covers.
fn covers(span: &Span, layout: &Layout) -> [u64; 2] {
    let inside = |from: usize, to: usize| {
        let bytes = (0..span.width).filter(|at| (from..to).contains(&(span.offset + at)));
        bytes.fold(0u64, |cover, at| cover | 0xff << (8 * (span.width - 1 - at)))
    };
    let header = layout.ip4.map_or(0, |(at, end)| inside(at, end));
    let Some(Transport { at, end, .. }) = layout.transport else { return [header, 0] };
    // The pseudo-header contains both addresses.
    let addresses = match (layout.ip4, layout.ip6) {
        (Some((ip, _)), _) => inside(ip + 12, ip + 20),
        (_, Some(ip)) => inside(ip + 8, ip + 40),
        _ => 0,
    };
    [header, addresses | inside(at, end)]
}
