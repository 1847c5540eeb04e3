//! The file: a memfd, or one with a name in a directory.
//!
//! A memfd is the default: it has no name, is freed by its last user, and can be sealed. A file in
//! a hugetlbfs (or tmpfs) mount is for `ivshmem-plain`, where QEMU opens it by path; hugetlbfs has
//! no `O_TMPFILE`, and an unnamed file could not be opened by path anyway. Such a file cannot be
//! sealed; its mode (0600) keeps others from truncating it.
//!
//! A named file would survive a killed process and hold its hugepages. So each is locked
//! (`flock(2)`) while its process runs, and creating another one in the directory removes the
//! unlocked ones of the same user.

use super::PageSize;
use super::pages::human;
use crate::{Error, Owned, Result};
use rustix::fs::{self, AtFlags, CWD, FlockOperation, MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// `f_type` of the allowed file systems (statfs(2)).
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// Prefix of our file names.
const PREFIX: &str = "virtnic-";

/// The file; its name, if any, is removed on drop.
#[derive(Debug)]
pub(super) struct Backing {
    /// Shared with code that passes it to a QEMU; none after [`Backing::forget`].
    file: Mutex<Option<Arc<Owned>>>,
    named: Option<Named>,
}

#[derive(Debug)]
struct Named {
    path: PathBuf,
    /// The creator: a forked copy must not remove the file.
    pid: u32,
}

impl Backing {
    /// A memfd of `size` bytes.
    pub(super) fn memfd(size: usize, page: PageSize) -> Result<Self> {
        let kind = match page {
            PageSize::Base => MemfdFlags::empty(),
            PageSize::Huge2M => MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
            PageSize::Huge1G => MemfdFlags::HUGETLB | MemfdFlags::HUGE_1GB,
        };
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | kind;
        let fd = fs::memfd_create(c"virtnic", flags).map_err(|cause| match cause {
            // Not for lack of pages: other sizes would fail too.
            Errno::MFILE | Errno::NFILE => Error::os("making the shared memory's file", cause),
            _ => Error::MemoryUnavailable(format!(
                "this kernel does not make a memfd of {} ({cause})",
                page.name()
            )),
        })?;
        grow(&fd, size)?;
        Ok(Self { file: Mutex::new(Some(Arc::new(fd.into()))), named: None })
    }

    /// A file of `size` bytes, mode 0600, with a unique name in `directory`.
    pub(super) fn in_directory(size: usize, directory: &Path) -> Result<Self> {
        sweep(directory);
        let (fd, path) = create(directory)?;
        // From here on a failure removes the name again.
        let named = Some(Named { path, pid: std::process::id() });
        let fd = Arc::new(Owned::new(fd));
        let backing = Self { file: Mutex::new(Some(Arc::clone(&fd))), named };
        grow(&fd, size)?;
        Ok(backing)
    }

    /// The file.
    pub(super) fn file(&self) -> Result<Arc<Owned>> {
        self.lock().clone().ok_or_else(|| {
            Error::Invalid(
                "the descriptor of this memory was closed when its QEMU had the memory: \
                 virtnic.open keeps none of a memory that it makes; make the memory yourself, \
                 memory=virtnic.Memory(), to use it for more than one QEMU"
                    .to_owned(),
            )
        })
    }

    /// Closes the file, whose pages exist as long as they are mapped. A named one stays open: its
    /// lock marks it as used.
    pub(super) fn forget(&self) {
        if self.named.is_none() {
            self.lock().take();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Owned>>> {
        // Each change under the lock is one assignment, so a panic leaves no partial state.
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn path(&self) -> Option<&Path> {
        self.named.as_ref().map(|named| named.path.as_path())
    }

    /// Fixes the size permanently, for every holder of the file.
    pub(super) fn seal(&self) -> Result<()> {
        if self.named.is_some() {
            return Ok(());
        }
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fs::fcntl_add_seals(self.file()?, seals)
            .map_err(|cause| Error::os("cannot seal the shared memory", cause))
    }

    /// Frees the pages of the file and keeps its size.
    pub(super) fn discard(&self, size: usize) -> Result<()> {
        let flags = fs::FallocateFlags::PUNCH_HOLE | fs::FallocateFlags::KEEP_SIZE;
        fs::fallocate(self.file()?, flags, 0, size as u64)
            .map_err(|cause| Error::os("cannot give pages of the shared memory back", cause))
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        if let Some(named) = self.named.take_if(|named| named.pid == std::process::id())
            && let Err(cause) = fs::unlink(&named.path)
            && cause != Errno::NOENT
        {
            log::warn!("cannot remove {}: {cause}", named.path.display());
        }
    }
}

fn grow(fd: &OwnedFd, size: usize) -> Result<()> {
    fs::ftruncate(fd, size as u64).map_err(|cause| {
        Error::MemoryUnavailable(format!(
            "cannot make the shared file {} long ({cause})",
            human(size as u64)
        ))
    })
}

/// The page size of the files in a directory.
pub(super) fn directory_pages(directory: &Path) -> Result<PageSize> {
    let named = directory.display();
    let stat = fs::statfs(directory).map_err(|cause| {
        let hint = "give a directory on a hugetlbfs mount, such as /dev/hugepages";
        match cause {
            Errno::NOENT | Errno::NOTDIR => {
                Error::Invalid(format!("no directory {named} ({cause}); {hint}"))
            }
            Errno::ACCESS | Errno::PERM => {
                Error::Permission(format!("cannot look into {named} ({cause}); {hint}"))
            }
            _ => Error::os(format!("statfs {named}"), cause),
        }
    })?;
    // The type of the fields differs between architectures.
    #[allow(clippy::cast_sign_loss, clippy::unnecessary_cast)]
    let (kind, block) = (stat.f_type as u64 & 0xffff_ffff, stat.f_bsize as usize);
    match kind {
        HUGETLBFS_MAGIC => PageSize::from_bytes(block).ok_or_else(|| {
            Error::Invalid(format!(
                "{named} has pages of {}; mount one with `mount -t hugetlbfs -o pagesize=2M \
                 none DIRECTORY`",
                human(block as u64)
            ))
        }),
        TMPFS_MAGIC => Ok(PageSize::Base),
        _ => Err(Error::Invalid(format!(
            "{named} is not on a hugetlbfs or tmpfs mount, and packet memory must not be written \
             to a disk; mount one with `mount -t hugetlbfs -o pagesize=2M none DIRECTORY`"
        ))),
    }
}

/// Checks whether a file of `size` bytes fits a directory whose mount has a limit.
pub(super) fn check_room(directory: &Path, size: usize) -> Result<()> {
    let Ok(stat) = fs::statvfs(directory) else { return Ok(()) };
    // Without a limit, the number of blocks is 0 or, on hugetlbfs, -1.
    let limited = stat.f_blocks > 0 && stat.f_blocks.cast_signed() > 0;
    let (block, size) = (stat.f_frsize, size as u64);
    let free = stat.f_bavail.saturating_mul(block);
    if !limited || free >= size {
        return Ok(());
    }
    Err(Error::MemoryUnavailable(format!(
        "{} has {} of {} free, not {}: ask for less, or remount it with a larger size",
        directory.display(),
        human(free),
        human(stat.f_blocks.saturating_mul(block)),
        human(size)
    )))
}

/// Makes and locks a file with a name that nobody else has.
fn create(directory: &Path) -> Result<(OwnedFd, PathBuf)> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    // Another PID namespace may use the same number in this directory.
    for _ in 0..1000 {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!("{PREFIX}{}-{number}", std::process::id()));
        let fd = match fs::openat(CWD, &path, flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => fd,
            Err(Errno::EXIST) => continue,
            Err(cause @ (Errno::ACCESS | Errno::PERM | Errno::ROFS)) => {
                return Err(Error::Permission(format!(
                    "cannot make a file in {} ({cause}); mount the hugetlbfs with uid=, or leave \
                     the directory out to use a memfd",
                    directory.display()
                )));
            }
            Err(cause @ (Errno::NOSPC | Errno::DQUOT)) => {
                return Err(Error::MemoryUnavailable(format!(
                    "cannot make a file in {} ({cause}): it is full; remove what is not needed, \
                     or remount it with a larger nr_inodes=",
                    directory.display()
                )));
            }
            Err(cause) => return Err(Error::os(format!("create {}", path.display()), cause)),
        };
        // A sweep may have intervened: it holds the lock, or has removed the name.
        if lock(&fd) && links(&fd) > 0 {
            return Ok((fd, path));
        }
    }
    Err(Error::MemoryUnavailable(format!(
        "no free name for a file in {}; remove the {PREFIX}* files of ended processes there",
        directory.display()
    )))
}

/// Removes files left by killed processes of the same user.
fn sweep(directory: &Path) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    let ours = rustix::process::geteuid().as_raw();
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let path = entry.path();
        // Not blocking: the name could belong to a FIFO.
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let Ok(fd) = fs::openat(CWD, &path, flags, Mode::empty()) else { continue };
        let plain = fs::fstat(&fd).is_ok_and(|stat| {
            stat.st_uid == ours
                && fs::FileType::from_raw_mode(stat.st_mode) == fs::FileType::RegularFile
        });
        if plain && lock(&fd) && links(&fd) > 0 {
            log::info!("removing {}, left by a process that ended", path.display());
            let _ = fs::unlinkat(CWD, &path, AtFlags::empty());
        }
    }
}

