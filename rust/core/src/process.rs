//! Child processes that die with us, even when we are killed; and which process is "us".
//!
//! The kernel's parent-death signal is bound to the *thread* that forked, so all
//! children are started by one thread that lives as long as the process. It does not reach
//! those that run as another user than we do by then: see `lifeline`.
//!
//! What a child gets of our surroundings is what QEMU needs: the environment that the caller
//! chooses, the working directory, limits and umask; but no signal blocked or ignored, and no
//! descriptor.
//!
//! A process that forks without exec (Python's `multiprocessing` does) has a copy of every
//! object, but none of the threads, and the copies share what lies outside the process:
//! sockets, eventfds, packet memory, QEMU. Whoever owns such a thing keeps a [`Home`], and
//! does nothing anywhere else.

mod lifeline;
mod signals;

use crate::notify::wait_readable;
use crate::{Error, Result};
use rustix::fs::{Mode, OFlags, RawDir, open};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, WaitId, WaitIdOptions, getpid, getppid, getrlimit,
    kill_process, kill_process_group, pidfd_open, set_parent_process_death_signal, setrlimit,
    waitid,
};
use std::ffi::{CString, OsString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{JoinHandle, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use lifeline::Lifeline;

/// How long a dropped child may take to die; a process in an uninterruptible system
/// call can take longer, and is left to the kernel then.
const REAP: Duration = Duration::from_secs(5);
/// How often a child is looked at where there is no descriptor to wait with.
const LOOK: Duration = Duration::from_millis(5);
/// The exit code reported when somebody else reaped the child.
const UNKNOWN: i32 = 255;

/// How many forks, each in the child of the one before, led to this process.
static GENERATION: AtomicU32 = AtomicU32::new(0);

/// Tells a forked child that it is one; call it there, before anything else of this crate.
///
/// From then on every object that was made before the fork leaves the parent's things alone:
/// its calls return [`Error::Closed`], and its end does nothing outside this process.
pub fn after_fork_in_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
    lifeline::let_go();
}

/// The process in which something was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Home(u32);

impl Home {
    /// This process.
    #[must_use]
    pub fn here() -> Self {
        Self(GENERATION.load(Ordering::Relaxed))
    }

    /// Whether this is that process, and not a forked child of it. One load and one comparison.
    #[inline]
    #[must_use]
    pub fn is_here(self) -> bool {
        // Relaxed: it changes before the child has a second thread.
        self.0 == GENERATION.load(Ordering::Relaxed)
    }

    /// An error in a forked child; `what` is what it must not use.
    ///
    /// # Errors
    /// [`Error::Closed`].
    #[inline]
    pub fn check(self, what: &str) -> Result<()> {
        if self.is_here() { Ok(()) } else { Err(elsewhere(what)) }
    }
}

/// Starts a thread of our own, which leaves the process's signals to the program's threads.
pub(crate) fn background<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> std::io::Result<JoinHandle<T>> {
    let _inherited = signals::Blocked::all();
    std::thread::Builder::new().name(name.into()).spawn(work)
}

/// The same for a thread that ends before its starter goes on.
pub(crate) fn background_scoped<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: String,
    work: impl FnOnce() -> T + Send + 'scope,
) -> std::io::Result<ScopedJoinHandle<'scope, T>> {
    let _inherited = signals::Blocked::all();
    std::thread::Builder::new().name(name).spawn_scoped(scope, work)
}

#[cold]
fn elsewhere(what: &str) -> Error {
    Error::Closed(format!("{what} belongs to the process that opened it; this is a forked child"))
}

/// A child started by [`spawn`]; killed and reaped when dropped.
#[derive(Debug)]
pub struct Child {
    home: Home,
    pid: Pid,
    /// Its end, once it was reaped. Until then its number is nobody else's; signals are sent
    /// with the lock held and only before that.
    end: Mutex<Option<i32>>,
}

