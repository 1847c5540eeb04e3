//! The signals of children, which are those of a program that a shell starts, and of our own
//! threads, which leave signals to the program's.

use std::mem::MaybeUninit;
use std::ptr::null_mut;

/// Gives every signal its default action and lets all of them through. In a child, before exec.
///
/// What is blocked or ignored stays so over exec. A program that blocks SIGTERM to wait for it, or
/// ignores SIGCHLD to have no zombies, does not mean its children: QEMU would not end when it is
/// told to, and would wait in vain for helpers of its own.
pub(super) fn reset() {
    for number in 1..=libc::SIGRTMAX() {
        // SAFETY: it takes no memory of ours. The two signals that cannot be changed and those of
        // the C library are refused, which leaves them as they are.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    let mut none = MaybeUninit::uninit();
    // SAFETY: the first call initializes the set, which is ours, and the second reads it.
    unsafe {
        libc::sigemptyset(none.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), null_mut());
    }
}

/// As long as it lives, the calling thread takes no signals, and neither do those it starts.
///
/// The kernel gives a process's signal to any thread that does not block it. A program that
/// blocks one in its own threads, to take it with sigwait(3), would be ended by it in ours.
pub(super) struct Blocked {
    before: libc::sigset_t,
}

impl Blocked {
    pub(super) fn all() -> Self {
        let (mut all, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: both sets are ours. The second call reads the one that the first initialized
        // and writes the other; it only fails for an unknown way to change the mask.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
            Self { before: before.assume_init() }
        }
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // SAFETY: it reads the set, which was initialized when this was made.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, null_mut()) };
    }
}
