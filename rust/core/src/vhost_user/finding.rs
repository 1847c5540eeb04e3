//! Connecting to the first backend, in the caller's thread.

use super::channel::End;
use super::socket::{GREETING, Source, may_come};
use crate::notify::wait_readable;
use crate::qtest::SignalCheck;
use crate::{Error, Result};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// A waiting caller checks for signals this often.
pub(super) const SLICE: Duration = Duration::from_millis(100);

/// Connects to the first backend and calls `greet` with the connection and the remaining time. Retries
/// if the backend disconnects.
pub(super) fn find<T>(
    source: &Source,
    wait: Duration,
    signals: Option<SignalCheck>,
    mut greet: impl FnMut(OwnedFd, Duration) -> Result<Result<T, End>>,
) -> Result<T> {
    let path = source.path().display();
    let started = Instant::now();
    loop {
        let failure = match source.attempt() {
            Ok(Some(socket)) => {
                let time = wait.saturating_sub(started.elapsed()).max(GREETING);
                match greet(socket, time)? {
                    Ok(found) => return Ok(found),
                    Err(End::Gone) => Error::Qemu(format!(
                        "the vhost-user backend at {path} closed the connection without an answer: it \
                         ended, or serves another client"
                    )),
                    // Retrying would not help.
                    Err(End::Broken(why)) => {
                        return Err(Error::Qemu(format!(
                            "the vhost-user backend at {path}: {why}"
                        )));
                    }
                }
            }
            Ok(None) => Error::Timeout(format!(
                "no vhost-user backend connected to {path} within {wait:?}; start it (as a \
                 client), or wait longer with wait=SECONDS"
            )),
            Err(e) if may_come(e) => absent(source, wait, e),
            Err(e) => {
                return Err(Error::os(format!("connecting to the vhost-user backend {path}"), e));
            }
        };
        let left = wait.saturating_sub(started.elapsed());
        if left.is_zero() {
            return Err(failure);
        }
        match source.listener() {
            Some(listener) => {
                uninterrupted(wait_readable(listener, Some(left.min(SLICE))))?;
            }
            None => std::thread::sleep(left.min(SLICE / 5)),
        }
        signals.map_or(Ok(()), |ask| ask())?;
    }
}

/// The error if no backend listens.
fn absent(source: &Source, wait: Duration, error: Errno) -> Error {
    let within = if wait.is_zero() { String::new() } else { format!(" within {wait:?}") };
    match Error::os("", error) {
        Error::Os { message, errno, .. } => Error::Os {
            what: format!("no vhost-user backend listens at {}{within}", source.path().display()),
            message: format!("{message}; start it first, or wait for it with wait=SECONDS"),
            errno,
        },
        other => other,
    }
}

/// Ignores an interruption by a signal, which `signals` handles.
pub(super) fn uninterrupted(waited: Result<bool>) -> Result<()> {
    match waited {
        Err(Error::Os { errno, .. }) if errno == Errno::INTR.raw_os_error() => Ok(()),
        other => other.map(drop),
    }
}
