//! The server against clients that behave, and clients that do not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use rustix::fs::{MemfdFlags, fstat, memfd_create};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, recvmsg};
use std::io::{IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

const LONG: Option<Duration> = Some(Duration::from_secs(10));

struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("virtnic-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
    fn socket(&self) -> PathBuf {
        self.0.join("ivshmem")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn memory() -> OwnedFd {
    memfd_create("test", MemfdFlags::CLOEXEC).unwrap()
}

/// What a QEMU reads: one message with at most one descriptor.
fn message(socket: &UnixStream) -> Option<(i64, Option<OwnedFd>)> {
    let mut bytes = [0; 8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got =
        recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)
            .ok()?;
    if got.bytes == 0 {
        return None;
    }
    assert_eq!(got.bytes, 8);
    let mut fds: Vec<OwnedFd> = control
        .drain()
        .flat_map(|m| match m {
            RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
            _ => Vec::new(),
        })
        .collect();
    assert!(fds.len() <= 1);
    Some((i64::from_le_bytes(bytes), fds.pop()))
}

/// Reads an introduction: the client's number, our eventfds, the memory.
fn introduced(socket: &UnixStream) -> (i64, Vec<EventFd>, OwnedFd) {
    assert!(matches!(message(socket), Some((0, None))));
    let Some((id, None)) = message(socket) else { panic!("no peer number") };
    let mut events = Vec::new();
    loop {
        match message(socket) {
            Some((-1, Some(memory))) => return (id, events, memory),
            Some((peer, Some(event))) => {
                assert_eq!(peer, i64::from(OUR_PEER));
                events.push(EventFd::from_fd(event).unwrap());
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_client_gets_the_memory_and_our_eventfds() {
    let directory = Directory::new("ivshmem-a");
    let file = memory();
    let inode = fstat(&file).unwrap().st_ino;
    let server = Server::serve(&directory.socket(), file, 3).unwrap();
    let mode = std::fs::metadata(directory.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let first = UnixStream::connect(directory.socket()).unwrap();
    let second = UnixStream::connect(directory.socket()).unwrap();
    let (a, events, memory) = introduced(&first);
    let (b, others, _) = introduced(&second);
    assert_eq!(fstat(&memory).unwrap().st_ino, inode);
    assert_eq!((events.len(), others.len(), server.vectors()), (3, 3, 3));
    assert!(a != b && a != i64::from(server.peer()) && b != i64::from(server.peer()));
    events[2].signal();
    others[0].signal();
    assert!(server.vector(2).unwrap().wait(LONG).unwrap());
    assert_eq!(server.vector(0).unwrap().drain(), 1);
    assert_eq!(server.vector(1).unwrap().drain(), 0);
    assert_eq!(server.doorbell_value(2), u32::from(OUR_PEER) << 16 | 2);
    // Numbers are used again, so a server serves any number of clients in its life.
    drop((first, second));
    for _ in 0..300 {
        let again = UnixStream::connect(directory.socket()).unwrap();
        let (id, events, _) = introduced(&again);
        assert!(id <= 260 && events.len() == 3);
    }
}

#[test]
fn bad_clients_disturb_nobody() {
    let directory = Directory::new("ivshmem-b");
    // So many vectors that an introduction does not fit a socket's buffer.
    let server = Server::serve(&directory.socket(), memory(), MAX_VECTORS).unwrap();
    let silent: Vec<_> = (0..5).map(|_| UnixStream::connect(directory.socket()).unwrap()).collect();
    let mut talker = UnixStream::connect(directory.socket()).unwrap();
    talker.write_all(&[7; 1000]).unwrap();
    drop(UnixStream::connect(directory.socket()).unwrap());
    let half = UnixStream::connect(directory.socket()).unwrap();
    assert!(message(&half).is_some());
    half.shutdown(std::net::Shutdown::Write).unwrap();
    let good = UnixStream::connect(directory.socket()).unwrap();
    good.set_read_timeout(LONG).unwrap();
    let (_, events, _) = introduced(&good);
    assert_eq!(events.len(), usize::from(MAX_VECTORS));
    events[1023].signal();
    assert!(server.vector(1023).unwrap().wait(LONG).unwrap());
    // One that was slow gets the rest.
    let (_, events, _) = introduced(&silent[4]);
    assert_eq!(events.len(), usize::from(MAX_VECTORS));
    // The talker was thrown out: an end, not a wait.
    talker.set_read_timeout(LONG).unwrap();
    while message(&talker).is_some() {}
    drop(server);
    assert!(message(&good).is_none());
}

#[test]
fn vectors_are_reserved_and_given_back() {
    let directory = Directory::new("ivshmem-c");
    let server = Server::serve(&directory.socket(), memory(), 2).unwrap();
    let (a, event) = server.take_vector().unwrap();
    let (b, _) = server.take_vector().unwrap();
    assert_ne!(a, b);
    let error = server.take_vector().unwrap_err();
    assert!(error.to_string().contains("all 2"), "{error}");
    event.signal();
    server.give_vector(a);
    server.give_vector(a);
    server.give_vector(77);
    assert_eq!(event.drain(), 0);
    assert_eq!(server.take_vector().unwrap().0, a);
    assert!(server.vector(2).is_none());
}

#[test]
fn the_socket_file_comes_and_goes() {
    let directory = Directory::new("ivshmem-d");
    let server = Server::serve(&directory.socket(), memory(), 1).unwrap();
    let taken = Server::serve(&directory.socket(), memory(), 1).unwrap_err();
    assert!(taken.to_string().contains("exists"), "{taken}");
    server.close();
    server.close();
    assert!(!directory.socket().exists());
    assert!(UnixStream::connect(directory.socket()).is_err());
    drop(server);
    // What somebody else put there is left alone.
    let server = Server::serve(&directory.socket(), memory(), 1).unwrap();
    std::fs::remove_file(directory.socket()).unwrap();
    std::fs::write(directory.socket(), "").unwrap();
    drop(server);
    assert!(directory.socket().exists());
    for vectors in [0, MAX_VECTORS + 1] {
        let result = Server::serve(&directory.0.join("x"), memory(), vectors);
        assert!(matches!(result, Err(Error::Invalid(_))));
    }
    let long = directory.0.join("x".repeat(120));
    assert!(matches!(Server::serve(&long, memory(), 1), Err(Error::Invalid(_))));
}
