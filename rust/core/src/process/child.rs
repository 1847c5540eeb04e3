//! Child processes that end with this process, even if it is killed.
//!
//! The kernel's parent-death signal is bound to the *thread* that forked, so one thread, which lives as
//! long as the process, starts all children. The signal does not reach children of another user: see
//! `lifeline`.
//!
//! A child inherits what QEMU needs: the environment that the caller chooses, the working directory,
//! limits and umask; but no blocked or ignored signals and no descriptors.

use super::lifeline::Lifeline;
use super::{Home, background, lifeline, signals};
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
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

/// How long to wait for the end of a dropped child. One in an uninterruptible system call can take
/// longer.
const REAP: Duration = Duration::from_secs(5);
/// How often a child is checked without a descriptor to wait for.
const LOOK: Duration = Duration::from_millis(5);
/// The exit code if foreign code has reaped the child.
const UNKNOWN: i32 = 255;

/// A child started by [`spawn`]; killed and reaped when dropped.
#[derive(Debug)]
pub struct Child {
    home: Home,
    pid: Pid,
    /// Its exit code, once it was reaped. Until then its number is not reused, so signals are only sent
    /// before, with the lock held.
    end: Mutex<Option<i32>>,
}

/// Environment variables and their values.
pub type Environment = Vec<(OsString, OsString)>;

/// A request to the spawning thread.
struct Job {
    argv: Vec<OsString>,
    environment: Environment,
    stderr: OwnedFd,
    answer: mpsc::SyncSender<Result<Child>>,
}

/// The spawning thread and its process, as the thread does not exist in a forked child.
static SPAWNER: Mutex<Option<(Pid, mpsc::Sender<Job>)>> = Mutex::new(None);

/// Starts `argv[0]` (a path or a name in PATH) with stdin and stdout on `/dev/null`, the given stderr
/// and environment, default signals, and its own process group (a terminal's Ctrl-C does not reach it).
/// It is killed when this process ends, even if their users differ by then.
///
/// # Errors
/// [`crate::Error::Os`]; [`crate::Error::Invalid`] for an empty `argv`.
pub fn spawn(argv: Vec<OsString>, environment: Environment, stderr: OwnedFd) -> Result<Child> {
    let (answer, result) = mpsc::sync_channel(1);
    let gone = || Error::Os {
        what: "starting a child process".into(),
        message: "the thread that starts children has ended".into(),
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
            // If nobody waits any more, the child is dropped, which ends it.
            let child = start(&job.argv, job.environment, job.stderr, us, lifeline.name());
            let _ = job.answer.send(child);
        }
    })
    .map_err(|e| Error::os("starting the thread that starts children", e))?;
    // Do not drop one from before a fork: the thread of its channel does not exist here.
    std::mem::forget(spawner.replace((us, sender.clone())));
    Ok(sender)
}

/// Starts a child. Only in the spawning thread.
fn start(
    argv: &[OsString],
    environment: Environment,
    stderr: OwnedFd,
    us: Pid,
    lifeline: Option<CString>,
) -> Result<Child> {
    let [program, arguments @ ..] = argv else {
        return Err(Error::Invalid(
            "cannot start a child process: the argument list is empty".into(),
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
    // SAFETY: the closure runs between fork and exec, where only async-signal-safe calls are allowed: it
    // makes system calls, and neither allocates nor locks.
    unsafe { command.pre_exec(prepare) };
    let what = || format!("starting {}", program.to_string_lossy());
    let child = command.spawn().map_err(|e| Error::os(what(), e))?;
    Ok(Child { home: Home::here(), pid: Pid::from_child(&child), end: Mutex::new(None) })
}

/// Clears close-on-exec of the first three descriptors: if this process had closed its own, the child's
/// were opened with these numbers and are still close-on-exec.
fn keep_standard_streams() {
    for number in 0..3 {
        // SAFETY: it changes a flag of a descriptor of the child.
        unsafe { libc::fcntl(number, libc::F_SETFD, 0) };
    }
}

/// Makes all descriptors except the first three close-on-exec. Ours are, but others may be inherited,
/// and a QEMU with a copy of a pipe would keep it open. Does nothing without /proc. Runs in the child
/// before exec: no allocation.
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
            // SAFETY: the number was just listed as open, and the child has one thread, so it is not
            // closed meanwhile.
            let fd = unsafe { BorrowedFd::borrow_raw(number) };
            let _ = fcntl_setfd(fd, FdFlags::CLOEXEC);
        }
    }
}

