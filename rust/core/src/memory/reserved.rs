//! For tests: hugepages reserved while a value exists.

use super::PageSize;
use super::pages;
use rustix::fs::FlockOperation;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

/// Free hugepages for one test at a time, on the whole machine.
pub(super) struct Reserved {
    size: PageSize,
    added: usize,
    _turn: File,
}

fn setting(size: PageSize) -> PathBuf {
    let kib = size.bytes() >> 10;
    format!("/sys/kernel/mm/hugepages/hugepages-{kib}kB/nr_hugepages").into()
}

fn total(size: PageSize) -> Option<usize> {
    std::fs::read_to_string(setting(size)).ok()?.trim().parse().ok()
}

fn free(size: PageSize) -> usize {
    pages::count(size, None).map_or(0, |count| count.free)
}

impl Reserved {
    /// Reserves until `count` pages of 2 MiB are free. `None` if the machine does not allow it,
    /// which is reported, and is a failure where it must work (root in CI).
    pub(super) fn pages(count: usize) -> Option<Self> {
        let found = Self::of(PageSize::Huge2M, count);
        let must = std::env::var("CI").is_ok_and(|value| value == "true")
            && rustix::process::geteuid().is_root();
        assert!(found.is_some() || !must, "root in CI could not reserve {count} hugepages");
        found
    }

    /// Of any size, where a failure is accepted.
    pub(super) fn of(size: PageSize, count: usize) -> Option<Self> {
        if let Some(guard) = Self::reserve(size, count) {
            return Some(guard);
        }
        // Not `eprintln!`: the test harness would capture it.
        let thread = std::thread::current();
        let test = thread.name().unwrap_or("a test");
        let size = size.name();
        let _ = writeln!(std::io::stderr(), "SKIPPED {test}: no {count} {size} can be reserved");
        None
    }

    fn reserve(size: PageSize, count: usize) -> Option<Self> {
        let path = std::env::temp_dir().join("virtnic-test-hugepages.lock");
        // Read access is enough to lock, and all that another user's file allows.
        let turn = File::open(&path).or_else(|_| File::create_new(&path));
        let turn = turn.or_else(|_| File::open(&path)).ok()?;
        rustix::fs::flock(&turn, FlockOperation::LockExclusive).ok()?;
        let mut guard = Self { size, added: 0, _turn: turn };
        let missing = count.saturating_sub(free(size));
        let before = total(size).unwrap_or(0);
        if missing > 0 && std::fs::write(setting(size), (before + missing).to_string()).is_ok() {
            guard.added = total(size).unwrap_or(before).saturating_sub(before);
        }
        (free(size) >= count).then_some(guard)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if self.added > 0
            && let Some(now) = total(self.size)
        {
            let _ = std::fs::write(setting(self.size), now.saturating_sub(self.added).to_string());
        }
    }
}
