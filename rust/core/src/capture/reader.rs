//! Reads pcapng and classic pcap files in either byte order. Memory use does not depend on the size
//! of the file.
//!
//! Files are untrusted input: any contents lead to a frame, the end of the file, or an error.

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

/// The initial size of the buffer, and its largest, which limits the size of a block. In bytes.
const BUFFER: usize = 256 << 10;
const MOST: usize = 16 << 20;
/// The most interfaces in a section.
const INTERFACES: usize = 65_536;
/// Nanoseconds per second.
const SECOND: i128 = 1_000_000_000;

/// The direction of a frame, as seen by the capturing host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Received by the capturing host.
    Received,
    /// Sent by the capturing host.
    Sent,
}

/// The metadata of a frame in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// When it was captured, in nanoseconds since 1970; `None` if the file has no time.
    pub timestamp: Option<i64>,
    /// The index of its interface in the section, from 0.
    pub interface: u32,
    /// The link type of its interface; 1 is Ethernet.
    pub link_type: u32,
    /// Its length on the wire in bytes; the file may have fewer.
    pub length: u32,
    /// Its direction, if the file has it.
    pub direction: Option<Direction>,
    /// Its comment.
    pub comment: Option<String>,
}

/// An interface of the section, with its time resolution.
#[derive(Clone, Copy, Debug)]
struct Interface {
    link_type: u32,
    /// Units of its times per second.
    units: i128,
    /// Seconds to add.
    offset: i64,
}

/// Reads a capture file.
pub struct Reader {
    name: String,
    blocks: Box<dyn PcapReaderIterator + Send>,
    failure: ReadFailure,
    interfaces: Vec<Interface>,
    /// Frames read so far.
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
    /// [`Error::Os`]; [`Error::Invalid`] if the file is not a capture.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let failed = |cause| Error::os(format!("reading {name}"), cause);
        let content = compressed::open(File::open(path).map_err(failed)?).map_err(|cause| {
            if cause.raw_os_error().is_some() { failed(cause) } else { unpacked(&name, &cause) }
        })?;
        Self::new(&name, content)
    }

    /// Reads from any source; `name` is its name in errors.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub fn new(name: &str, source: impl Read + Send + 'static) -> Result<Self> {
        let failure = ReadFailure::default();
        let source = RecordingSource { source, failure: failure.clone() };
        let blocks = create_reader(BUFFER, source).map_err(|error| match error {
            PcapError::ReadError => failure.error(name),
            PcapError::Eof => Error::Invalid(format!("{name} is empty: no capture")),
            _ => Error::Invalid(format!(
                "{name} is no capture: it begins as neither pcap nor pcapng does (compressed ones \
                 are read if gzip or zstd made them)"
            )),
        })?;
        Ok(Self {
            name: name.to_owned(),
            blocks,
            failure,
            interfaces: Vec::new(),
            count: 0,
            ended: false,
        })
    }

    /// Its name in errors.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Appends the next frame to `out` and returns its metadata; `None` at the end and after an
    /// error.
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
                Err(PcapError::ReadError) => return Err(self.failure.error(&self.name)),
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

    /// Reads more of the file into memory; false at its end.
    fn fill(&mut self) -> Result<bool> {
        let before = self.blocks.data().len();
        let read = self.blocks.refill().map_err(|_| ());
        read.map_err(|()| self.failure.error(&self.name))?;
        if self.blocks.data().len() > before {
            return Ok(true);
        }
        if self.blocks.reader_exhausted() {
            return if before == 0 { Ok(false) } else { Err(cut(&self.name, self.count)) };
        }
        // A single block fills the buffer.
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

/// Parses a block, and copies its frame if it has one.
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
        // The upper bits say whether frames include their frame check sequence.
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

/// Keeps the cause of a failed read, which the crate's error does not include.
#[derive(Clone, Default)]
struct ReadFailure(Arc<Mutex<Option<std::io::Error>>>);

impl ReadFailure {
    fn error(&self, name: &str) -> Error {
        let cause = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        match cause {
            Some(cause) if cause.raw_os_error().is_none() => unpacked(name, &cause),
            Some(cause) => Error::os(format!("reading {name}"), cause),
            None => Error::Invalid(format!("{name} cannot be read")),
        }
    }
}

/// A source that stores the error of a failed read.
struct RecordingSource<R> {
    source: R,
    failure: ReadFailure,
}

impl<R: Read> Read for RecordingSource<R> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        self.source.read(into).map_err(|cause| {
            let kind = cause.kind();
            *self.failure.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(cause);
            kind.into()
        })
    }
}
