//! The mapped shared file.

use super::arena::Arena;
use super::backing::{self, Backing};
use super::mapping::Mapping;
use super::pages::{self, human};
use super::pool::Layout;
use super::{Chunk, Iova, PageRequest, PageSize, Placement, Pool};
use super::{available, iova, numa, physical};
use crate::process::Home;
use crate::{Error, Owned, Result};
use rustix::io::Errno;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Parameters of a region.
#[derive(Clone, Debug)]
pub struct RegionOptions {
    /// Size in bytes: a power of two (QEMU maps it as a PCI BAR) of at least 1 MiB, a multiple of
    /// the page size.
    pub size: usize,
    /// The pages to use.
    pub pages: PageRequest,
    /// Its place in the device's address space.
    pub placement: Placement,
    /// NUMA node to bind the memory to, strictly: too little memory there is an error.
    pub node: Option<u32>,
    /// Directory for the file (a hugetlbfs mount) instead of a memfd, so that another process can
    /// open it by path (`ivshmem-plain`). Its pages are those of the mount; it cannot be sealed,
    /// and is removed on drop.
    pub directory: Option<PathBuf>,
    /// Data bytes of a packet buffer; rounded up to whole cache lines.
    pub buffer_size: usize,
    /// Number of buffers for longer frames. `None`: a sixteenth of the memory, none below 4 MiB.
    pub jumbo_buffers: Option<usize>,
    /// Data bytes of such a buffer. `None`: the longest possible frame, 64 KiB.
    pub jumbo_size: Option<usize>,
}

/// The smallest region.
const SMALLEST: usize = 1 << 20;

/// The part reserved for rings: a sixteenth, within these limits.
const RINGS: (usize, usize) = (256 << 10, 64 << 20);

/// One shared file: mapped at an address aligned to its size, prefaulted, sealed.
///
/// The seals fix the file's size. They do not prevent a peer from punching a hole into it
/// (`fallocate(2)`): holes read as zeros, but with hugepages, if another process takes the freed
/// page first, an access ends in a SIGBUS. So the file is safe with peers that crash or lie, but
/// not with ones that have the descriptor and deliberately attack.
#[derive(Debug)]
pub struct Region {
    home: Home,
    // In this order: unmapped first, then closed and its name removed.
    mapping: Mapping,
    backing: Backing,
    page: PageSize,
    iova: Iova,
    fallback: Option<String>,
    /// `0..rings` is for rings, the rest is the pool.
    rings: usize,
    arena: Mutex<Arena>,
    layout: Layout,
    jumbo: Layout,
    /// The single pool, while it is in use.
    pool: Mutex<Weak<Pool>>,
}

impl Region {
    /// Makes a region.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`], [`crate::Error::MemoryUnavailable`] or [`crate::Error::Permission`].
    pub fn new(options: &RegionOptions) -> Result<Arc<Self>> {
        let &RegionOptions { size, placement, node, buffer_size, .. } = options;
        if size < SMALLEST || !size.is_power_of_two() {
            return Err(Error::Invalid(format!(
                "the size cannot be {size} bytes: QEMU maps the memory as a PCI BAR, a power of \
                 two of at least 1 MiB; the next is {}",
                size.max(SMALLEST)
                    .checked_next_power_of_two()
                    .map_or("beyond any machine".to_owned(), |next| human(next as u64)),
            )));
        }
        if let Placement::At(at) = placement {
            iova::check_explicit(at, size as u64)?;
        }
        if let Some(node) = node {
            numa::check(Path::new("/sys"), node)?;
        }
        let rings = (size / 16).clamp(RINGS.0, RINGS.1);
        let jumbo = Layout::jumbo(options, size - rings)?;
        let layout = Layout::new(buffer_size, size - rings - jumbo.len())?;
        let candidates = candidates(options)?;
        if placement == Placement::Physical {
            physical::check_privilege()?;
        }

        let mut fallback = None;
        let mut refusal = None;
        for page in candidates {
            match build(options, page) {
                Ok((mapping, backing, iova)) => {
                    if let Some(why) = &fallback {
                        log::warn!("{} back the memory: {why}", page.name());
                    }
                    return Ok(Arc::new(Self {
                        home: Home::here(),
                        mapping,
                        backing,
                        page,
                        iova,
                        fallback,
                        rings,
                        arena: Mutex::new(Arena::new(rings)),
                        layout,
                        jumbo,
                        pool: Mutex::new(Weak::new()),
                    }));
                }
                Err(Error::MemoryUnavailable(why)) => {
                    log::debug!("no region of {}: {why}", page.name());
                    // If 1 GiB pages were never reserved, they are not missed.
                    if page != PageSize::Huge1G || pages::count(page, node)?.total > 0 {
                        fallback = Some(why.clone());
                    }
                    refusal = Some(Error::MemoryUnavailable(why));
                }
                Err(other) => return Err(other),
            }
        }
        Err(refusal.unwrap_or_else(|| Error::MemoryUnavailable("no pages to try".to_owned())))
    }

