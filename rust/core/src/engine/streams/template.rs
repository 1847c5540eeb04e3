//! A frame with varying fields, whose checksums are updated with them.

use super::Stream;
use super::layout::{Layout, Transport};
use super::pattern::{Span, Variation};
use super::signature::{Key, Mark, SIGNATURE};
use crate::{Error, Result};
use std::ptr;

/// The most flows that are counted separately.
const MOST_FLOWS: u64 = 1 << 20;

/// A stream prepared for sending; all queues share it.
#[derive(Debug)]
pub(in crate::engine) struct Program {
    pub(super) templates: Vec<Template>,
    pub(super) variations: Vec<Variation>,
    /// Nanoseconds from one frame to the next, for all queues together.
    pub(super) gap: Option<f64>,
    pub(super) burst: u64,
    pub(super) signed: bool,
    /// The number of frames after which the fields repeat.
    pub flows: u64,
}

/// A frame to send, with its varying fields.
#[derive(Debug)]
pub(super) struct Template {
    pub bytes: Vec<u8>,
    places: Vec<Written>,
    signature: Vec<Written>,
    sums: Vec<Sum>,
    /// The payload that a receiver compares, up to the signature; varying bytes are zero.
    body: Vec<u8>,
    /// The ranges of the body that vary.
    blanks: Vec<(usize, usize)>,
}

