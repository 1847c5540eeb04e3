//! Reads a capture file ahead for a replay.

use super::reader::Reader;
use crate::engine::{TimedFrame, TimedFrames};
use crate::process::{Home, background};
use crate::{Error, Result};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

/// The most frames, and about the most bytes, in a chunk.
const FRAMES: usize = 1024;
const BYTES: usize = 256 << 10;
/// Chunks that are read ahead.
const AHEAD: usize = 8;
/// The link type of Ethernet.
const ETHERNET: u32 = 1;

/// The frames of a file, read ahead in chunks, repeatedly if requested.
#[derive(Debug)]
pub struct Tape {
    home: Home,
    chunks: Option<Receiver<Result<TimedFrames>>>,
    thread: Option<JoinHandle<()>>,
}

impl Tape {
    /// Starts to read a file that is replayed `times` times. With `parts`, truncated frames are
    /// replayed as they are; without, they are an error.
    ///
    /// # Errors
    /// As for [`Reader::open`]; [`Error::Os`] if no thread can be created.
    pub fn new(path: PathBuf, times: u64, parts: bool) -> Result<Self> {
        let first = Reader::open(&path)?;
        let (sender, receiver) = sync_channel(AHEAD);
        let thread = background("virtnic-replay", move || {
            if let Err(error) = read(first, path, times, parts, &sender) {
                // Sending fails if the replay has ended.
                let _ = sender.send(Err(error));
            }
        });
        let thread = thread.map_err(|cause| Error::os("starting the thread of a replay", cause))?;
        Ok(Self { home: Home::here(), chunks: Some(receiver), thread: Some(thread) })
    }
}

impl Iterator for Tape {
    type Item = Result<TimedFrames>;
    fn next(&mut self) -> Option<Self::Item> {
        self.chunks.as_ref()?.recv().ok()
    }
}

impl Drop for Tape {
    fn drop(&mut self) {
        self.chunks = None;
        if let Some(thread) = self.thread.take().filter(|_| self.home.is_here()) {
            let _ = thread.join();
        }
    }
}

/// Reads all passes of a file.
fn read(
    mut reader: Reader,
    path: PathBuf,
    times: u64,
    parts: bool,
    to: &SyncSender<Result<TimedFrames>>,
) -> Result<()> {
    // When this pass begins, and when the previous frame is due.
    let (mut start, mut last) = (0_u64, 0_u64);
    for pass in 0..times {
        if pass > 0 {
            reader = Reader::open(&path)?;
        }
        let (mut first, mut count) = (None, 0_u64);
        let mut chunk = TimedFrames::default();
        loop {
            let at = chunk.bytes.len();
            let Some(frame) = reader.next(&mut chunk.bytes)? else { break };
            let length = chunk.bytes.len() - at;
            if frame.link_type != ETHERNET {
                return Err(Error::Invalid(format!(
                    "{}: frame {count} has link type {}; a port sends Ethernet (1) only",
                    reader.name(),
                    frame.link_type
                )));
            }
            if (length as u64) < u64::from(frame.length) && !parts {
                return Err(Error::Invalid(format!(
                    "{} has {length} of the {} bytes of frame {count}; capture whole frames, or let \
                     parts of frames be sent",
                    reader.name(),
                    frame.length
                )));
            }
            count += 1;
            if let Some(timestamp) = frame.timestamp {
                let since = timestamp.saturating_sub(*first.get_or_insert(timestamp));
                // Frames with decreasing timestamps are sent in the order of the file.
                last = last.max(start.saturating_add(u64::try_from(since).unwrap_or(0)));
            }
            if length == 0 {
                continue;
            }
            chunk.frames.push(TimedFrame { due: last, start: at, length });
            let full = chunk.frames.len() == FRAMES || chunk.bytes.len() >= BYTES;
            if full && to.send(Ok(std::mem::take(&mut chunk))).is_err() {
                return Ok(());
            }
        }
        if !chunk.frames.is_empty() && to.send(Ok(chunk)).is_err() {
            return Ok(());
        }
        if count == 0 {
            return Err(Error::Invalid(format!("{} has no frames", reader.name())));
        }
        // The next pass begins one average gap after the last frame.
        last += (last - start) / (count - 1).max(1);
        start = last;
    }
    Ok(())
}