/// Raises the limit of descriptors to its maximum, as QEMU may need more than we do. Runs in the child
/// before exec: no allocation.
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

    /// Waits for its end. Returns the exit code, or minus the signal; `None` after the timeout; 255 if
    /// foreign code reaped it (`SIGCHLD` ignored, or `waitpid(-1)`).
    ///
    /// # Errors
    /// [`crate::Error::Os`], with errno EINTR after a signal, which the caller handles.
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
            // Only open during the wait, so that many children need no descriptors.
            match pidfd_open(self.pid, PidfdFlags::empty()) {
                Ok(pidfd) => match wait_readable(pidfd.as_fd(), left) {
                    // Foreign code has closed the descriptor.
                    Err(Error::Os { errno, .. }) if errno == Errno::BADF.raw_os_error() => {
                        std::thread::sleep(left.map_or(LOOK, |left| left.min(LOOK)));
                    }
                    other => {
                        other?;
                    }
                },
                // No descriptor left, no pidfd in this kernel, or it was reaped.
                Err(_) => std::thread::sleep(left.map_or(LOOK, |left| left.min(LOOK))),
            }
        }
    }

    /// Reaps it if it has ended, without waiting.
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
                    log::warn!("foreign code reaped child {}; its exit code is lost", self.pid());
                    Some(UNKNOWN)
                }
                Err(e) => return Err(Error::os(format!("waiting for child {}", self.pid()), e)),
            };
        }
        Ok(*end)
    }

    /// Whether its number is still its own: foreign code has not reaped it.
    fn is_child(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(waitid(WaitId::Pid(self.pid), options), Err(Errno::CHILD))
    }

    /// Kills the rest of the process group of a child that has ended, such as the QEMU of a script that
    /// did not `exec` it.
    fn end_group(&self) {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        if let Ok(Some(_)) = waitid(WaitId::Pid(self.pid), options) {
            // Not reaped yet, so the group's number is not reused.
            let _ = kill_process_group(self.pid, Signal::KILL);
        }
    }

    /// Sends SIGTERM to its process group. Does nothing in a forked child of ours.
    ///
    /// Returns whether that is permitted: not if it runs as another user by now.
    pub fn terminate(&self) -> bool {
        self.signal(Signal::TERM)
    }

    /// Sends SIGKILL to its process group, which includes QEMU's helpers. Does nothing in a forked child
    /// of ours.
    ///
    /// Returns whether that is permitted, like [`Child::terminate`].
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
        // Not reaped, so the numbers of the process and the group are not reused.
        if kill_process_group(self.pid, signal).is_ok() && signal != Signal::KILL {
            return true; // a handler must not run twice
        }
        // It may have ended meanwhile, which is not an error.
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
                "child {} runs as another user, so it is only killed when this process ends",
                self.pid()
            );
            return;
        }
        let started = Instant::now();
        while let Some(left) = REAP.checked_sub(started.elapsed()) {
            match self.wait(Some(left)) {
                Ok(Some(_)) => return,
                // A signal, which is handled elsewhere.
                Err(Error::Os { errno, .. }) if errno == Errno::INTR.raw_os_error() => {}
                Ok(None) | Err(_) => break,
            }
        }
        log::warn!("child {} has not ended after SIGKILL", self.pid());
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
        // Signals after its end have no effect.
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
        // The helper has the other end of the pipe, so end of file means that it has ended.
        assert_eq!(stderr.read(&mut byte).unwrap(), 0);
    }

    #[test]
    fn it_has_its_own_group_and_none_of_our_descriptors() {
        // A descriptor that the child would inherit.
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
    fn its_limit_of_descriptors_is_raised() {
        let most = getrlimit(Resource::Nofile).maximum;
        let (child, mut stderr) = shell("ulimit -Sn >&2");
        assert_eq!(child.wait(LONG).unwrap(), Some(0));
        let mut text = String::new();
        stderr.read_to_string(&mut text).unwrap();
        assert_eq!(text.trim(), most.map_or("unlimited".to_owned(), |most| most.to_string()));
    }

    #[test]
    fn it_has_the_given_environment() {
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

    const WINDOW: u64 = 1 << (libc::SIGWINCH - 1);

    #[test]
    fn it_has_default_signals() {
        let _blocked = signals::Blocked::all();
        // SAFETY: SIGWINCH does nothing by default either.
        unsafe { libc::signal(libc::SIGWINCH, libc::SIG_IGN) };
        // A child of `Command` inherits the ignored signal; ours does not.
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
    fn the_end_of_a_script_ends_its_children() {
        let (child, mut stderr) = shell("sleep 100 & exit 3");
        assert_eq!(child.wait(LONG).unwrap(), Some(3));
        // The child has the other end of the pipe, so end of file means that it has ended.
        assert_eq!(stderr.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn several_threads_can_wait() {
        let (child, _stderr) = shell("sleep 0.1; exit 3");
        std::thread::scope(|scope| {
            let waiters: Vec<_> = (0..4).map(|_| scope.spawn(|| child.wait(LONG))).collect();
            for waiter in waiters {
                assert_eq!(waiter.join().unwrap().unwrap(), Some(3));
            }
        });
    }

    #[test]
    fn a_failed_start_is_an_error() {
        let stderr = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let error = spawn(vec!["/nonexistent/program".into()], Vec::new(), stderr()).unwrap_err();
        assert!(matches!(error, Error::Os { errno: 2, .. }), "{error:?}");
        assert!(matches!(spawn(Vec::new(), Vec::new(), stderr()), Err(Error::Invalid(_))));
    }
}