    /// Size in bytes.
    pub fn size(&self) -> usize {
        self.mapping.len()
    }
    /// The size of its pages.
    pub fn page_size(&self) -> PageSize {
        self.page
    }
    /// Its place in the device's address space.
    #[inline]
    pub fn iova(&self) -> Iova {
        self.iova
    }
    /// Its place in our address space.
    pub fn address(&self) -> usize {
        self.mapping.address()
    }
    /// The file, for a peer of this process.
    ///
    /// [`crate::Error::Closed`] in a forked child, which does not own it, [`crate::Error::Invalid`]
    /// after [`Self::forget_file`].
    pub fn share(&self) -> Result<Arc<Owned>> {
        self.home.check("the memory")?;
        self.file()
    }
    /// The file.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] after [`Self::forget_file`].
    pub fn file(&self) -> Result<Arc<Owned>> {
        self.backing.file()
    }
    /// Closes the file unless it has a path: existing mappings stay, but nobody else can get it.
    pub fn forget_file(&self) {
        self.backing.forget();
    }
    /// The file's path, if it has one.
    pub fn path(&self) -> Option<&Path> {
        self.backing.path()
    }
    /// Why the pages are smaller than the largest size, if `Auto` fell back.
    pub fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }

    /// The packet pool: everything except the part reserved for rings.
    ///
    /// There is one at a time: while it is in use, every call returns the same one. Holders of
    /// buffer ids hold the pool too, so a new one starts with all buffers free.
    pub fn pool(self: &Arc<Self>) -> Arc<Pool> {
        let mut known = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        known.upgrade().unwrap_or_else(|| {
            let pool = Arc::new(Pool::new(self, self.rings..self.size(), self.layout, self.jumbo));
            *known = Arc::downgrade(&pool);
            pool
        })
    }

    /// The device address of `len` bytes at `offset`; `None` if they are not inside.
    pub fn iova_of(&self, offset: usize, len: usize) -> Option<Iova> {
        self.contains(offset, len).then(|| self.iova.plus(offset as u64))
    }
    /// The offset of `len` bytes at a device address; `None` if they are not inside.
    pub fn offset_of(&self, iova: Iova, len: usize) -> Option<usize> {
        let offset = usize::try_from(iova.0.checked_sub(self.iova.0)?).ok()?;
        self.contains(offset, len).then_some(offset)
    }

    /// Allocates an exclusive, zeroed part for a ring. `align` is a power of two.
    ///
    /// # Errors
    /// [`crate::Error::MemoryUnavailable`] if the part for rings is full, [`crate::Error::Invalid`]
    /// for a length of zero or an alignment that is not a power of two, [`crate::Error::Closed`] in
    /// a forked child.
    pub fn allocate(self: &Arc<Self>, len: usize, align: usize) -> Result<Chunk> {
        self.home.check("the memory")?;
        if len == 0 || !align.is_power_of_two() {
            return Err(Error::Invalid(format!(
                "cannot allocate {len} bytes aligned to {align}: a length above zero and a power \
                 of two are needed"
            )));
        }
        let (offset, room) = {
            let mut arena = self.arena();
            (arena.allocate(len, align), arena.room())
        };
        let offset = offset.ok_or_else(|| {
            Error::MemoryUnavailable(format!(
                "no {len} bytes (aligned to {align}) left in the part kept for rings: {} of {} \
                 are free, {} of them in a row; make the memory larger or the queues smaller",
                room.0, self.rings, room.1
            ))
        })?;
        let chunk = Chunk::new(Arc::clone(self), offset, len);
        chunk.zero();
        Ok(chunk)
    }

    /// Copies bytes out. 2, 4 or 8 bytes at a multiple of their number are one atomic load, after
    /// which comes before all that follows.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] if they are not inside.
    pub fn read(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        self.check(offset, out.len())?;
        // SAFETY: `check` has seen that the bytes are inside the mapping.
        let from = unsafe { self.base().add(offset) };
        // SAFETY: the range is valid for the length, private memory does not overlap the mapping, and
        // `is_word` has seen that the address is aligned for the atomic. Both atomic loads and a
        // byte copy are allowed for shared memory.
        unsafe {
            match out.len() {
                2 if is_word(from, 2) => {
                    let word = AtomicU16::from_ptr(from.cast()).load(SeqCst);
                    out.copy_from_slice(&word.to_ne_bytes());
                }
                4 if is_word(from, 4) => {
                    let word = AtomicU32::from_ptr(from.cast()).load(SeqCst);
                    out.copy_from_slice(&word.to_ne_bytes());
                }
                8 if is_word(from, 8) => {
                    let word = AtomicU64::from_ptr(from.cast()).load(SeqCst);
                    out.copy_from_slice(&word.to_ne_bytes());
                }
                len => out.as_mut_ptr().copy_from_nonoverlapping(from, len),
            }
        }
        Ok(())
    }
    /// Copies bytes in. 2, 4 or 8 bytes at a multiple of their number are one atomic store, before
    /// which all that came earlier is visible, and which is visible before all that follows.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] if they are not inside.
    pub fn write(&self, offset: usize, data: &[u8]) -> Result<()> {
        self.check(offset, data.len())?;
        // SAFETY: `check` has seen that the bytes are inside the mapping.
        let to = unsafe { self.base().add(offset) };
        // SAFETY: as in `read`, in the other direction.
        unsafe {
            match *data {
                [a, b] if is_word(to, 2) => {
                    AtomicU16::from_ptr(to.cast()).store(u16::from_ne_bytes([a, b]), SeqCst);
                }
                [a, b, c, d] if is_word(to, 4) => {
                    let word = u32::from_ne_bytes([a, b, c, d]);
                    AtomicU32::from_ptr(to.cast()).store(word, SeqCst);
                }
                [a, b, c, d, e, f, g, h] if is_word(to, 8) => {
                    let word = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
                    AtomicU64::from_ptr(to.cast()).store(word, SeqCst);
                }
                _ => to.copy_from_nonoverlapping(data.as_ptr(), data.len()),
            }
        }
        Ok(())
    }

    /// The first byte. Only for volatile or atomic access, or byte copies.
    #[inline]
    pub(super) fn base(&self) -> *mut u8 {
        self.mapping.as_ptr()
    }

    /// Releases what `allocate` returned. Not in a forked child, which never allocates again: the
    /// lock may be held by a thread that does not exist there.
    pub(super) fn release(&self, offset: usize, len: usize) {
        if self.home.is_here() {
            self.arena().release(offset, len);
        }
    }

    fn arena(&self) -> MutexGuard<'_, Arena> {
        self.arena.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn contains(&self, offset: usize, len: usize) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= self.size())
    }

    fn check(&self, offset: usize, len: usize) -> Result<()> {
        if self.contains(offset, len) {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "{len} bytes at offset {offset} are not inside the memory of {} bytes",
            self.size()
        )))
    }
}

