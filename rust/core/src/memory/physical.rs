//! Physically contiguous memory: hold, find, release.
//!
//! The kernel cannot be asked for particular hugepages, but its list of free hugepages is a stack:
//! a released page is the next to be allocated. So:
//!
//! 1. *Hold* free hugepages, batch by batch, and read their frame numbers from
//!    `/proc/self/pagemap` (which shows them to CAP_SYS_ADMIN only).
//! 2. *Find* a run of frames as long as the region and aligned to its size.
//! 3. *Release* the holder of each frame in turn and touch the page of the region that should get
//!    it.
//!
//! Every frame is verified afterwards. If another process takes a page in between, everything is
//! released and tried again, with every free page held until the end. Processes that use this
//! module take turns (by a lock on sysfs's folder), if they see the same sysfs.

use super::backing::Backing;
use super::mapping::{self, Mapping};
use super::pages::{self, human};
use super::{Iova, PageSize, iova, numa};
use crate::{Error, Result};
use rustix::fs::{self, CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::mm::{self, MapFlags, ProtFlags};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::os::fd::OwnedFd;
use std::ptr;
use std::time::{Duration, Instant};

/// How many times another process may interfere.
const ATTEMPTS: usize = 8;

/// How long to wait for another process doing the same.
const TURN: Duration = Duration::from_secs(2);

/// `/proc/self/pagemap`: one 64-bit word per ordinary page
/// (Documentation/admin-guide/mm/pagemap.rst).
struct Pagemap {
    file: OwnedFd,
    page: u64,
}

impl Pagemap {
    fn open() -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = fs::openat(CWD, "/proc/self/pagemap", flags, Mode::empty()).map_err(
            |cause| match cause {
                Errno::ACCESS | Errno::PERM => denied(&cause.to_string()),
                _ => Error::os("open /proc/self/pagemap", cause),
            },
        )?;
        Ok(Self { file, page: PageSize::Base.bytes() as u64 })
    }

    /// The physical address of the page at `address`; `None` if there is no page.
    fn physical(&self, address: usize) -> Result<Option<u64>> {
        let mut word = [0; 8];
        let offset = address as u64 / self.page * 8;
        let got =
            rustix::io::pread(&self.file, &mut word, offset).map_err(|cause| match cause {
                Errno::ACCESS | Errno::PERM => denied(&cause.to_string()),
                _ => Error::os("read /proc/self/pagemap", cause),
            })?;
        if got != word.len() {
            return Ok(None);
        }
        let word = u64::from_ne_bytes(word);
        let (present, frame) = (word >> 63 == 1, word & ((1 << 55) - 1));
        match (present, frame) {
            (false, _) => Ok(None),
            // Frame 0 is never given to a process, so the kernel is hiding the number.
            (true, 0) => Err(denied("frame numbers read as zero")),
            (true, frame) => Ok(Some(frame * self.page)),
        }
    }
}

fn denied(found: &str) -> Error {
    Error::Permission(format!(
        "iova=\"pa\" needs CAP_SYS_ADMIN in the initial user namespace to read physical addresses \
         (/proc/self/pagemap: {found}); run with that capability, or use iova=\"va\", which needs \
         no privilege"
    ))
}

/// Whether the kernel shows physical addresses.
pub(super) fn check_privilege() -> Result<()> {
    let local = 1u8;
    // Use a page that certainly exists: that of a variable on the stack.
    Pagemap::open()?.physical(ptr::from_ref(&local).addr()).map(|_| ())
}

/// Free hugepages that were faulted in to learn their frames and to keep others from taking them.
/// Each is freed when released, all on drop.
struct Holders {
    base: *mut c_void,
    page: usize,
    held: Vec<bool>,
}

impl Holders {
    /// Takes up to `count` pages.
    fn take(count: usize, page: PageSize, node: Option<u32>) -> Result<Self> {
        let huge = match page {
            PageSize::Huge1G => MapFlags::HUGE_1GB,
            _ => MapFlags::HUGE_2MB,
        };
        let flags = MapFlags::PRIVATE | MapFlags::HUGETLB | MapFlags::NORESERVE | huge;
        let bytes = page.bytes();
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping where the kernel likes.
        let base = unsafe { mm::mmap_anonymous(ptr::null_mut(), count * bytes, access, flags) }
            .map_err(|cause| {
                Error::MemoryUnavailable(format!("cannot map {} ({cause})", page.name()))
            })?;
        let mut holders = Self { base, page: bytes, held: vec![true; count] };
        if let Some(node) = node {
            // SAFETY: the whole of our own mapping.
            unsafe { numa::bind(base, count * bytes, node)? };
        }
        for index in 0..count {
            // SAFETY: one page of our own mapping.
            match unsafe { mapping::populate(holders.address(index), bytes) } {
                Ok(()) => {}
                Err(Errno::INVAL) => {
                    return Err(Error::MemoryUnavailable(
                        "iova=\"pa\" needs Linux 5.14 (MADV_POPULATE_WRITE); use iova=\"va\""
                            .to_owned(),
                    ));
                }
                // No free pages are left.
                Err(_) => {
                    for rest in index..count {
                        holders.release(rest);
                    }
                    break;
                }
            }
        }
        Ok(holders)
    }

