//! Descriptors that only close their own file.
//!
//! Foreign code may close our descriptors: code that daemonises the program does, and `os.closerange`.
//! Their numbers are then reused, and closing ours at the end would close another file.

use rustix::fs::fstat;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Numbers with an entry in [`OWNERS`]. Higher ones are only identified by their files.
const TRACKED: usize = 1 << 16;
const NOBODY: u32 = 0;

/// Our last owner of each number. All eventfds share one inode, so the file does not tell them apart.
static OWNERS: [AtomicU32; TRACKED] = [const { AtomicU32::new(NOBODY) }; TRACKED];
static LAST: AtomicU32 = AtomicU32::new(NOBODY);

/// A long-lived descriptor. Dropping it closes it unless its number belongs to another file by now.
#[derive(Debug)]
pub struct Owned {
    /// Only taken in `drop`.
    fd: ManuallyDrop<OwnedFd>,
    owner: u32,
    file: Option<File>,
}

/// Device, inode and mode of a file.
type File = (u64, u64, u32);

fn file_of(fd: BorrowedFd<'_>) -> Option<File> {
    fstat(fd).ok().map(|found| (found.st_dev, found.st_ino, found.st_mode))
}

impl Owned {
    /// Takes over a newly opened descriptor.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        let mut owner = NOBODY;
        while owner == NOBODY {
            owner = LAST.fetch_add(1, Relaxed).wrapping_add(1);
        }
        if let Some(last) = owner_of(fd.as_fd()) {
            last.store(owner, Relaxed);
        }
        let file = file_of(fd.as_fd());
        Self { fd: ManuallyDrop::new(fd), owner, file }
    }
}

fn owner_of(fd: BorrowedFd<'_>) -> Option<&'static AtomicU32> {
    OWNERS.get(usize::try_from(fd.as_raw_fd()).ok()?)
}

impl From<OwnedFd> for Owned {
    fn from(fd: OwnedFd) -> Self {
        Self::new(fd)
    }
}

impl Deref for Owned {
    type Target = OwnedFd;
    fn deref(&self) -> &OwnedFd {
        &self.fd
    }
}

impl AsFd for Owned {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // Cleared before the close, so that the next owner of the number sets it afterwards.
        let ours = owner_of(self.fd.as_fd())
            .is_none_or(|last| last.compare_exchange(self.owner, NOBODY, Relaxed, Relaxed).is_ok());
        if ours && file_of(self.fd.as_fd()) == self.file {
            // SAFETY: not used after this.
            unsafe { ManuallyDrop::drop(&mut self.fd) };
        } else {
            let number = self.fd.as_raw_fd();
            log::debug!(
                "descriptor {number} was closed by foreign code, so it is not closed again"
            );
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::io::fcntl_getfd;
    use std::os::fd::FromRawFd;

    /// A descriptor that was closed elsewhere.
    fn closed_by_others(fd: OwnedFd) -> (Owned, i32) {
        let owned = Owned::new(fd);
        let number = owned.as_raw_fd();
        // SAFETY: the case under test; `owned` must not close the number again.
        drop(unsafe { OwnedFd::from_raw_fd(number) });
        (owned, number)
    }

    fn event() -> OwnedFd {
        eventfd(0, EventfdFlags::CLOEXEC).unwrap()
    }

    #[test]
    fn it_only_closes_its_own_file() {
        let owned = Owned::new(event());
        let again = owned.try_clone().unwrap();
        drop(owned);
        fcntl_getfd(&again).unwrap();
        // Other tests open descriptors, too, so repeat until the number is reused here.
        for _ in 0..1000 {
            let (stale, number) = closed_by_others(event());
            let file = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
            let taken = file.as_raw_fd() == number;
            drop(stale);
            fcntl_getfd(&file).unwrap();
            if taken {
                return;
            }
        }
    }

    #[test]
    fn our_own_eventfds_are_distinguished() {
        for _ in 0..1000 {
            let (stale, number) = closed_by_others(event());
            let fresh = Owned::new(event());
            let taken = fresh.as_raw_fd() == number;
            drop(stale);
            fcntl_getfd(&fresh).unwrap();
            if taken {
                return;
            }
        }
    }
}