/// Whether an address is a multiple of a number of bytes.
fn is_word(at: *const u8, bytes: usize) -> bool {
    at.addr().is_multiple_of(bytes)
}

/// The page sizes to try, largest first; at least one.
fn candidates(options: &RegionOptions) -> Result<Vec<PageSize>> {
    let &RegionOptions { size, pages, placement, .. } = options;
    let mut found = match (&options.directory, pages) {
        (Some(directory), request) => {
            let page = backing::directory_pages(directory)?;
            if let PageRequest::Exactly(wanted) = request
                && wanted != page
            {
                return Err(Error::Invalid(format!(
                    "files in {} have {}, not {}; give another directory, or leave the page size \
                     out",
                    directory.display(),
                    page.name(),
                    wanted.name()
                )));
            }
            vec![page]
        }
        (None, PageRequest::Exactly(page)) => vec![page],
        (None, PageRequest::Auto) => {
            let mut all: Vec<_> = pages::hugepages(None)?.into_iter().map(|has| has.size).collect();
            all.retain(|page| size.is_multiple_of(page.bytes()));
            all.push(PageSize::Base);
            all
        }
    };
    if let [page] = found[..]
        && !size.is_multiple_of(page.bytes())
    {
        return Err(Error::Invalid(format!(
            "a size of {} is not a multiple of the page size: {} were asked for",
            human(size as u64),
            page.name()
        )));
    }
    if placement == Placement::Physical {
        found.retain(|&page| page != PageSize::Base);
        if found.is_empty() {
            return Err(Error::Invalid(format!(
                "iova=\"pa\" needs hugepages, and {} of ordinary pages were asked for; make the \
                 size a multiple of 2 MiB on hugepages, or use iova=\"va\"",
                human(size as u64)
            )));
        }
    }
    Ok(found)
}

