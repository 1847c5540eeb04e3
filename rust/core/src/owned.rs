//! Descriptors that close their own file only.
//!
//! A program may close descriptors that are not its own, and ours among them: what turns it into a
//! daemon does, and so does `os.closerange`. Their numbers are soon another file's. Who has one of ours
//! for long would close that one at its end.

use rustix::fs::fstat;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Numbers that are looked after among ourselves; the others by their files alone.
const LOOKED_AFTER: usize = 1 << 16;
const NOBODY: u32 = 0;

/// Who of ours had a number last. All eventfds are of one file, so the file does not tell them apart.
static OWNERS: [AtomicU32; LOOKED_AFTER] = [const { AtomicU32::new(NOBODY) }; LOOKED_AFTER];
static LAST: AtomicU32 = AtomicU32::new(NOBODY);

/// A descriptor that we have for long. Its end closes it, unless its number is another's by now.
#[derive(Debug)]
pub struct Owned {
    /// Always there, but inside of `drop`.
    fd: ManuallyDrop<OwnedFd>,
    owner: u32,
    file: Option<File>,
}

/// Device, inode, and what kind of file it is.
type File = (u64, u64, u32);

fn file_of(fd: BorrowedFd<'_>) -> Option<File> {
    fstat(fd).ok().map(|found| (found.st_dev, found.st_ino, found.st_mode))
}

impl Owned {
    /// Takes over one that was just opened.
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
        // Forgotten before it is closed: who gets the number next says so after that.
        let ours = owner_of(self.fd.as_fd())
            .is_none_or(|last| last.compare_exchange(self.owner, NOBODY, Relaxed, Relaxed).is_ok());
        if ours && file_of(self.fd.as_fd()) == self.file {
            // SAFETY: nothing uses it after this.
            unsafe { ManuallyDrop::drop(&mut self.fd) };
        } else {
            let number = self.fd.as_raw_fd();
            log::debug!("descriptor {number} was closed by somebody else, and is left alone");
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

    /// One that somebody closes.
    fn closed_by_somebody(fd: OwnedFd) -> (Owned, i32) {
        let owned = Owned::new(fd);
        let number = owned.as_raw_fd();
        // SAFETY: that is what this test is about; the number is taken again below.
        drop(unsafe { OwnedFd::from_raw_fd(number) });
        (owned, number)
    }

    fn event() -> OwnedFd {
        eventfd(0, EventfdFlags::CLOEXEC).unwrap()
    }

    #[test]
    fn it_closes_what_it_is_and_nothing_else() {
        let owned = Owned::new(event());
        let again = owned.try_clone().unwrap();
        drop(owned);
        fcntl_getfd(&again).unwrap();
        // Other tests open descriptors, too: the number is taken at once, or another time.
        for _ in 0..1000 {
            let (stale, number) = closed_by_somebody(event());
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
    fn one_of_ours_is_told_from_another() {
        for _ in 0..1000 {
            let (stale, number) = closed_by_somebody(event());
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
