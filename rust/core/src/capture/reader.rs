//! Reads pcapng and classic pcap, either order of bytes, in memory that does not grow with the file.
//!
//! A file is no better than a peer: whatever is in it, the answer is a frame, the end, or an error.

use super::compressed;
use crate::{Error, Result};
use pcap_parser::traits::{PcapNGPacketBlock, PcapReaderIterator};
use pcap_parser::{
    Block, IDB_MAGIC, InterfaceDescriptionBlock, OptionCode, PcapBlockOwned, PcapError, PcapHeader,
    PcapNGOption, create_reader,
};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes in memory to begin with, and for the longest block.
const BUFFER: usize = 256 << 10;
const MOST: usize = 16 << 20;
/// Interfaces that a section has at most.
const INTERFACES: usize = 65_536;
/// Nanoseconds in a second.
const SECOND: i128 = 1_000_000_000;

/// Which way a frame went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To whoever captured it.
    Received,
    /// From there.
    Sent,
}

/// What a file says of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// When it was captured, nanoseconds since 1970; `None` where the file does not say.
    pub timestamp: Option<i64>,
    /// Which of the section's interfaces it passed, from 0.
    pub interface: u32,
    /// The kind of its first header; 1 is Ethernet (the registry of link types).
    pub link_type: u32,
    /// Its bytes on the wire, of which the file may have fewer.
    pub length: u32,
    /// Which way it went, where the file says so.
    pub direction: Option<Direction>,
    /// Somebody's remark.
    pub comment: Option<String>,
}

/// How an interface counts time.
#[derive(Clone, Copy, Debug)]
struct Interface {
    link_type: u32,
    /// Units a second.
    units: i128,
    /// Seconds to add.
    offset: i64,
}

/// A capture file that is being read.
pub struct Reader {
    name: String,
    blocks: Box<dyn PcapReaderIterator + Send>,
    trouble: Trouble,
    interfaces: Vec<Interface>,
    /// Frames so far.
    count: u64,
    ended: bool,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("name", &self.name)
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

impl Reader {
    /// Opens a file.
    ///
    /// # Errors
    /// [`Error::Os`]; [`Error::Invalid`] for what is no capture.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let failed = |cause| Error::os(format!("reading {name}"), cause);
        let content = compressed::open(File::open(path).map_err(failed)?).map_err(|cause| {
            if cause.raw_os_error().is_some() { failed(cause) } else { unpacked(&name, &cause) }
        })?;
        Self::new(&name, content)
    }

