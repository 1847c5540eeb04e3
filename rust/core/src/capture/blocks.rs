//! The four types of pcapng blocks (draft-ietf-opsawg-pcapng) that we write, in native byte order.
//!
//! They are written by hand: of the crates that write pcapng, `pcap-file` has had only release
//! candidates since 2023, and `pcap-parser`, which we use for reading, allocates for each packet.

/// Block types.
const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;
/// The link type of Ethernet.
const ETHERNET: u16 = 1;
/// Options that any block may have: a comment, and the end of the options.
const END: u16 = 0;
const COMMENT: u16 = 1;

/// Begins a block and returns its offset.
fn begin(out: &mut Vec<u8>, kind: u32) -> usize {
    let at = out.len();
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&[0; 4]); // the length, set by `end`
    at
}

/// Writes the length of a block at its start and its end.
fn end(out: &mut Vec<u8>, at: usize) {
    let length = (out.len() - at + 4) as u32;
    out[at + 4..at + 8].copy_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&length.to_ne_bytes());
}

/// Pads with zeros to a multiple of four bytes.
fn pad(out: &mut Vec<u8>, length: usize) {
    out.extend_from_slice(&[0; 3][..(4 - length % 4) % 4]);
}

/// Adds an option. Values too long for an option are truncated.
fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = &value[..value.len().min(u16::MAX.into())];
    out.extend_from_slice(&code.to_ne_bytes());
    out.extend_from_slice(&(value.len() as u16).to_ne_bytes());
    out.extend_from_slice(value);
    pad(out, value.len());
}

/// Writes a time as two 32-bit halves, the upper first.
fn time(out: &mut Vec<u8>, nanoseconds: u64) {
    out.extend_from_slice(&((nanoseconds >> 32) as u32).to_ne_bytes());
    out.extend_from_slice(&(nanoseconds as u32).to_ne_bytes());
}

/// Section Header Block: the first block of a file.
pub(super) fn section(out: &mut Vec<u8>, comment: Option<&str>) {
    let at = begin(out, SECTION);
    out.extend_from_slice(&0x1a2b_3c4d_u32.to_ne_bytes());
    out.extend_from_slice(&1_u16.to_ne_bytes());
    out.extend_from_slice(&0_u16.to_ne_bytes());
    out.extend_from_slice(&u64::MAX.to_ne_bytes()); // section length not specified
    if let Some(comment) = comment {
        option(out, COMMENT, comment.as_bytes());
    }
    option(out, 3, std::env::consts::OS.as_bytes());
    option(out, 4, concat!("virtnic ", env!("CARGO_PKG_VERSION")).as_bytes());
    option(out, END, &[]);
    end(out, at);
}

/// The contents of an Interface Description Block.
pub(super) struct Described<'a> {
    pub(super) name: &'a str,
    pub(super) description: &'a str,
    pub(super) mac: [u8; 6],
    /// Bits per second.
    pub(super) speed: Option<u64>,
    pub(super) filter: Option<&'a str>,
    /// The most bytes kept of each frame; 0: all.
    pub(super) snap: u32,
}

/// Interface Description Block.
pub(super) fn interface(out: &mut Vec<u8>, said: &Described<'_>) {
    let at = begin(out, INTERFACE);
    out.extend_from_slice(&ETHERNET.to_ne_bytes());
    out.extend_from_slice(&[0; 2]);
    out.extend_from_slice(&said.snap.to_ne_bytes());
    option(out, 2, said.name.as_bytes());
    if !said.description.is_empty() {
        option(out, 3, said.description.as_bytes());
    }
    option(out, 6, &said.mac);
    if let Some(speed) = said.speed {
        option(out, 8, &speed.to_ne_bytes());
    }
    option(out, 9, &[9]); // if_tsresol: nanoseconds
    if let Some(filter) = said.filter {
        let mut value = vec![0]; // a libpcap expression
        value.extend_from_slice(filter.as_bytes());
        option(out, 11, &value);
    }
    option(out, END, &[]);
    end(out, at);
}

/// The contents of an Enhanced Packet Block besides the frame.
pub(super) struct Captured<'a> {
    pub(super) interface: u32,
    /// Nanoseconds since 1970.
    pub(super) timestamp: u64,
    pub(super) length: u32,
    pub(super) received: bool,
    pub(super) comment: Option<&'a str>,
}

/// Enhanced Packet Block.
#[inline]
pub(super) fn packet(out: &mut Vec<u8>, said: &Captured<'_>, frame: &[u8]) {
    let at = begin(out, PACKET);
    out.extend_from_slice(&said.interface.to_ne_bytes());
    time(out, said.timestamp);
    out.extend_from_slice(&(frame.len() as u32).to_ne_bytes());
    out.extend_from_slice(&said.length.to_ne_bytes());
    out.extend_from_slice(frame);
    pad(out, frame.len());
    if let Some(comment) = said.comment {
        option(out, COMMENT, comment.as_bytes());
    }
    let direction: u32 = if said.received { 1 } else { 2 };
    option(out, 2, &direction.to_ne_bytes());
    option(out, END, &[]);
    end(out, at);
}

/// The contents of an Interface Statistics Block.
pub(super) struct Totals {
    pub(super) interface: u32,
    /// When the capture began, and the current time.
    pub(super) from: u64,
    pub(super) to: u64,
    /// Frames that passed the interface; of these, frames dropped for lack of memory, frames that
    /// the filter accepted, and frames written to this or an earlier file of the capture.
    pub(super) seen: u64,
    pub(super) dropped: u64,
    pub(super) accepted: u64,
    pub(super) written: u64,
}

/// Interface Statistics Block.
pub(super) fn statistics(out: &mut Vec<u8>, totals: &Totals) {
    let at = begin(out, STATISTICS);
    out.extend_from_slice(&totals.interface.to_ne_bytes());
    time(out, totals.to);
    for (code, moment) in [(2, totals.from), (3, totals.to)] {
        let mut value = Vec::with_capacity(8);
        time(&mut value, moment);
        option(out, code, &value);
    }
    let counts = [(4, totals.seen), (5, totals.dropped), (6, totals.accepted), (8, totals.written)];
    for (code, count) in counts {
        option(out, code, &count.to_ne_bytes());
    }
    option(out, END, &[]);
    end(out, at);
}
