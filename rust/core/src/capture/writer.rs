//! Writes the frames that ports send and receive to a pcapng file, in a separate thread.
//!
//! The ports' queues copy frames into rings of fixed size ([`QueueTap`]). The thread takes them
//! from the rings in the order of their times. Queues never wait for it: frames that do not fit are
//! dropped and counted, and the counts are in the file's Interface Statistics Blocks. If the file
//! cannot be written, the ports continue, the file is truncated after its last complete block, and
//! [`Writer::close`] returns the error.

use super::blocks::{self, Captured, Described, Totals};
use super::filter::Filter;
use crate::net::{QueueTap, TapCounter};
use crate::process::{Home, background};
use crate::{Error, Result};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Bytes that are written with one system call.
const CHUNK: usize = 1 << 20;
/// Frames between two checks for a stop.
const STRIDE: usize = 1 << 14;
/// The time between polls of empty rings. Before waiting, everything is written to the file.
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// The time between checks whether the thread has ended.
const END_CHECK_INTERVAL: Duration = Duration::from_micros(500);
/// How long dropping an open capture waits for it to be written.
const DROP_TIMEOUT: Duration = Duration::from_secs(2);
/// The most comments that wait for a frame.
const COMMENTS: usize = 1024;

/// The options of a capture.
#[derive(Debug)]
pub struct Options {
    /// The file, which is overwritten.
    pub path: PathBuf,
    /// The most bytes kept of each frame.
    pub snap: u32,
    /// When to begin another file.
    pub rotation: Option<Rotation>,
    /// A comment at the start of each file.
    pub comment: Option<String>,
    /// Which frames are kept; `None`: all.
    pub filter: Option<Filter>,
}

/// Writes several files instead of one: `NAME_00001.pcapng` and so on.
#[derive(Clone, Copy, Debug)]
pub struct Rotation {
    /// The size of a file in bytes at which another is begun.
    pub bytes: u64,
    /// How many of the newest files are kept; `None`: all.
    pub files: Option<u64>,
}

/// A port and its description in the file.
#[derive(Debug)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its description.
    pub description: String,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Bits per second, if known.
    pub speed: Option<u64>,
    /// Taps of its queues; [`snap`] is the length of each frame that they copy.
    pub taps: Vec<QueueTap>,
}

/// Counts of the frames of a capture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames that the ports sent or received.
    pub seen: u64,
    /// Frames dropped because the buffer was full or the file could not be written any more.
    pub dropped: u64,
    /// Frames that the filter rejected.
    pub filtered: u64,
    /// Frames written to a file, or waiting in the thread's buffer.
    pub written: u64,
    /// Bytes written to files.
    pub bytes: u64,
    /// Files begun.
    pub files: u64,
}

/// How many bytes of each frame the taps copy: all of them if there is a filter.
#[must_use]
pub fn snap(options: &Options) -> u32 {
    if options.filter.is_some() { u32::MAX } else { options.snap }
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    filtered: AtomicU64,
    written: AtomicU64,
    bytes: AtomicU64,
    files: AtomicU64,
    failed: AtomicBool,
    failure: Mutex<Option<Error>>,
    comments: Mutex<VecDeque<String>>,
}

impl Shared {
    fn comments(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.comments.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn fail(&self, error: Error) {
        log::warn!("the capture ended: {error}");
        self.failed.store(true, Ordering::Release);
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }
}

/// A running capture.
#[derive(Debug)]
pub struct Writer {
    home: Home,
    shared: Arc<Shared>,
    taps: Vec<TapCounter>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    /// Creates the file and starts the capture.
    ///
    /// # Errors
    /// [`Error::Os`] if the file or the thread cannot be created; [`Error::Invalid`] if a rotation
    /// has too few bytes, or if there is no port.
    pub fn start(options: Options, interfaces: Vec<Interface>) -> Result<Self> {
        if interfaces.is_empty() {
            return Err(Error::Invalid("there is no port to capture from".to_owned()));
        }
        if options
            .rotation
            .is_some_and(|rotation| rotation.bytes < 4096 || rotation.files == Some(0))
        {
            return Err(Error::Invalid(
                "another file is begun after 4096 bytes or more, and one file or more is kept"
                    .to_owned(),
            ));
        }
        let shared = Arc::<Shared>::default();
        let queues = interfaces.iter().flat_map(|said| &said.taps);
        let taps = queues.map(|tap| tap.reader.counter()).collect();
        let work = Work::new(options, interfaces, shared.clone())?;
        let thread = background("virtnic-capture", move || work.run())
            .map_err(|cause| Error::os("starting the thread of a capture", cause))?;
        Ok(Self { home: Home::here(), shared, taps, thread: Mutex::new(Some(thread)) })
    }