/// Environment variables and their values.
pub type Environment = Vec<(OsString, OsString)>;

/// What the spawning thread is asked for, and where the answer goes.
struct Job {
    argv: Vec<OsString>,
    environment: Environment,
    stderr: OwnedFd,
    answer: mpsc::SyncSender<Result<Child>>,
}

/// The spawning thread, and the process it is a thread of: a process that forks without
/// exec (Python's multiprocessing does) has no such thread in the copy.
static SPAWNER: Mutex<Option<(Pid, mpsc::Sender<Job>)>> = Mutex::new(None);

/// Starts `argv[0]` (a path or a name in PATH) with stdin from and stdout to
/// `/dev/null`, stderr to the given descriptor, no environment but the one given, default
/// signals, and in its own process group (a terminal's Ctrl-C does not reach it). It is killed
/// when this process ends, whoever the two run as by then.
///
/// # Errors
/// [`crate::Error::Os`]; [`crate::Error::Invalid`] for an empty `argv`.
pub fn spawn(argv: Vec<OsString>, environment: Environment, stderr: OwnedFd) -> Result<Child> {
    let (answer, result) = mpsc::sync_channel(1);
    let gone = || Error::Os {
        what: "starting a child process".into(),
        message: "the thread that does it is gone".into(),
        errno: 0,
    };
    spawner()?.send(Job { argv, environment, stderr, answer }).map_err(|_| gone())?;
    result.recv().map_err(|_| gone())?
}

fn spawner() -> Result<mpsc::Sender<Job>> {
    let us = getpid();
    let mut spawner = lock(&SPAWNER);
    if let Some((owner, sender)) = &*spawner
        && *owner == us
    {
        return Ok(sender.clone());
    }
    let (sender, jobs) = mpsc::channel::<Job>();
    // Runs as long as the process: the sender lives in a static.
    background("virtnic-spawner", move || {
        let mut lifeline = Lifeline::new();
        for job in jobs {
            // If nobody waits for it any more, the child is dropped, which ends it.
            let child = start(&job.argv, job.environment, job.stderr, us, lifeline.name());
            let _ = job.answer.send(child);
        }
    })
    .map_err(|e| Error::os("starting the thread that starts children", e))?;
    // One inherited by a fork is not dropped: its channel belongs to a thread that is not here.
    std::mem::forget(spawner.replace((us, sender.clone())));
    Ok(sender)
}

/// Starts a child. In the spawning thread only.
fn start(
    argv: &[OsString],
    environment: Environment,
    stderr: OwnedFd,
    us: Pid,
    lifeline: Option<CString>,
) -> Result<Child> {
    let [program, arguments @ ..] = argv else {
        return Err(Error::Invalid(
            "there is no program to start: the argument list is empty".into(),
        ));
    };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .envs(environment)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::from(stderr))
        .process_group(0);
    let prepare = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have died before the line above took effect.
        if getppid() != Some(us) {
            return Err(Errno::SRCH.into());
        }
        keep_standard_streams();
        close_others_on_exec();
        raise_limit();
        if let Some(name) = &lifeline {
            lifeline::hold(name);
        }
        signals::reset();
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec, where only async-signal-safe things
    // are allowed: it makes system calls, and neither allocates nor locks.
    unsafe { command.pre_exec(prepare) };
    let what = || format!("starting {}", program.to_string_lossy());
    let child = command.spawn().map_err(|e| Error::os(what(), e))?;
    Ok(Child { home: Home::here(), pid: Pid::from_child(&child), end: Mutex::new(None) })
}

/// Keeps the first three descriptors over exec. Where this process has closed its own, what a
/// child is to have there was opened under just that number, and is close-on-exec still.
fn keep_standard_streams() {
    for number in 0..3 {
        // SAFETY: it changes a flag of a descriptor that is the child's alone.
        unsafe { libc::fcntl(number, libc::F_SETFD, 0) };
    }
}