    fn address(&self, index: usize) -> *mut c_void {
        // SAFETY: `index` is one of the mapping's pages: callers count with `held`.
        unsafe { self.base.byte_add(index * self.page) }
    }

    /// Releases one page.
    fn release(&mut self, index: usize) {
        if let Some(held) = self.held.get_mut(index)
            && std::mem::take(held)
        {
            // SAFETY: one page of our own mapping, to which no pointer was handed out.
            if let Err(cause) = unsafe { mm::munmap(self.address(index), self.page) } {
                log::warn!("cannot give a hugepage back: {cause}");
            }
        }
    }
}

impl Drop for Holders {
    fn drop(&mut self) {
        for index in 0..self.held.len() {
            self.release(index);
        }
    }
}

/// Held frames: physical address to holder and its page.
type Frames = BTreeMap<u64, (usize, usize)>;

/// Why an attempt failed.
enum Setback {
    /// No contiguous run among this many pages.
    NoRun(usize),
    /// Another process took a page.
    Raced,
    /// A permanent error.
    Fatal(Error),
}

impl From<Error> for Setback {
    fn from(error: Error) -> Self {
        Self::Fatal(error)
    }
}

/// Fills the mapping of `backing` with contiguous hugepages and returns their address.
pub(super) fn fill(
    target: &Mapping,
    backing: &Backing,
    page: PageSize,
    node: Option<u32>,
) -> Result<Iova> {
    let pagemap = Pagemap::open()?;
    // A run is on one node, and the kernel serves ours first: on a machine with several, the
    // released page is the next one only if that node is requested.
    let nodes = match (node, numa::online()) {
        (Some(node), _) => vec![Some(node)],
        (None, online) if online.len() > 1 => online.into_iter().map(Some).collect(),
        (None, _) => vec![None],
    };
    let started = Instant::now();
    let _turn = turn();
    let mut races = 0;
    let mut hold_all = false;
    loop {
        let (mut raced, mut held) = (false, 0);
        for &node in &nodes {
            match attempt(target, &pagemap, page, node, hold_all) {
                Ok(base) => {
                    log::debug!(
                        "{} contiguous at {base:#x} in {:?}, after {races} races",
                        human(target.len() as u64),
                        started.elapsed()
                    );
                    return Ok(Iova(base));
                }
                Err(setback) => {
                    // What was filled so far is released.
                    backing.discard(target.len())?;
                    match setback {
                        Setback::Fatal(error) => return Err(error),
                        Setback::Raced => raced = true,
                        Setback::NoRun(count) => held += count,
                    }
                }
            }
        }
        // Pages held by others may be released soon: they may be searching, too.
        let total = pages::count(page, node)?.total;
        if !raced && (held >= total || races >= ATTEMPTS / 2) || races >= ATTEMPTS {
            let needed = target.len() / page.bytes();
            return Err(Error::MemoryUnavailable(format!(
                "no {needed} {} in a row, aligned to {}, among the {held} free of {total}{}; \
                 reserve more (`sysctl vm.nr_hugepages=...`) soon after boot, boot with \
                 `hugepagesz=1G hugepages=1`, ask for less, or use iova=\"va\"",
                page.name(),
                human(target.len() as u64),
                if raced { ", other processes taking some of them each time" } else { "" },
            )));
        }
        races += 1;
        hold_all = true;
        std::thread::sleep(Duration::from_millis(10 * races as u64));
    }
}

/// Waits for other users of this module; continues without them after [`TURN`]. The lock ends with
/// the descriptor.
fn turn() -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECTORY;
    let folder = fs::openat(CWD, "/sys/kernel/mm/hugepages", flags, Mode::empty()).ok()?;
    let deadline = Instant::now() + TURN;
    while fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Some(folder)
}

