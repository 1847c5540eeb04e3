//! A range of our address space, aligned to its size, with the file mapped there.
//!
//! The range is first reserved (inaccessible, `MAP_FIXED_NOREPLACE`: it never replaces another
//! mapping) and then the file is mapped over it. This distinguishes "no room at this address" from
//! "no hugepage", for which `mmap` alone reports the same error.

use super::IOVA_LIMIT;
use super::pages::human;
use crate::{Error, Result};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use rustix::mm::{self, Advice, MapFlags, ProtFlags};
use std::ffi::c_void;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};

/// Where the search starts: above everything that a PC made by QEMU has in the device's address
/// space, since `va` places the BAR at the same address.
const LOWEST: usize = 64 << 30;

/// An aligned range of our address space, unmapped on drop.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

//  SAFETY: the mapping is owned by this value alone and not tied to a thread. The memory behind it
//  is
// only accessed through raw pointers, whose users are responsible for synchronisation.
unsafe impl Send for Mapping {}
// SAFETY: as above; no method changes the value through a shared reference.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Reserves `len` bytes (a power of two) at the first free multiple of `len`
    /// from 64 GiB up to [`IOVA_LIMIT`].
    pub(super) fn reserve(len: usize) -> Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED_NOREPLACE;
        let mut address = LOWEST.max(len);
        while let Some(end) = address.checked_add(len)
            && end as u64 <= IOVA_LIMIT
        {
            let wanted = ptr::without_provenance_mut::<c_void>(address);
            // SAFETY: NOREPLACE, so that no existing mapping is touched.
            match unsafe { mm::mmap_anonymous(wanted, len, ProtFlags::empty(), flags) } {
                Ok(found) => {
                    let Some(base) = NonNull::new(found.cast::<u8>()) else { break };
                    let mapping = Self { base, len };
                    if mapping.address() == address {
                        return Ok(mapping);
                    }
                    // A kernel before 4.17 treats the address as a hint: dropped again.
                }
                Err(Errno::EXIST) => {}
                Err(cause) => {
                    return Err(Error::MemoryUnavailable(format!(
                        "cannot reserve {} of address space at {address:#x} ({cause}); look at \
                         `ulimit -v`, or ask for less",
                        human(len as u64)
                    )));
                }
            }
            address = end;
        }
        Err(Error::MemoryUnavailable(format!(
            "no free {} of address space, aligned, between {LOWEST:#x} and {IOVA_LIMIT:#x}; \
             ask for less",
            human(len as u64)
        )))
    }

    /// Maps the file over the whole range. With `promise`, the kernel reserves enough hugepages
    /// now.
    pub(super) fn attach(&self, file: BorrowedFd<'_>, promise: bool) -> Result<(), Errno> {
        let mut flags = MapFlags::SHARED | MapFlags::FIXED;
        flags.set(MapFlags::NORESERVE, !promise);
        //  SAFETY: the range is ours (`reserve`), and no pointer into it has been handed out that a
        //  new mapping
        // could invalidate: it was inaccessible.
        let found = unsafe {
            mm::mmap(
                self.base.as_ptr().cast(),
                self.len,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
                file,
                0,
            )?
        };
        debug_assert_eq!(found.cast(), self.base.as_ptr());
        Ok(())
    }

    /// Faults in `len` bytes at `offset`, for writing. A lack of pages is an error here, instead of
    /// a SIGBUS on access.
    pub(super) fn populate(&self, offset: usize, len: usize) -> Result<(), Errno> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(Errno::INVAL);
        }
        // SAFETY: within the mapping, as checked.
        let start = unsafe { self.base.add(offset) }.as_ptr().cast();
        // SAFETY: within our own mapping; populating does not change contents.
        unsafe { populate(start, len) }
    }

    /// The same for the whole file on kernels before 5.14, which cannot populate: pages are
    /// allocated through the file, and mapped on first access.
    pub(super) fn populate_by_file(&self, file: BorrowedFd<'_>) -> Result<(), Errno> {
        retry(|| rustix::fs::fallocate(file, FallocateFlags::empty(), 0, self.len as u64))
    }

    pub(super) fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    pub(super) fn address(&self) -> usize {
        self.base.as_ptr().addr()
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        //  SAFETY: our own range; holders of pointers into it keep this alive.
        if let Err(cause) = unsafe { mm::munmap(self.base.as_ptr().cast(), self.len) } {
            log::warn!("cannot unmap {:#x}: {cause}", self.address());
        }
    }
}