/// The mapped, bound, filled and sealed file, and its device address.
fn build(options: &RegionOptions, page: PageSize) -> Result<(Mapping, Backing, Iova)> {
    let &RegionOptions { size, placement, node, .. } = options;
    check_free(options, page)?;
    if let Some(directory) = &options.directory {
        backing::check_room(directory, size)?;
    }
    let backing = match &options.directory {
        None => Backing::memfd(size, page)?,
        Some(directory) => Backing::in_directory(size, directory)?,
    };
    let mapping = Mapping::reserve(size)?;
    // Physical memory is taken frame by frame with every free hugepage held, so a reservation of
    // the whole could not be satisfied meanwhile.
    let promise = placement != Placement::Physical;
    mapping
        .attach(backing.file()?.as_fd(), promise)
        .map_err(|cause| exhausted(options, page, cause))?;
    if let Some(node) = node {
        // SAFETY: the whole of our own mapping.
        unsafe { numa::bind(mapping.as_ptr().cast(), size, node)? };
    }
    let iova = match placement {
        Placement::Physical => physical::fill(&mapping, &backing, page, node)?,
        Placement::Virtual | Placement::At(_) => {
            prefault(&mapping, &backing, page, options)?;
            match placement {
                Placement::At(at) => at,
                _ => Iova(mapping.address() as u64),
            }
        }
    };
    backing.seal()?;
    Ok((mapping, backing, iova))
}

/// Checks whether there is enough, as far as can be known before trying.
fn check_free(options: &RegionOptions, page: PageSize) -> Result<()> {
    let &RegionOptions { size, node, placement, .. } = options;
    if page == PageSize::Base {
        return match available::available(node) {
            Some(free) if free < size as u64 => Err(Error::MemoryUnavailable(format!(
                "{} of ordinary pages cannot be had: {} MiB are available; ask for less",
                human(size as u64),
                free >> 20
            ))),
            _ => Ok(()),
        };
    }
    let have = pages::count(page, node)?;
    if have.free * page.bytes() < size && !pages::overcommits(page) {
        return Err(Error::MemoryUnavailable(pages::shortage(have, size, node, placement)));
    }
    Ok(())
}

/// Faults in every page.
fn prefault(
    mapping: &Mapping,
    backing: &Backing,
    page: PageSize,
    options: &RegionOptions,
) -> Result<()> {
    let node = options.node;
    let done = match mapping.populate(0, mapping.len()) {
        // Linux before 5.14. The file's pages would not follow the mapping's node.
        Err(Errno::INVAL) if node.is_none() => mapping.populate_by_file(backing.file()?.as_fd()),
        Err(Errno::INVAL) => {
            return Err(Error::Invalid(
                "binding memory to a NUMA node needs Linux 5.14 (MADV_POPULATE_WRITE); pass \
                 node=None"
                    .to_owned(),
            ));
        }
        other => other,
    };
    done.map_err(|cause| exhausted(options, page, cause))
}

/// The error if pages ran out although they were counted before.
fn exhausted(options: &RegionOptions, page: PageSize, cause: Errno) -> Error {
    let &RegionOptions { size, node, placement, .. } = options;
    let hint = if let Some(directory) = &options.directory {
        format!(
            "{} may have become full meanwhile, or the control group has a lower limit; ask for \
             less, or free some",
            directory.display()
        )
    } else if page == PageSize::Base {
        "ask for less, or look at the limits of the control group".to_owned()
    } else {
        match pages::count(page, node) {
            Ok(have) if have.free * page.bytes() < size => {
                pages::shortage(have, size, node, placement)
            }
            _ => "another process may have been faster, or the hugetlb control group has a lower \
                  limit; try again"
                .to_owned(),
        }
    };
    let why = match cause {
        // A page that cannot be had: an access would be a SIGBUS.
        Errno::FAULT => String::new(),
        cause => format!(" ({cause})"),
    };
    Error::MemoryUnavailable(format!(
        "the kernel does not give {} of {}{why}: {hint}",
        human(size as u64),
        page.name()
    ))
}

#[cfg(test)]
#[path = "region_tests.rs"]
mod tests;