/// One pass: hold, find, release. With `hold_all`, every free page is held until the region is
/// filled; otherwise only as many as needed to find a run.
fn attempt(
    target: &Mapping,
    pagemap: &Pagemap,
    page: PageSize,
    node: Option<u32>,
    hold_all: bool,
) -> Result<u64, Setback> {
    let (size, step) = (target.len(), page.bytes());
    let needed = size / step;
    let mut free = pages::count(page, node)?.free;
    let mut batch = if hold_all { free } else { (2 * needed).max(16) };
    let mut holders: Vec<Holders> = Vec::new();
    let mut frames = Frames::new();
    let start = loop {
        // Not more than are free: pages created beyond that (overcommit) do not return to the list.
        let count = batch.min(free);
        if count == 0 {
            return Err(Setback::NoRun(frames.len()));
        }
        let took = Holders::take(count, page, node)?;
        for index in (0..count).filter(|&index| took.held[index]) {
            if let Some(frame) = pagemap.physical(took.address(index).addr())? {
                frames.insert(frame, (holders.len(), index));
            }
        }
        let all = took.held.iter().all(|&held| held);
        holders.push(took);
        if let Some(start) = find_run(&frames, size as u64, step as u64) {
            break start;
        }
        if !all {
            return Err(Setback::NoRun(frames.len()));
        }
        free -= count;
        batch *= 2;
    };
    if !hold_all {
        // All others at once; those of the run are released last, and so are allocated next, even
        // if others are free.
        let run = start..start + size as u64;
        for (_, &(holder, index)) in frames.iter().filter(|(frame, _)| !run.contains(frame)) {
            holders[holder].release(index);
        }
    }
    if let Some(node) = node {
        // SAFETY: the whole of the target's mapping.
        unsafe { numa::bind(target.as_ptr().cast(), size, node)? };
    }
    for index in 0..needed {
        let wanted = start + (index * step) as u64;
        if let Some(&(holder, page)) = frames.get(&wanted) {
            holders[holder].release(page);
        }
        target.populate(index * step, step).map_err(|_| Setback::Raced)?;
        if pagemap.physical(target.address() + index * step)? != Some(wanted) {
            return Err(Setback::Raced);
        }
    }
    verify(target, pagemap, start)?;
    Ok(start)
}

/// Checks every ordinary page of the mapping once more.
fn verify(target: &Mapping, pagemap: &Pagemap, start: u64) -> Result<(), Setback> {
    for offset in (0..target.len()).step_by(PageSize::Base.bytes()) {
        if pagemap.physical(target.address() + offset)? != Some(start + offset as u64) {
            return Err(Setback::Raced);
        }
    }
    Ok(())
}

/// The lowest run of frames, `step` apart, of length `size` and aligned to it, outside the fixed
/// addresses of a PC.
fn find_run(frames: &Frames, size: u64, step: u64) -> Option<u64> {
    frames.keys().copied().find(|&start| {
        start.is_multiple_of(size)
            && iova::overlapped(start, size).is_none()
            && (start..start + size).step_by(step as usize).all(|frame| frames.contains_key(&frame))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn frames(numbers: impl IntoIterator<Item = u64>) -> Frames {
        numbers.into_iter().map(|number| (number * 2 * MIB, (0, 0))).collect()
    }

    #[test]
    fn a_run_is_aligned_and_complete() {
        let find = |held: &Frames, pages: u64| find_run(held, pages * 2 * MIB, 2 * MIB);
        assert_eq!(find(&frames(33..64), 32), None, "one short");
        assert_eq!(find(&frames(33..65), 32), None, "long enough, not aligned");
        assert_eq!(find(&frames(33..96), 32), Some(64 * 2 * MIB));
        assert_eq!(find(&frames((64..96).filter(|&n| n != 80)), 32), None, "a gap");
        assert_eq!(find(&frames([9, 77]), 1), Some(18 * MIB));
        assert_eq!(find(&frames([]), 1), None);
    }

    #[test]
    fn a_run_does_not_lie_where_the_pc_has_something() {
        let page = 2 * MIB;
        assert_eq!(find_run(&frames(0..9), page, page), Some(16 * MIB));
        let window = 0xc000_0000 / page..(1 << 32) / page + 1;
        assert_eq!(find_run(&frames(window), page, page), Some(1 << 32));
    }

    proptest! {
        #[test]
        fn the_lowest_run_is_found(held in prop::collection::btree_set(8u64..200, 0..190), shift in 0u32..5) {
            let pages = 1u64 << shift;
            let expected = (0..200 / pages)
                .map(|block| block * pages)
                .find(|&first| first >= 8 && (first..first + pages).all(|n| held.contains(&n)));
            let found = find_run(&frames(held), pages * 2 * MIB, 2 * MIB);
            prop_assert_eq!(found, expected.map(|first| first * 2 * MIB));
        }
    }
}