/// `MADV_POPULATE_WRITE` (Linux 5.14; `EINVAL` before).
///
/// # Safety
/// The range is a mapping of the caller's.
pub(super) unsafe fn populate(start: *mut c_void, len: usize) -> Result<(), Errno> {
    // SAFETY: the caller's mapping; the advice faults pages in and changes no byte.
    retry(|| unsafe { mm::madvise(start, len, Advice::LinuxPopulateWrite) })
}

fn retry(mut call: impl FnMut() -> rustix::io::Result<()>) -> Result<(), Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::PageSize;
    use super::super::backing::Backing;
    use super::*;
    use std::os::fd::AsFd;

    const LEN: usize = 1 << 20;

    #[test]
    fn ranges_are_aligned_low_and_apart() {
        let all: Vec<_> = (20..32).map(|shift| Mapping::reserve(1 << shift).unwrap()).collect();
        for (index, one) in all.iter().enumerate() {
            assert_eq!(one.address() % one.len(), 0);
            assert!(one.address() >= LOWEST);
            assert!(((one.address() + one.len()) as u64) <= IOVA_LIMIT);
            for other in &all[..index] {
                let (low, high) =
                    if one.address() < other.address() { (one, other) } else { (other, one) };
                assert!(low.address() + low.len() <= high.address());
            }
        }
    }

    #[test]
    fn an_existing_mapping_is_never_replaced() {
        let first = Mapping::reserve(LEN).unwrap();
        let file = Backing::memfd(LEN, PageSize::Base).unwrap();
        first.attach(file.file().unwrap().as_fd(), true).unwrap();
        // SAFETY: inside the mapping.
        unsafe { first.as_ptr().write_volatile(0x5a) };
        let others: Vec<_> = (0..64).map(|_| Mapping::reserve(LEN).unwrap()).collect();
        assert!(others.iter().all(|other| other.address() != first.address()));
        // SAFETY: inside the mapping.
        assert_eq!(unsafe { first.as_ptr().read_volatile() }, 0x5a);
    }

    #[test]
    fn both_ways_of_populating_allocate_the_file() {
        for by_file in [false, true] {
            let file = Backing::memfd(LEN, PageSize::Base).unwrap();
            let mapping = Mapping::reserve(LEN).unwrap();
            mapping.attach(file.file().unwrap().as_fd(), true).unwrap();
            let blocks =
                || rustix::fs::fstat(file.file().unwrap().as_fd()).unwrap().st_blocks * 512;
            assert_eq!(blocks(), 0);
            if by_file {
                mapping.populate_by_file(file.file().unwrap().as_fd()).unwrap();
            } else {
                mapping.populate(0, LEN).unwrap();
            }
            assert_eq!(blocks(), LEN as i64);
        }
    }

    #[test]
    fn populating_past_the_file_is_an_error_not_a_signal() {
        let file = Backing::memfd(LEN / 2, PageSize::Base).unwrap();
        let mapping = Mapping::reserve(LEN).unwrap();
        mapping.attach(file.file().unwrap().as_fd(), true).unwrap();
        assert!(mapping.populate(0, LEN).is_err());
        assert_eq!(mapping.populate(LEN, 1), Err(Errno::INVAL));
    }

    #[test]
    fn what_cannot_fit_is_refused() {
        assert!(matches!(Mapping::reserve(1 << 41), Err(Error::MemoryUnavailable(_))));
    }
}
