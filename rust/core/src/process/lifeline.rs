//! A pipe that ends all children with this process, even those of another user.
//!
//! The parent-death signal needs the parent's permission at its end: a parent that has dropped its
//! privileges may not signal its children, which would remain. The signal to the owner of a descriptor
//! needs the permission of whoever called F_SETOWN (fcntl(2)), which is the child itself. So each child
//! has the reading end of a pipe that signals its process group when the last writing end, ours, is
//! closed. One descriptor serves all children.

use rustix::fs::{Mode, fchmod, fstat};
use rustix::pipe::{PipeFlags, pipe_with};
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

/// The first usable kernel: in earlier ones, the end of one reader signalled the others (Linux
/// 0ddad21d3e99).
const KERNEL: (u32, u32) = (5, 6);
const NONE: RawFd = -1;

/// The writing end, for a forked child to close its copy.
static WRITER: AtomicI32 = AtomicI32::new(NONE);
/// The pipe's inode, as foreign code may close the descriptor and reuse its number.
static PIPE: AtomicU64 = AtomicU64::new(0);

/// The path by which a child opens the pipe. The writing end is open as long as the process runs.
#[derive(Debug)]
pub(super) struct Lifeline(Option<CString>);

impl Lifeline {
    /// Creates the pipe for all children. Without it, children still have the parent-death signal.
    pub(super) fn new() -> Self {
        let made = kernel().is_some_and(|version| version >= KERNEL).then(|| {
            let (_reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
            // A child that is started as another user opens it, too.
            fchmod(&writer, Mode::from_raw_mode(0o666))?;
            Ok(writer)
        });
        match made {
            Some(Ok(writer)) => {
                let writer: OwnedFd = writer;
                PIPE.store(fstat(&writer).map_or(0, |pipe| pipe.st_ino), Ordering::Relaxed);
                let name = CString::new(format!("/proc/self/fd/{}", writer.as_raw_fd())).ok();
                WRITER.store(writer.into_raw_fd(), Ordering::Relaxed);
                Self(name)
            }
            Some(Err::<_, rustix::io::Errno>(e)) => {
                log::debug!("children get no pipe that signals our end: {e}");
                Self(None)
            }
            None => Self(None),
        }
    }

    /// The path. Creates a new pipe if foreign code has closed the descriptor.
    pub(super) fn name(&mut self) -> Option<CString> {
        if self.0.is_some() && !is_still(WRITER.load(Ordering::Relaxed)) {
            *self = Self::new();
        }
        self.0.clone()
    }
}

/// Lets the kernel kill this process group when the pipe's writing end is closed. Runs in a child that
/// leads its group, before exec: no allocation. Does nothing without /proc.
pub(super) fn hold(name: &CStr) {
    // Not close-on-exec, so that the program keeps it.
    // SAFETY: the name is a C string, and the descriptor is not used elsewhere.
    unsafe {
        let reader = libc::open(name.as_ptr(), libc::O_RDONLY | libc::O_NONBLOCK);
        if reader >= 0 {
            libc::fcntl(reader, libc::F_SETOWN, -libc::getpid());
            libc::fcntl(reader, F_SETSIG, libc::SIGKILL);
            libc::fcntl(reader, libc::F_SETFL, libc::O_NONBLOCK | libc::O_ASYNC);
        }
    }
}

/// Selects another signal than SIGIO: fcntl(2).
const F_SETSIG: libc::c_int = 10;

/// Closes a forked child's copy of the writing end, as only the parent's end counts.
pub(super) fn let_go() {
    let writer = WRITER.swap(NONE, Ordering::Relaxed);
    if is_still(writer) {
        // SAFETY: it is from `OwnedFd::into_raw_fd`, and taken once.
        drop(unsafe { OwnedFd::from_raw_fd(writer) });
    }
}

/// Whether the descriptor is still that of the pipe.
fn is_still(writer: RawFd) -> bool {
    if writer < 0 {
        return false;
    }
    // SAFETY: it is not -1, and `fstat` does no harm to a closed number or another file.
    let writer = unsafe { BorrowedFd::borrow_raw(writer) };
    fstat(writer).is_ok_and(|found| found.st_ino == PIPE.load(Ordering::Relaxed))
}

/// The kernel's version: its first two numbers.
fn kernel() -> Option<(u32, u32)> {
    let uname = rustix::system::uname();
    version(uname.release().to_str().ok()?)
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_compared_as_numbers() {
        assert_eq!(version("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(version("5.4.0-42-generic"), Some((5, 4)));
        assert_eq!(version("4.18"), Some((4, 18)));
        assert_eq!(version("unknown"), None);
        assert!(Some((5, 10)) > Some(KERNEL));
    }
}
