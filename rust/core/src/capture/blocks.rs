//! The blocks of a pcapng file (draft-ietf-opsawg-pcapng) that a capture of ours has, in this
//! machine's order of bytes.
//!
//! By hand, for the four of them: of the crates that write the format, `pcap-file` has no release
//! since 2023 but candidates, and `pcap-parser`, which reads for us, allocates for each packet.

/// Types of blocks.
const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;
/// Ethernet, of the registry of link types.
const ETHERNET: u16 = 1;
/// Options that any block may have, and the end of a block's.
const END: u16 = 0;
const COMMENT: u16 = 1;

/// Begins a block of a type and returns where it begins.
fn begin(out: &mut Vec<u8>, kind: u32) -> usize {
    let at = out.len();
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&[0; 4]); // its length, by `end`
    at
}

/// Writes the length of a block at both ends of it.
fn end(out: &mut Vec<u8>, at: usize) {
    let length = (out.len() - at + 4) as u32;
    out[at + 4..at + 8].copy_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&length.to_ne_bytes());
}

/// Fills up with zeros to four bytes.
fn pad(out: &mut Vec<u8>, length: usize) {
    out.extend_from_slice(&[0; 3][..(4 - length % 4) % 4]);
}

/// Adds an option; a text that is too long for one is cut.
fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = &value[..value.len().min(u16::MAX.into())];
    out.extend_from_slice(&code.to_ne_bytes());
    out.extend_from_slice(&(value.len() as u16).to_ne_bytes());
    out.extend_from_slice(value);
    pad(out, value.len());
}

/// A time in two halves, the upper first.
fn time(out: &mut Vec<u8>, nanoseconds: u64) {
    out.extend_from_slice(&((nanoseconds >> 32) as u32).to_ne_bytes());
    out.extend_from_slice(&(nanoseconds as u32).to_ne_bytes());
}

/// Section Header Block: the file's first.
pub(super) fn section(out: &mut Vec<u8>, comment: Option<&str>) {
    let at = begin(out, SECTION);
    out.extend_from_slice(&0x1a2b_3c4d_u32.to_ne_bytes());
    out.extend_from_slice(&1_u16.to_ne_bytes());
    out.extend_from_slice(&0_u16.to_ne_bytes());
    out.extend_from_slice(&u64::MAX.to_ne_bytes()); // the section's length is not told
    if let Some(comment) = comment {
        option(out, COMMENT, comment.as_bytes());
    }
    option(out, 3, std::env::consts::OS.as_bytes());
    option(out, 4, concat!("virtnic ", env!("CARGO_PKG_VERSION")).as_bytes());
    option(out, END, &[]);
    end(out, at);
}

/// What an Interface Description Block says.
pub(super) struct Described<'a> {
    pub(super) name: &'a str,
    pub(super) description: &'a str,
    pub(super) mac: [u8; 6],
    /// Bits a second.
    pub(super) speed: Option<u64>,
    pub(super) filter: Option<&'a str>,
    /// Bytes of a frame that are kept at most; 0 for all.
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
    option(out, 9, &[9]); // times are nanoseconds
    if let Some(filter) = said.filter {
        let mut value = vec![0]; // as text
        value.extend_from_slice(filter.as_bytes());
        option(out, 11, &value);
    }
    option(out, END, &[]);
    end(out, at);
}

/// What an Enhanced Packet Block says beside the frame.
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

/// What an Interface Statistics Block says.
pub(super) struct Totals {
    pub(super) interface: u32,
    /// When the capture began, and now.
    pub(super) from: u64,
    pub(super) to: u64,
    /// Frames that passed the interface; of these, those that found no room in memory, those that
    /// the filter let pass, and those in the file or an earlier one of the capture.
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
