//! Signals: default actions in children, all blocked in our own threads.

use std::mem::MaybeUninit;
use std::ptr::null_mut;

/// Resets every signal to its default action and unblocks all. Runs in a child before exec.
///
/// Blocked and ignored signals are inherited over exec. With SIGTERM blocked, QEMU would not end on
/// request; with SIGCHLD ignored, it would wait forever for its helpers.
pub(super) fn reset() {
    for number in 1..=libc::SIGRTMAX() {
        // SAFETY: it accesses no memory. It fails for the two signals that cannot be changed and those
        // of the C library.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    let mut none = MaybeUninit::uninit();
    // SAFETY: the first call initializes the set and the second reads it.
    unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), null_mut());
    }
}

/// Blocks all signals in the calling thread, and in threads that it starts, until it is dropped.
///
/// The kernel delivers a signal to any thread that does not block it. If a program blocks one in its
/// own threads, for sigwait(3), it would end the process in ours.
pub(super) struct Blocked {
    before: libc::sigset_t,
}

impl Blocked {
    pub(super) fn all() -> Self {
        let (mut all, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: the first call initializes `all`; the second reads it and writes `before`. It only
        // fails for an unknown operation.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
            Self { before: before.assume_init() }
        }
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // SAFETY: it reads the set, which `all` has initialized.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, null_mut()) };
    }
}