fn lock(fd: &OwnedFd) -> bool {
    fs::flock(fd, FlockOperation::NonBlockingLockExclusive).is_ok()
}

fn links(fd: &OwnedFd) -> u64 {
    // The type differs between architectures.
    #[allow(clippy::useless_conversion)]
    fs::fstat(fd).map_or(0, |stat| stat.st_nlink.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A directory of our own on tmpfs, where the machine has /dev/shm.
    struct Shm(PathBuf);

    impl Shm {
        fn new(name: &str) -> Self {
            let path = Path::new("/dev/shm").join(format!("test-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }
        fn names(&self) -> usize {
            std::fs::read_dir(&self.0).unwrap().count()
        }
    }

    impl Drop for Shm {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_sealed_memfd_keeps_its_size() {
        let backing = Backing::memfd(1 << 20, PageSize::Base).unwrap();
        backing.seal().unwrap();
        assert_eq!(fs::ftruncate(backing.file().unwrap(), 4096), Err(Errno::PERM));
        assert_eq!(fs::ftruncate(backing.file().unwrap(), 2 << 20), Err(Errno::PERM));
        assert_eq!(
            fs::fcntl_add_seals(backing.file().unwrap(), SealFlags::WRITE),
            Err(Errno::PERM)
        );
    }

    #[test]
    fn a_named_file_is_private_and_goes_with_us() {
        let shm = Shm::new("named");
        assert_eq!(directory_pages(&shm.0).unwrap(), PageSize::Base);
        let one = Backing::in_directory(1 << 20, &shm.0).unwrap();
        let two = Backing::in_directory(1 << 20, &shm.0).unwrap();
        assert_eq!(shm.names(), 2, "the first is alive, so the second must not sweep it away");
        let found = std::fs::metadata(one.path().unwrap()).unwrap();
        assert_eq!((found.permissions().mode() & 0o7777, found.len()), (0o600, 1 << 20));
        drop((one, two));
        assert_eq!(shm.names(), 0);
    }

    #[test]
    fn files_of_ended_processes_are_swept() {
        let shm = Shm::new("sweep");
        // What is left after SIGKILL: the name, without a lock.
        std::fs::write(shm.0.join("virtnic-1-0"), "").unwrap();
        std::fs::write(shm.0.join("other"), "").unwrap();
        let kept = Backing::in_directory(1 << 20, &shm.0).unwrap();
        assert_eq!(shm.names(), 2);
        assert!(shm.0.join("other").exists() && kept.path().unwrap().exists());
    }

    #[test]
    fn a_directory_on_a_disk_or_nowhere_is_refused() {
        assert!(matches!(directory_pages(Path::new("/proc")), Err(Error::Invalid(_))));
        assert!(matches!(directory_pages(Path::new("/no/such/place")), Err(Error::Invalid(_))));
    }
}