    /// The counts so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let shared = &self.shared;
        let (mut seen, mut dropped) = (0, 0);
        for counts in self.taps.iter().map(TapCounter::counts) {
            seen += counts.frames;
            dropped += counts.dropped;
        }
        Counts {
            seen,
            dropped,
            filtered: get(&shared.filtered),
            written: get(&shared.written),
            bytes: get(&shared.bytes),
            files: get(&shared.files),
        }
    }

    /// Whether the capture ended because the file could not be written.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.shared.failed.load(Ordering::Acquire)
    }

    /// Adds a comment to the next frame that is written.
    ///
    /// # Errors
    /// [`Error::Invalid`] if too many comments already wait for a frame.
    pub fn comment(&self, text: &str) -> Result<()> {
        let mut comments = self.shared.comments();
        if comments.len() == COMMENTS {
            return Err(Error::Invalid(format!("{COMMENTS} comments wait for a frame already")));
        }
        comments.push_back(text.to_owned());
        Ok(())
    }

    /// Writes the remaining frames and ends the capture. Returns false if that takes longer than
    /// `timeout`, for example because the file is a pipe that is not read. Idempotent.
    ///
    /// # Errors
    /// [`Error::Os`] if the file could not be written; returned once.
    pub fn close(&self, timeout: Duration) -> Result<bool> {
        if !self.home.is_here() {
            return Ok(true);
        }
        let mut place = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = &*place {
            self.shared.stop.store(true, Ordering::Release);
            thread.thread().unpark();
            let since = Instant::now();
            while !thread.is_finished() {
                if since.elapsed() >= timeout {
                    return Ok(false);
                }
                std::thread::sleep(END_CHECK_INTERVAL);
            }
        }
        if let Some(thread) = place.take()
            && thread.join().is_err()
        {
            return Err(Error::Invalid("the thread of the capture failed".to_owned()));
        }
        let failure = self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        failure.map_or(Ok(true), Err)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        match self.close(DROP_TIMEOUT) {
            Ok(true) => {}
            Ok(false) => log::warn!("a capture that nobody closed cannot be written"),
            Err(error) => log::warn!("{error}"),
        }
    }
}

/// A port and its counts.
#[derive(Debug)]
struct Source {
    said: Interface,
    accepted: u64,
    written: u64,
}

/// The state of the thread.
#[derive(Debug)]
struct Work {
    options: Options,
    sources: Vec<Source>,
    shared: Arc<Shared>,
    file: File,
    /// The path of `file`, and those of earlier files.
    path: PathBuf,
    earlier: VecDeque<PathBuf>,
    number: u64,
    /// The size of this file in bytes, and the bytes that are still to be written.
    size: u64,
    out: Vec<u8>,
    frame: Vec<u8>,
    from: u64,
}

impl Work {
    fn new(options: Options, interfaces: Vec<Interface>, shared: Arc<Shared>) -> Result<Self> {
        let path = path_of(&options, 1);
        let file = create(&path)?;
        let sources = interfaces.into_iter().map(|said| Source { said, accepted: 0, written: 0 });
        let mut work = Self {
            sources: sources.collect(),
            options,
            shared,
            file,
            path,
            earlier: VecDeque::new(),
            number: 1,
            size: 0,
            out: Vec::with_capacity(CHUNK + (128 << 10)),
            frame: Vec::new(),
            from: now(),
        };
        work.shared.files.store(1, Ordering::Relaxed);
        work.head();
        work.flush()?;
        Ok(work)
    }

    fn run(mut self) {
        let result = self.write().and_then(|()| self.finish());
        for tap in self.sources.iter().flat_map(|source| &source.said.taps) {
            tap.stop();
        }
        if let Err(error) = result {
            // A full disk may have taken only a part of the last chunk, and so of a block.
            let _ = self.file.set_len(self.size);
            let _ = self.file.seek(std::io::SeekFrom::End(0));
            self.shared.fail(error);
        }
    }

    fn write(&mut self) -> Result<()> {
        loop {
            let stopping = self.shared.stop.load(Ordering::Acquire);
            if stopping {
                for tap in self.sources.iter().flat_map(|source| &source.said.taps) {
                    tap.stop();
                }
            }
            let moved = self.drain()?;
            if moved > 0 {
                continue;
            }
            self.flush()?;
            if stopping {
                return Ok(());
            }
            std::thread::park_timeout(POLL_INTERVAL);
        }
    }