    /// Reads what has this name in errors.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub fn new(name: &str, source: impl Read + Send + 'static) -> Result<Self> {
        let trouble = Trouble::default();
        let source = Telling { source, trouble: trouble.clone() };
        let blocks = create_reader(BUFFER, source).map_err(|error| match error {
            PcapError::ReadError => trouble.error(name),
            PcapError::Eof => Error::Invalid(format!("{name} is empty: no capture")),
            _ => Error::Invalid(format!(
                "{name} is no capture: it begins as neither pcap nor pcapng does (compressed ones \
                 are read if gzip or zstd made them)"
            )),
        })?;
        Ok(Self {
            name: name.to_owned(),
            blocks,
            trouble,
            interfaces: Vec::new(),
            count: 0,
            ended: false,
        })
    }

    /// What it is called in errors.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Appends the next frame to `out` and returns what is said of it; `None` at the end, and after
    /// an error.
    ///
    /// # Errors
    /// [`Error::Invalid`], [`Error::Os`]: the rest cannot be read.
    pub fn next(&mut self, out: &mut Vec<u8>) -> Result<Option<Frame>> {
        if self.ended {
            return Ok(None);
        }
        let next = self.advance(out);
        self.count += 1;
        self.ended = !matches!(next, Ok(Some(_)));
        next
    }

    fn advance(&mut self, out: &mut Vec<u8>) -> Result<Option<Frame>> {
        loop {
            let (count, interfaces) = (self.count, &mut self.interfaces);
            let taken = match self.blocks.next() {
                Ok((length, block)) => {
                    let found = look_at(&block, interfaces, out)
                        .map_err(|why| wrong(&self.name, count, &why))?;
                    Some((length, found))
                }
                Err(PcapError::Eof) => return Ok(None),
                Err(PcapError::Incomplete(_) | PcapError::BufferTooSmall) => None,
                Err(PcapError::UnexpectedEof) => return Err(cut(&self.name, count)),
                Err(PcapError::ReadError) => return Err(self.trouble.error(&self.name)),
                Err(_) => return Err(wrong(&self.name, count, "the block there is malformed")),
            };
            match taken {
                Some((length, found)) => {
                    self.blocks.consume(length);
                    if found.is_some() {
                        return Ok(found);
                    }
                }
                None if self.fill()? => {}
                None => return Ok(None),
            }
        }
    }

    /// Has more of the file in memory; false at its end.
    fn fill(&mut self) -> Result<bool> {
        let before = self.blocks.data().len();
        let read = self.blocks.refill().map_err(|_| ());
        read.map_err(|()| self.trouble.error(&self.name))?;
        if self.blocks.data().len() > before {
            return Ok(true);
        }
        if self.blocks.reader_exhausted() {
            return if before == 0 { Ok(false) } else { Err(cut(&self.name, self.count)) };
        }
        // It is full of one block.
        if before >= MOST || !self.blocks.grow((2 * before).clamp(BUFFER, MOST)) {
            let why = format!("the block there is malformed, or has more than {MOST} bytes");
            return Err(wrong(&self.name, self.count, &why));
        }
        Ok(true)
    }
}

fn wrong(name: &str, count: u64, why: &str) -> Error {
    Error::Invalid(format!("{name} cannot be read after its first {count} frames: {why}"))
}

fn cut(name: &str, count: u64) -> Error {
    Error::Invalid(format!("{name} ends within a block: it was cut after its first {count} frames"))
}

fn unpacked(name: &str, cause: &std::io::Error) -> Error {
    Error::Invalid(format!("{name} is compressed, and cannot be unpacked: {cause}"))
}

/// Looks at a block, and copies its frame where it has one.
fn look_at(
    block: &PcapBlockOwned<'_>,
    interfaces: &mut Vec<Interface>,
    out: &mut Vec<u8>,
) -> Result<Option<Frame>, String> {
    match block {
        PcapBlockOwned::LegacyHeader(header) => interfaces.push(Interface::of_header(header)),
        PcapBlockOwned::Legacy(record) => {
            let Some(&interface) = interfaces.first() else { return Err("no header".to_owned()) };
            let fraction = i128::from(record.ts_usec) * (SECOND / interface.units);
            let timestamp = i128::from(record.ts_sec) * SECOND + fraction;
            out.extend_from_slice(record.data);
            return Ok(Some(Frame {
                timestamp: Some(clamped(timestamp)),
                interface: 0,
                link_type: interface.link_type,
                length: record.origlen.max(record.data.len() as u32),
                direction: None,
                comment: None,
            }));
        }
        PcapBlockOwned::NG(Block::SectionHeader(_)) => interfaces.clear(),
        PcapBlockOwned::NG(Block::InterfaceDescription(said)) => {
            if interfaces.len() == INTERFACES {
                return Err(format!("a section has more than {INTERFACES} interfaces"));
            }
            interfaces.push(Interface::of_block(said)?);
        }
        PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
            let interface = known(interfaces, packet.if_id)?;
            let units = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
            let data = packet.packet_data();
            out.extend_from_slice(data);
            return Ok(Some(Frame {
                timestamp: Some(interface.time(units)),
                interface: packet.if_id,
                link_type: interface.link_type,
                length: packet.origlen.max(data.len() as u32),
                direction: direction(&packet.options, packet.big_endian()),
                comment: comment(&packet.options),
            }));
        }
        PcapBlockOwned::NG(Block::SimplePacket(packet)) => {
            let interface = known(interfaces, 0)?;
            let held = packet.data.len().min(packet.origlen as usize);
            out.extend_from_slice(&packet.data[..held]);
            return Ok(Some(Frame {
                timestamp: None,
                interface: 0,
                link_type: interface.link_type,
                length: packet.origlen,
                direction: None,
                comment: None,
            }));
        }
        PcapBlockOwned::NG(_) => {}
    }
    Ok(None)
}