/// A field in a template.
#[derive(Clone, Copy, Debug)]
struct Written {
    span: Span,
    /// The bits of the template outside the mask.
    keep: u64,
    /// The bits covered by the checksum of the IPv4 header, and by that of TCP or UDP.
    cover: [u64; 2],
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

/// A checksum.
#[derive(Clone, Copy, Debug)]
struct Sum {
    at: usize,
    /// 0: that of the IPv4 header; 1: that of TCP or UDP.
    which: usize,
    /// The sum of the constant part.
    rest: u16,
    is_udp: bool,
}

/// The ones' complement sum of the 16-bit numbers in a word.
#[inline(always)]
fn halves(word: u64) -> u64 {
    let pairs = (word & 0xffff_ffff) + (word >> 32);
    (pairs & 0xffff) + (pairs >> 16)
}

#[inline(always)]
fn folded(mut sum: u64) -> u16 {
    // The sum has fewer than 32 bits, so two steps are enough.
    sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

impl Written {
    #[inline(always)]
    fn add(&self, word: u64, sums: &mut [u64; 2]) {
        match self.counts {
            Counts::Not => {}
            Counts::Whole => {
                let sum = halves(word);
                sums[0] += if self.cover[0] == 0 { 0 } else { sum };
                sums[1] += if self.cover[1] == 0 { 0 } else { sum };
            }
            Counts::Partial => self.add_part(word, sums),
        }
    }

    #[cold]
    fn add_part(&self, word: u64, sums: &mut [u64; 2]) {
        const LOW: u64 = 0x00ff_00ff_00ff_00ff;
        for (sum, cover) in sums.iter_mut().zip(self.cover) {
            let covered = word & cover;
            *sum += if self.span.end() % 2 == 1 {
                // The field ends at an odd offset, so its bytes are swapped (RFC 1071).
                halves((covered & LOW) << 8 | covered >> 8 & LOW)
            } else {
                halves(covered)
            };
        }
    }

    /// # Safety
    /// The caller must have exclusive access to the frame at `to`, as long as the template.
    #[inline(always)]
    unsafe fn put(&self, value: u64, to: *mut u8, sums: &mut [u64; 2]) {
        let word = value & self.span.mask | self.keep;
        // SAFETY: the span is inside the frame.
        unsafe { store(to.add(self.span.offset), self.span.width, word) };
        self.add(word, sums);
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

impl Template {
    fn new(stream: &Stream, bytes: &[u8]) -> Result<(Self, Vec<Variation>)> {
        let layout = Layout::of(bytes);
        let signed = if stream.flow { SIGNATURE } else { 0 };
        let Some(usable) = bytes.len().checked_sub(signed).filter(|&end| end >= layout.payload)
        else {
            return Err(Error::Invalid(format!(
                "a frame of {} bytes has {} of payload, and its signature takes {SIGNATURE}: make \
                 it longer, or send it with flow=False",
                bytes.len(),
                bytes.len() - layout.payload
            )));
        };
        let mut spans = Vec::new();
        let mut variations = Vec::new();
        for field in &stream.fields {
            let found = field.spans(&layout, usable)?;
            variations.extend(field.variations(&found, bytes)?);
            spans.extend(found);
        }
        let checksums = [
            layout.ip4.map(|(at, _)| Span::new(at + 10, 2)),
            layout.transport.map(|transport| Span::new(transport.checksum(), 2)),
        ];
        for (number, span) in spans.iter().enumerate() {
            let at = span.offset;
            if spans[..number].iter().any(|other| span.overlaps(other)) {
                return Err(Error::Invalid(format!("two fields have byte {at} in common")));
            }
            if checksums.iter().flatten().any(|other| span.overlaps(other)) {
                return Err(Error::Invalid(format!(
                    "the field at {at} is a checksum, which follows the others by itself"
                )));
            }
        }
        // A UDP checksum of zero means no checksum (RFC 768).
        let is_udp = layout.transport.is_some_and(|found| found.is_udp);
        let said = checksums.map(|span| {
            span.filter(|span| span.end() <= bytes.len()).map(|span| span.word(bytes) as u16)
        });
        let is_none = [said[0].is_none(), said[1].is_none_or(|said| is_udp && said == 0)];
        let written = |span: &Span| {
            let mut cover = covers(span, &layout);
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
            Written { span: *span, keep: span.word(bytes) & !span.mask, cover, counts }
        };
        let places: Vec<_> = spans.iter().map(written).collect();
        let parts = [(0, 2), (2, 8), (10, 8)].map(|(at, width)| Span::new(usable + at, width));
        let signature: Vec<_> = parts.iter().filter(|_| stream.flow).map(written).collect();
        let mut differs = [0, 0];
        for place in places.iter().chain(&signature) {
            place.add(place.span.word(bytes), &mut differs);
        }
        let mut sums = Vec::with_capacity(2);
        for (which, span) in checksums.iter().enumerate() {
            let (Some(span), Some(said)) = (span, said[which]) else { continue };
            if places.iter().chain(&signature).any(|place| place.cover[which] != 0) {
                // Subtract the varying part by adding its complement (RFC 1624).
                let rest = folded(u64::from(!said) + u64::from(!folded(differs[which])));
                sums.push(Sum { at: span.offset, which, rest, is_udp: which == 1 && is_udp });
            }
        }
        let start = layout.payload.min(usable);
        let mut body = bytes[start..usable].to_vec();
        let blanks: Vec<_> = spans
            .iter()
            .filter(|span| span.end() > start)
            .map(|span| (span.offset.max(start) - start, span.end() - start))
            .collect();
        for &(from, to) in &blanks {
            body[from..to].fill(0);
        }
        Ok((Self { bytes: bytes.to_vec(), places, signature, sums, body, blanks }, variations))
    }

    /// Writes the varying fields into a buffer that holds the template.
    ///
    /// # Safety
    /// The caller must have exclusive access to the buffer at `to`, which holds the template.
    #[inline(always)]
    pub(super) unsafe fn write(
        &self,
        variations: &mut [Variation],
        seal: Option<(Key, Mark)>,
        to: *mut u8,
    ) {
        let mut sums = [0, 0];
        for (variation, place) in variations.iter_mut().zip(&self.places) {
            // SAFETY: by the contract of this function.
            unsafe { place.put(variation.next(), to, &mut sums) };
        }
        if let Some((key, mark)) = seal {
            for (value, place) in key.seal(mark).into_iter().zip(&self.signature) {
                // SAFETY: by the contract of this function.
                unsafe { place.put(value, to, &mut sums) };
            }
        }
        for sum in &self.sums {
            let differs = if sum.which == 0 { sums[0] } else { sums[1] };
            let mut checksum = !folded(u64::from(sum.rest) + differs);
            if sum.is_udp && checksum == 0 {
                checksum = 0xffff;
            }
            // SAFETY: the checksum is inside the template, and so inside the buffer.
            unsafe { store(to.add(sum.at), 2, checksum.into()) };
        }
    }

    /// # Safety
    /// The caller must have exclusive access to the buffer at `to`, with room for the template.
    pub(super) unsafe fn copy(&self, to: *mut u8) {
        // SAFETY: by the contract of this function; the template is private memory.
        unsafe { ptr::copy_nonoverlapping(self.bytes.as_ptr(), to, self.bytes.len()) };
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

impl Program {
    pub(in crate::engine) fn new(stream: &Stream, longest: usize) -> Result<Self> {
        let Stream { frames, rate, burst, flow, .. } = stream;
        let mut templates = Vec::with_capacity(frames.len());
        let mut variations = Vec::new();
        for (number, frame) in frames.iter().enumerate() {
            if !(14..=longest).contains(&frame.len()) {
                return Err(Error::Invalid(format!(
                    "frame {number} has {} bytes; a header of Ethernet and a buffer make it 14 to \
                     {longest}",
                    frame.len()
                )));
            }
            let (template, found) = Template::new(stream, frame)?;
            if number == 0 {
                variations = found;
            }
            templates.push(template);
        }
        if templates.is_empty() {
            return Err(Error::Invalid("there is no frame to send".to_owned()));
        }
        if let Some(rate) = rate
            && !(*rate > 0.0 && rate.is_finite())
        {
            return Err(Error::Invalid(format!("a rate is above 0 frames a second, not {rate}")));
        }
        if *burst == 0 {
            return Err(Error::Invalid("a burst has one frame at least, not 0".to_owned()));
        }
        let flows = variations.iter().filter_map(Variation::period).try_fold(1, common_multiple);
        let gap = rate.map(|rate| 1e9 / rate);
        let flows = flows.unwrap_or(1);
        Ok(Self { templates, variations, gap, burst: *burst, signed: *flow, flows })
    }

    /// Whether frames have signatures.
    pub(in crate::engine) fn is_signed(&self) -> bool {
        self.signed
    }
    /// The length of the longest frame.
    pub(super) fn longest(&self) -> usize {
        self.templates.iter().map(|template| template.bytes.len()).max().unwrap_or(0)
    }

    /// Whether the payload of the frame `number`, up to its signature, is what was sent. `read`
    /// fills a slice with the last bytes before the signature.
    pub(in crate::engine) fn is_whole(
        &self,
        number: u64,
        scratch: &mut Vec<u8>,
        read: impl FnOnce(&mut [u8]) -> bool,
    ) -> bool {
        let turn = number % self.templates.len() as u64;
        let Template { body, blanks, .. } = &self.templates[turn as usize];
        if body.is_empty() {
            return true;
        }
        scratch.resize(body.len(), 0);
        if !read(scratch) {
            return false;
        }
        for &(from, to) in blanks {
            scratch[from..to].fill(0);
        }
        scratch == body
    }
}

/// The least common multiple; `None` above [`MOST_FLOWS`].
fn common_multiple(a: u64, b: u64) -> Option<u64> {
    a.checked_mul(b / divisor(a, b)).filter(|&flows| flows <= MOST_FLOWS)
}

/// The greatest common divisor.
pub(in crate::engine) fn divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { divisor(b, a % b) }
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
