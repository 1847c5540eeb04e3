//! A frame with varying fields, whose checksums are updated with them.

use super::Stream;
use super::heads::{Heads, LINE, LONGEST};
use super::pattern::{Span, Variation};
use super::signature::{Key, Mark, SIGNATURE};
use super::written::{Sealed, Sum, Written, folded};
use crate::net::Layout;
use crate::{Error, Result};
use std::ptr;

/// The most flows that are counted separately.
const MOST_FLOWS: u64 = 1 << 20;
/// The most lines of heads that a stream keeps: 256 KiB, which the second cache holds.
const MOST_LINES: usize = 4096;

/// A stream prepared for sending; all queues share it.
#[derive(Debug)]
pub(in crate::engine) struct Program {
    pub(super) templates: Vec<Template>,
    /// The fields that are written one by one.
    pub(super) variations: Vec<Variation>,
    /// The number of heads of each template: combinations of the other fields.
    pub(super) heads: usize,
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
    /// The first byte after all headers.
    payload: usize,
    heads: Heads,
    /// The fields that are written one by one.
    places: Vec<Written>,
    signature: Option<Sealed>,
    /// The checksums that are written in every frame, rather than in the heads.
    sums: Vec<Sum>,
    /// The payload that a receiver compares, up to the signature; varying bytes are zero.
    body: Vec<u8>,
    /// The ranges of the body that vary.
    blanks: Vec<(usize, usize)>,
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
        let written = |span: Span| Written::new(span, bytes, &layout, is_none);
        let places: Vec<_> = spans.iter().copied().map(written).collect();
        let parts = [(0, 2), (2, 8), (10, 8)].map(|(at, width)| Span::new(usable + at, width));
        let signature = stream.flow.then(|| Sealed::new(parts.map(written)));
        let signed = signature.iter().flat_map(|signature| &signature.parts);
        let mut differs = [0, 0];
        for place in places.iter().chain(signed.clone()) {
            place.add(place.span.word(bytes), &mut differs);
        }
        let mut sums = Vec::with_capacity(2);
        for (which, span) in checksums.iter().enumerate() {
            let (Some(span), Some(said)) = (span, said[which]) else { continue };
            if places.iter().chain(signed.clone()).any(|place| place.cover[which] != 0) {
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
        let payload = layout.payload;
        let heads = Heads::new(bytes, payload, 1, &mut [], &[]);
        let bytes = bytes.to_vec();
        Ok((Self { bytes, payload, heads, places, signature, sums, body, blanks }, variations))
    }

    /// Moves fields into the heads: `repeating` says which, and they repeat after `count` frames.
    fn bake(&mut self, variations: &[Variation], repeating: &[bool], count: usize) {
        let mut moved = Vec::new();
        let mut kept = Vec::new();
        for ((place, variation), &repeats) in self.places.iter().zip(variations).zip(repeating) {
            if repeats {
                moved.push((variation.of_lane(0, 1), *place));
            } else {
                kept.push(*place);
            }
        }
        let signed = self.signature.iter().flat_map(|signature| &signature.parts);
        let later: Vec<_> = kept.iter().chain(signed).collect();
        let (sums, baked): (Vec<_>, Vec<_>) = self.sums.iter().copied().partition(|sum| {
            later.iter().any(|place| place.cover[sum.which] != 0) || sum.at + 2 > LONGEST
        });
        let ends = moved.iter().map(|(_, place)| place.span.end());
        let ends = ends.chain(baked.iter().map(|sum| sum.at + 2));
        let end = ends.fold(self.payload, usize::max);
        self.heads = Heads::new(&self.bytes, end, count, &mut moved, &baked);
        (self.places, self.sums) = (kept, sums);
    }

    /// Writes a frame into a buffer that holds the template. `head` is the number of its head.
    ///
    /// The device, or whoever shares the memory with it, may have changed the buffer while it had
    /// it (some swap addresses in place). Headers, fields, checksums and the signature are written
    /// anew from private memory in every frame, so that what is counted as sent was sent. Only
    /// payload between them is left in the buffer: if that was changed, the receiver finds it by
    /// comparing (`is_whole`) and counts the frame as corrupt, as it would had the peer changed
    /// the frame on its way.
    ///
    /// # Safety
    /// The caller must have exclusive access to the buffer at `to`, which holds the template.
    #[inline(always)]
    pub(super) unsafe fn write(
        &self,
        head: usize,
        variations: &mut [Variation],
        seal: Option<(Key, Mark)>,
        to: *mut u8,
    ) {
        // SAFETY: by the contract of this function, here and below; a buffer's capacity is a
        // multiple of a line.
        let mut sums = unsafe { self.heads.copy(head, to) };
        // By index: in a loop this short, an iterator over both costs more than its body.
        for number in 0..self.places.len() {
            if let (Some(place), Some(variation)) =
                (self.places.get(number), variations.get_mut(number))
            {
                // SAFETY: as above.
                unsafe { place.put(variation.next(), to, &mut sums) };
            }
        }
        if let (Some((key, mark)), Some(signature)) = (seal, &self.signature) {
            // SAFETY: as above.
            unsafe { signature.put(key, mark, to, &mut sums) };
        }
        for sum in &self.sums {
            // SAFETY: as above.
            unsafe { sum.put(sums, to) };
        }
    }

    /// # Safety
    /// The caller must have exclusive access to the buffer at `to`, with room for the template.
    pub(super) unsafe fn copy(&self, to: *mut u8) {
        // SAFETY: by the contract of this function; the template is private memory.
        unsafe { ptr::copy_nonoverlapping(self.bytes.as_ptr(), to, self.bytes.len()) };
    }
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
        let (heads, repeating) = repeating(&templates, &variations);
        for template in &mut templates {
            template.bake(&variations, &repeating, heads);
        }
        let mut repeats = repeating.into_iter();
        variations.retain(|_| !repeats.next().unwrap_or(false));
        Ok(Self { templates, variations, heads, gap, burst: *burst, signed: *flow, flows })
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

/// The first frames that one of one queues sends, for tests and fuzzing. Panics if a frame is
/// written beyond the lines of its buffer.
#[cfg(any(test, feature = "testing"))]
pub(in crate::engine) fn first_frames(program: &Program, count: u64) -> Vec<Vec<u8>> {
    const GUARD: [u8; LINE] = [0xa5; LINE];
    let mut variations: Vec<_> = program.variations.iter().map(|each| each.of_lane(0, 1)).collect();
    let key = Key::new();
    let each = |number: u64| {
        let template = &program.templates[(number % program.templates.len() as u64) as usize];
        let length = template.bytes.len();
        let mut buffer = template.bytes.clone();
        buffer.resize(length.next_multiple_of(LINE), 0);
        buffer.extend(GUARD);
        let seal = program.signed.then_some((key, Mark { source: 0, number, time: number * 777 }));
        let head = (number % program.heads as u64) as usize;
        // SAFETY: the buffer is ours, with room for the template in whole lines.
        unsafe { template.write(head, &mut variations, seal, buffer.as_mut_ptr()) };
        assert!(buffer.ends_with(&GUARD), "frame {number} was written beyond its buffer");
        buffer.truncate(length);
        buffer
    };
    (0..count).map(each).collect()
}

/// Which fields become part of the heads, and the number of combinations of their values.
fn repeating(templates: &[Template], variations: &[Variation]) -> (usize, Vec<bool>) {
    let most = (MOST_LINES * LINE / LONGEST / templates.len().max(1)) as u64;
    let mut count = 1;
    let mut take = |(number, variation): (usize, &Variation)| {
        let is_near = templates.iter().all(|template| {
            template.places.get(number).is_some_and(|place| place.span.end() <= LONGEST)
        });
        let all = variation.period().and_then(|period| common_multiple(count, period));
        let Some(all) = all.filter(|&all| is_near && all <= most) else { return false };
        count = all;
        true
    };
    let taken = variations.iter().enumerate().map(&mut take).collect();
    (count as usize, taken)
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