fn known(interfaces: &[Interface], number: u32) -> Result<Interface, String> {
    interfaces.get(number as usize).copied().ok_or_else(|| {
        format!("the packet there is of interface {number}, and {} are described", interfaces.len())
    })
}

fn clamped(nanoseconds: i128) -> i64 {
    nanoseconds.clamp(i64::MIN.into(), i64::MAX.into()) as i64
}

impl Interface {
    fn of_header(header: &PcapHeader) -> Self {
        let units = if header.is_nanosecond_precision() { SECOND } else { SECOND / 1000 };
        // Above are bits that say whether frames have their check sequence.
        Self { link_type: header.network.0 as u32 & 0xffff, units, offset: 0 }
    }

    fn of_block(said: &InterfaceDescriptionBlock<'_>) -> Result<Self, String> {
        let value = |code| said.options.iter().find(|option| option.code == code);
        let resolution = value(OptionCode::IfTsresol).and_then(|option| option.value().first());
        let resolution = resolution.copied().unwrap_or(6);
        let base: i128 = if resolution & 0x80 == 0 { 10 } else { 2 };
        let units = base.checked_pow(u32::from(resolution & 0x7f)).ok_or_else(|| {
            format!(
                "an interface counts time in units of {base} to the minus {}",
                resolution & 0x7f
            )
        })?;
        let offset = value(OptionCode::IfTsoffset)
            .and_then(|option| option.value().first_chunk::<8>())
            .map_or(0, |bytes| match said.block_type {
                IDB_MAGIC => i64::from_le_bytes(*bytes),
                _ => i64::from_be_bytes(*bytes),
            });
        Ok(Self { link_type: said.linktype.0 as u32 & 0xffff, units, offset })
    }

    fn time(&self, units: u64) -> i64 {
        clamped(i128::from(units) * SECOND / self.units + i128::from(self.offset) * SECOND)
    }
}

/// The first two bits of `epb_flags`.
fn direction(options: &[PcapNGOption<'_>], big_endian: bool) -> Option<Direction> {
    let flags = options.iter().find(|option| option.code.0 == 2)?.value().first_chunk::<4>()?;
    let flags = if big_endian { u32::from_be_bytes(*flags) } else { u32::from_le_bytes(*flags) };
    match flags & 3 {
        1 => Some(Direction::Received),
        2 => Some(Direction::Sent),
        _ => None,
    }
}

fn comment(options: &[PcapNGOption<'_>]) -> Option<String> {
    let found = options.iter().find(|option| option.code == OptionCode::Comment)?;
    Some(String::from_utf8_lossy(found.as_bytes().ok()?).into_owned())
}

/// Why a file could not be read, for what the crate leaves out of its error.
#[derive(Clone, Default)]
struct Trouble(Arc<Mutex<Option<std::io::Error>>>);

impl Trouble {
    fn error(&self, name: &str) -> Error {
        let cause = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        match cause {
            Some(cause) if cause.raw_os_error().is_none() => unpacked(name, &cause),
            Some(cause) => Error::os(format!("reading {name}"), cause),
            None => Error::Invalid(format!("{name} cannot be read")),
        }
    }
}

/// Keeps the error of a read.
struct Telling<R> {
    source: R,
    trouble: Trouble,
}

impl<R: Read> Read for Telling<R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        self.source.read(into).map_err(|cause| {
            let kind = cause.kind();
            *self.trouble.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(cause);
            kind.into()
        })
    }
}
