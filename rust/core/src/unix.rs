//! UNIX sockets for QEMU and vhost-user backends.

use crate::{Error, Result};
use rustix::fs::{FileType, Mode, OFlags, chmod, fchmod, fstat, open, stat, unlink};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

/// Device and inode of a socket's file, so that only our own is removed.
pub(crate) type FileId = (u64, u64);

/// The address of a path.
pub(crate) fn address(path: &Path) -> Result<SocketAddrUnix> {
    SocketAddrUnix::new(path).map_err(|_| {
        Error::Invalid(format!(
            "{} cannot be the path of a socket, which has 1 to 107 bytes and no zero byte",
            path.display()
        ))
    })
}

/// A new non-blocking socket.
pub(crate) fn unconnected() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// Creates the socket file and listens; `what` is the socket's name in errors.
///
/// Replaces a socket file at which nobody listens, such as that of a killed process.
///
/// The file's mode is the given one, or depends on the umask, extended to those who may write to its
/// directory: see [`admit`].
pub(crate) fn listen_at(path: &Path, what: &str, mode: Option<Mode>) -> Result<(OwnedFd, FileId)> {
    let address = address(path)?;
    let context = |e: Errno| match e {
        Errno::ADDRINUSE => {
            Error::os(format!("{} exists; remove it or use another path", path.display()), e)
        }
        _ => Error::os(format!("creating the {what} socket {}", path.display()), e),
    };
    clear(path, &address);
    let socket = unconnected().map_err(context)?;
    if let Some(mode) = mode {
        // Linux creates the file with the socket's mode (less the umask), so nobody else can connect in
        // between.
        fchmod(&socket, mode).map_err(context)?;
    }
    bind(&socket, &address).map_err(context)?;
    let made = stat(path).and_then(|found| {
        let file = (found.st_dev, found.st_ino);
        admit(path, file)?;
        listen(&socket, 16).map(|()| file)
    });
    match made {
        Ok(file) => Ok((socket, file)),
        Err(e) => {
            let _ = unlink(path);
            Err(context(e))
        }
    }
}

/// Removes a socket file at which nobody listens.
fn clear(path: &Path, address: &SocketAddrUnix) {
    let is_socket = |mode| FileType::from_raw_mode(mode) == FileType::Socket;
    if stat(path).is_ok_and(|found| is_socket(found.st_mode))
        && unconnected().and_then(|socket| connect(socket, address)) == Err(Errno::CONNREFUSED)
    {
        let _ = unlink(path);
    }
}

/// Removes a socket file unless it was replaced.
pub(crate) fn remove(path: &Path, file: FileId) {
    if stat(path).is_ok_and(|found| (found.st_dev, found.st_ino) == file) {
        let _ = unlink(path);
    }
}

/// Extends a socket file's mode to those who may write to its directory, such as one shared with a QEMU
/// of another user. They could also replace the file; with the sticky bit they could not, so nothing is
/// changed then.
fn admit(path: &Path, file: FileId) -> Result<(), Errno> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = Mode::from_raw_mode(stat(parent.unwrap_or(Path::new(".")))?.st_mode);
    let mut others = Mode::empty();
    if directory.contains(Mode::WGRP) {
        others |= Mode::RGRP | Mode::WGRP;
    }
    if directory.contains(Mode::WOTH) {
        others |= Mode::ROTH | Mode::WOTH;
    }
    if others.is_empty() || directory.contains(Mode::SVTX) {
        return Ok(());
    }
    // By a descriptor, so as not to follow a link in its place.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = open(path, flags, Mode::empty())?;
    let found = fstat(&handle)?;
    let mode = Mode::from_raw_mode(found.st_mode);
    if (found.st_dev, found.st_ino) != file || mode.contains(others) {
        return Ok(());
    }
    chmod(format!("/proc/self/fd/{}", handle.as_raw_fd()), mode | others)
}

#[cfg(all(test, not(loom)))]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs::{Permissions, create_dir, metadata, remove_dir, set_permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    /// A directory with a mode, removed on drop.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str, mode: u32) -> Self {
            let name = format!("vu-{}-{name}-{mode:o}", std::process::id());
            let path = std::env::temp_dir().join(name);
            create_dir(&path).unwrap();
            // Independent of the umask.
            set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            Self(path)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = remove_dir(&self.0);
        }
    }

    #[test]
    fn the_mode_follows_the_directory() {
        let usual = Mode::RUSR | Mode::WUSR;
        for (directory, socket) in
            [(0o700, 0o600), (0o755, 0o600), (0o2770, 0o660), (0o777, 0o666), (0o1777, 0o600)]
        {
            let place = Directory::new("mode", directory);
            let path = place.0.join("s");
            let (_listener, file) = listen_at(&path, "test", Some(usual)).unwrap();
            let found = metadata(&path).unwrap().permissions().mode() & 0o777;
            assert_eq!(found, socket, "in a directory of mode {directory:o}");
            remove(&path, file);
            assert!(!path.exists());
        }
    }

    #[test]
    fn the_file_of_a_killed_process_is_replaced() {
        let place = Directory::new("left", 0o700);
        let path = place.0.join("s");
        let (listener, _) = listen_at(&path, "test", None).unwrap();
        let error = listen_at(&path, "test", None).unwrap_err();
        assert!(error.to_string().contains("exists"), "{error}");
        drop(listener);
        let (_listener, file) = listen_at(&path, "test", None).unwrap();
        remove(&path, file);
    }

    #[test]
    fn a_file_that_is_not_ours_is_not_removed() {
        let place = Directory::new("ours", 0o700);
        let path = place.0.join("s");
        let (_listener, file) = listen_at(&path, "test", None).unwrap();
        unlink(&path).unwrap();
        std::fs::write(&path, b"another's").unwrap();
        remove(&path, file);
        assert!(path.exists());
        let error = listen_at(&path, "test", None).unwrap_err();
        assert!(error.to_string().contains("remove it or use another path"), "{error}");
        std::fs::remove_file(&path).unwrap();
    }
}