/// Makes every descriptor but the first three close-on-exec. Ours are, but the process may
/// have inherited others, and a QEMU that holds somebody's pipe keeps it from ending.
/// Without /proc there is nothing to do. In the child, before exec: no allocation.
fn close_others_on_exec() {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(directory) = open(c"/proc/self/fd", flags, Mode::empty()) else { return };
    let mut buffer = [MaybeUninit::uninit(); 2048];
    let mut entries = RawDir::new(&directory, &mut buffer);
    while let Some(Ok(entry)) = entries.next() {
        let name = entry.file_name().to_bytes();
        let number = name.iter().try_fold(0i32, |n, digit| {
            let digit = digit.is_ascii_digit().then(|| i32::from(digit - b'0'))?;
            n.checked_mul(10)?.checked_add(digit)
        });
        if let Some(number) = number.filter(|n| *n > 2) {
            // SAFETY: the number was just listed among our open descriptors, and the child
            // has one thread, so nobody closes it meanwhile.
            let fd = unsafe { BorrowedFd::borrow_raw(number) };
            let _ = fcntl_setfd(fd, FdFlags::CLOEXEC);
        }
    }
}

/// Lets a child have as many descriptors as it may: a limit that we were given says nothing
/// about how many QEMU needs for its ports. In the child, before exec: no allocation.
fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Child {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Waits for its end: the exit code, or minus the signal; `None` after the timeout.
    /// 255 when somebody else reaped it (`SIGCHLD` ignored, or `waitpid(-1)`).
    ///
    /// # Errors
    /// [`crate::Error::Os`], with errno EINTR when a signal came, for the caller to look at.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<Option<i32>> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            if let Some(end) = self.reap()? {
                return Ok(Some(end));
            }
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(None);
            }
            // For as long as the wait: many children cost no descriptors.
            match pidfd_open(self.pid, PidfdFlags::empty()) {
                Ok(pidfd) => match wait_readable(pidfd.as_fd(), left) {
                    // Closed by whoever believes that the number is still that of another file.
                    Err(Error::Os { errno, .. }) if errno == Errno::BADF.raw_os_error() => {
                        std::thread::sleep(left.map_or(LOOK, |left| left.min(LOOK)));
                    }
                    other => {
                        other?;
                    }
                },
                // No descriptor left, no pidfd in this kernel, or it has been reaped.
                Err(_) => std::thread::sleep(left.map_or(LOOK, |left| left.min(LOOK))),
            }
        }
    }

    /// Takes its end if it has ended, without waiting.
    fn reap(&self) -> Result<Option<i32>> {
        let mut end = lock(&self.end);
        if end.is_none() {
            self.end_group();
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            *end = match waitid(WaitId::Pid(self.pid), options) {
                Ok(None) => None,
                Ok(Some(status)) => {
                    Some(match (status.exit_status(), status.terminating_signal()) {
                        (Some(code), _) => code,
                        (None, Some(signal)) => -signal,
                        (None, None) => UNKNOWN,
                    })
                }
                Err(Errno::CHILD) => {
                    log::warn!("somebody else reaped child {}; its exit code is lost", self.pid());
                    Some(UNKNOWN)
                }
                Err(e) => return Err(Error::os(format!("waiting for child {}", self.pid()), e)),
            };
        }
        Ok(*end)
    }

    /// Whether its number is its own: nobody else has reaped it.
    fn is_child(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(waitid(WaitId::Pid(self.pid), options), Err(Errno::CHILD))
    }

    /// Kills what is left of the process group of a child that has ended: the QEMU of a script
    /// that did not `exec` it.
    fn end_group(&self) {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        if let Ok(Some(_)) = waitid(WaitId::Pid(self.pid), options) {
            // Not reaped yet, so the group's number is nobody else's.
            let _ = kill_process_group(self.pid, Signal::KILL);
        }
    }

    /// Sends SIGTERM, to its process group; nothing in a forked child, whose child it is not.
    ///
    /// Returns whether we may: not when it runs as another user than we do by now.
    pub fn terminate(&self) -> bool {
        self.signal(Signal::TERM)
    }

    /// Sends SIGKILL, to its process group too (QEMU's own helpers); nothing in a forked
    /// child, whose child it is not.
    ///
    /// Returns whether we may, as [`Child::terminate`] does.
    pub fn kill(&self) -> bool {
        self.signal(Signal::KILL)
    }

    fn signal(&self, signal: Signal) -> bool {
        if !self.home.is_here() {
            return true;
        }
        let end = lock(&self.end);
        if end.is_some() || !self.is_child() {
            return true;
        }
        // Not reaped, so neither the process's number nor the group's is anybody else's.
        if kill_process_group(self.pid, signal).is_ok() && signal != Signal::KILL {
            return true; // once is enough for those who have a handler
        }
        // It may have ended meanwhile, which is no error.
        kill_process(self.pid, signal) != Err(Errno::PERM)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.home.is_here() {
            return;
        }
        if !self.kill() {
            log::warn!(
                "child {} runs as another user than we do: it stays until we end",
                self.pid()
            );
            return;
        }
        let started = Instant::now();
        while let Some(left) = REAP.checked_sub(started.elapsed()) {
            match self.wait(Some(left)) {
                Ok(Some(_)) => return,
                // A signal, which is not ours to look at here.
                Err(Error::Os { errno, .. }) if errno == Errno::INTR.raw_os_error() => {}
                Ok(None) | Err(_) => break,
            }
        }
        log::warn!("child {} does not die; it was sent SIGKILL", self.pid());
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Read;

    const LONG: Option<Duration> = Some(Duration::from_secs(10));

    fn shell(script: &str) -> (Child, std::io::PipeReader) {
        let (reader, writer) = std::io::pipe().unwrap();
        let argv = ["sh", "-c", script].map(OsString::from).to_vec();
        (spawn(argv, std::env::vars_os().collect(), writer.into()).unwrap(), reader)
    }

    #[test]
    fn exit_codes_and_signals() {
        let (child, mut stderr) = shell("echo hello >&2; exit 7");
        assert_eq!(child.wait(LONG).unwrap(), Some(7));
        assert_eq!(child.wait(None).unwrap(), Some(7));
        let mut text = String::new();
        stderr.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello\n");
        let (child, _stderr) = shell("sleep 100");
        assert_eq!(child.wait(Some(Duration::from_millis(10))).unwrap(), None);
        child.terminate();
        assert_eq!(child.wait(LONG).unwrap(), Some(-15));
        // After its end signals go nowhere.
        child.terminate();
        child.kill();
    }

    #[test]
    fn dropping_kills_the_whole_group_and_reaps() {
        let (child, mut stderr) = shell("sleep 100 & echo $! >&2; wait");
        let mut byte = [0];
        let mut helper = String::new();
        while stderr.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
            helper.push(char::from(byte[0]));
        }
        let pid = child.pid();
        let started = Instant::now();
        drop(child);
        assert!(started.elapsed() < Duration::from_secs(5));
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
        // The helper holds the other end of the pipe: an end means it is gone too.
        assert_eq!(stderr.read(&mut byte).unwrap(), 0);
    }

    #[test]
    fn it_is_in_a_group_of_its_own_without_our_descriptors() {
        // One that the child would inherit.
        let open = std::fs::File::open("/dev/zero").unwrap();
        fcntl_setfd(&open, FdFlags::empty()).unwrap();
        let (child, mut stderr) = shell("cut -d' ' -f5 /proc/self/stat >&2; ls -l /proc/$$/fd >&2");
        let pid = child.pid();
        assert_eq!(child.wait(LONG).unwrap(), Some(0));
        let mut text = String::new();
        stderr.read_to_string(&mut text).unwrap();
        assert!(text.starts_with(&format!("{pid}\n")), "{text}");
        assert!(text.contains(" 2 -> ") && !text.contains("/dev/zero"), "{text}");
    }

    #[test]
    fn it_has_as_many_descriptors_as_it_may() {
        let most = getrlimit(Resource::Nofile).maximum;
        let (child, mut stderr) = shell("ulimit -Sn >&2");
        assert_eq!(child.wait(LONG).unwrap(), Some(0));
        let mut text = String::new();
        stderr.read_to_string(&mut text).unwrap();
        assert_eq!(text.trim(), most.map_or("unlimited".to_owned(), |most| most.to_string()));
    }

    #[test]
    fn its_environment_is_the_one_given() {
        let (reader, writer) = std::io::pipe().unwrap();
        let argv = ["/bin/sh", "-c", "env >&2"].map(OsString::from).to_vec();
        let child = spawn(argv, vec![("A".into(), "b c".into())], writer.into()).unwrap();
        assert_eq!(child.wait(LONG).unwrap(), Some(0));
        let mut text = String::new();
        { reader }.read_to_string(&mut text).unwrap();
        assert!(text.contains("A=b c\n") && !text.contains("HOME="), "{text}");
    }

    /// A set of signals in `/proc/PID/status`: `SigBlk`, `SigIgn`.
    fn set(status: &str, name: &str) -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        u64::from_str_radix(line.trim_start_matches(':').trim(), 16).unwrap()
    }

    const TERMINATE: u64 = 1 << (libc::SIGTERM - 1);
    const WINDOW: u64 = 1 << (libc::SIGWINCH - 1);

    #[test]
    fn its_signals_are_the_usual_ones() {
        let _blocked = signals::Blocked::all();
        // SAFETY: SIGWINCH does nothing by default either.
        unsafe { libc::signal(libc::SIGWINCH, libc::SIG_IGN) };
        // One that is started from here as usual has what is to be kept from ours.
        let script = "exec cat /proc/self/status >&2";
        let usual = Command::new("sh").args(["-c", script]).output().unwrap().stderr;
        let usual = String::from_utf8(usual).unwrap();
        assert_ne!(set(&usual, "SigIgn") & WINDOW, 0);
        let (child, mut stderr) = shell(script);
        assert_eq!(child.wait(LONG).unwrap(), Some(0));
        let mut text = String::new();
        stderr.read_to_string(&mut text).unwrap();
        assert_eq!((set(&text, "SigBlk"), set(&text, "SigIgn") & WINDOW), (0, 0), "{text}");
    }

    #[test]
    fn our_threads_leave_signals_to_others() {
        let status = || std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let before = set(&status(), "SigBlk");
        let text = background("test", status).unwrap().join().unwrap();
        assert_eq!(set(&text, "SigBlk") & TERMINATE, TERMINATE);
        assert_eq!(set(&status(), "SigBlk"), before);
    }

    #[test]
    fn the_end_of_a_script_ends_what_it_started() {
        let (child, mut stderr) = shell("sleep 100 & exit 3");
        assert_eq!(child.wait(LONG).unwrap(), Some(3));
        // It holds the other end of the pipe: an end means it is gone.
        assert_eq!(stderr.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn several_threads_may_wait() {
        let (child, _stderr) = shell("sleep 0.1; exit 3");
        std::thread::scope(|scope| {
            let waiters: Vec<_> = (0..4).map(|_| scope.spawn(|| child.wait(LONG))).collect();
            for waiter in waiters {
                assert_eq!(waiter.join().unwrap().unwrap(), Some(3));
            }
        });
    }

    #[test]
    fn what_cannot_be_started_is_an_error() {
        let stderr = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let error = spawn(vec!["/nonexistent/program".into()], Vec::new(), stderr()).unwrap_err();
        assert!(matches!(error, Error::Os { errno: 2, .. }), "{error:?}");
        assert!(matches!(spawn(Vec::new(), Vec::new(), stderr()), Err(Error::Invalid(_))));
    }
}