    /// Takes frames from the rings, oldest first; returns how many.
    fn drain(&mut self) -> Result<usize> {
        for moved in 0..STRIDE {
            let mut oldest: Option<(u64, usize, usize)> = None;
            for (at, source) in self.sources.iter_mut().enumerate() {
                for (queue, tap) in source.said.taps.iter_mut().enumerate() {
                    if let Some(record) = tap.reader.peek()
                        && oldest.is_none_or(|(time, ..)| record.timestamp < time)
                    {
                        oldest = Some((record.timestamp, at, queue));
                    }
                }
            }
            let Some((_, at, queue)) = oldest else { return Ok(moved) };
            self.take(at, queue)?;
        }
        Ok(STRIDE)
    }

    fn take(&mut self, at: usize, queue: usize) -> Result<()> {
        let Self { sources, frame, options, shared, out, .. } = self;
        let source = &mut sources[at];
        let tap = &mut source.said.taps[queue];
        let Some(record) = tap.reader.peek() else { return Ok(()) };
        frame.clear();
        tap.reader.take(frame);
        if let Some(filter) = &options.filter {
            if !filter.wants(frame, record.length) {
                shared.filtered.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            frame.truncate(options.snap as usize);
        }
        let comment = shared.comments().pop_front();
        let said = Captured {
            interface: at as u32,
            timestamp: record.timestamp,
            length: record.length,
            received: tap.receives,
            comment: comment.as_deref(),
        };
        blocks::packet(out, &said, frame);
        source.accepted += 1;
        source.written += 1;
        shared.written.fetch_add(1, Ordering::Relaxed);
        if out.len() >= CHUNK {
            self.flush()?;
        }
        if let Some(rotation) = self.options.rotation
            && self.size + self.out.len() as u64 >= rotation.bytes
        {
            self.rotate(rotation)?;
        }
        Ok(())
    }

    /// Writes the description of the ports at the start of a file.
    fn head(&mut self) {
        let filter = self.options.filter.as_ref().map(Filter::text);
        let snap = if self.options.snap == u32::MAX { 0 } else { self.options.snap };
        blocks::section(&mut self.out, self.options.comment.as_deref());
        for Source { said, .. } in &self.sources {
            let Interface { name, description, mac, speed, .. } = said;
            let said = Described { name, description, mac: *mac, speed: *speed, filter, snap };
            blocks::interface(&mut self.out, &said);
        }
    }

    /// Writes the counts at the end of a file.
    fn finish(&mut self) -> Result<()> {
        for (number, source) in self.sources.iter().enumerate() {
            let counts = source.said.taps.iter().map(|tap| tap.reader.counts());
            let (seen, dropped) = counts.fold((0, 0), |(seen, dropped), counts| {
                (seen + counts.frames, dropped + counts.dropped)
            });
            let totals = Totals {
                interface: number as u32,
                from: self.from,
                to: now(),
                seen,
                dropped,
                accepted: source.accepted,
                written: source.written,
            };
            blocks::statistics(&mut self.out, &totals);
        }
        self.flush()
    }

    fn rotate(&mut self, rotation: Rotation) -> Result<()> {
        self.finish()?;
        self.number += 1;
        let path = path_of(&self.options, self.number);
        self.file = create(&path)?;
        self.size = 0;
        self.earlier.push_back(std::mem::replace(&mut self.path, path));
        self.shared.files.fetch_add(1, Ordering::Relaxed);
        while rotation.files.is_some_and(|files| self.earlier.len() as u64 >= files) {
            let Some(oldest) = self.earlier.pop_front() else { break };
            if let Err(cause) = std::fs::remove_file(&oldest) {
                log::warn!(
                    "an old file of a capture was not removed: {}: {cause}",
                    oldest.display()
                );
            }
        }
        self.head();
        self.flush()
    }

    fn flush(&mut self) -> Result<()> {
        if self.out.is_empty() {
            return Ok(());
        }
        self.file
            .write_all(&self.out)
            .map_err(|cause| Error::os(format!("writing {}", self.path.display()), cause))?;
        self.size += self.out.len() as u64;
        self.shared.bytes.fetch_add(self.out.len() as u64, Ordering::Relaxed);
        self.out.clear();
        Ok(())
    }
}

fn create(path: &Path) -> Result<File> {
    File::create(path).map_err(|cause| Error::os(format!("making {}", path.display()), cause))
}

/// The path of a file; with rotation, its name includes its number.
fn path_of(options: &Options, number: u64) -> PathBuf {
    if options.rotation.is_none() {
        return options.path.clone();
    }
    let mut name = options.path.file_stem().unwrap_or_default().to_owned();
    name.push(format!("_{number:05}"));
    if let Some(extension) = options.path.extension() {
        name.push(".");
        name.push(extension);
    }
    options.path.with_file_name(name)
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
