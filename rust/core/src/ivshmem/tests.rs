//! The server against clients that behave, and clients that do not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::memory::{PageRequest, PageSize, Placement, RegionOptions};
use rustix::fs::fstat;
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

fn region() -> Arc<Region> {
    Region::new(&RegionOptions {
        size: 1 << 20,
        pages: PageRequest::Exactly(PageSize::Base),
        placement: Placement::Virtual,
        node: None,
        directory: None,
        buffer_size: 2048,
        jumbo_buffers: None,
        jumbo_size: None,
    })
    .unwrap()
}

/// One that listens, with so many vectors in use.
fn serve(path: &Path, vectors: u16) -> Server {
    let server = Server::new(path, region());
    server.listen().unwrap();
    for _ in 0..vectors {
        server.take_vector().unwrap();
    }
    server
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

/// Reads an introduction: the eventfds of our vectors, the memory.
fn introduced(socket: &UnixStream) -> (Vec<EventFd>, OwnedFd) {
    assert!(matches!(message(socket), Some((0, None))));
    assert!(matches!(message(socket), Some((0, None))), "the client's number is nobody's");
    let mut events = Vec::new();
    loop {
        match message(socket) {
            Some((-1, Some(memory))) => return (events, memory),
            Some((number, Some(event))) => {
                events.push(EventFd::from_fd(event).unwrap());
                assert_eq!(number, events.len() as i64);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_client_gets_the_memory_and_our_eventfds() {
    let directory = Directory::new("ivshmem-a");
    let server = serve(&directory.socket(), 3);
    let inode = fstat(server.memory.file().unwrap()).unwrap().st_ino;
    let mode = std::fs::metadata(directory.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let first = UnixStream::connect(directory.socket()).unwrap();
    let second = UnixStream::connect(directory.socket()).unwrap();
    let (events, memory) = introduced(&first);
    let (others, _) = introduced(&second);
    assert_eq!(fstat(&memory).unwrap().st_ino, inode);
    assert_eq!((events.len(), others.len(), server.vectors()), (3, 3, 3));
    events[2].signal();
    others[0].signal();
    assert!(server.vector(2).unwrap().wait(LONG).unwrap());
    assert_eq!(server.vector(0).unwrap().drain(), 1);
    assert_eq!(server.vector(1).unwrap().drain(), 0);
    assert_eq!(Server::doorbell_value(2), 3 << 16);
    // A server serves any number of clients in its life.
    drop((first, second));
    for _ in 0..300 {
        let again = UnixStream::connect(directory.socket()).unwrap();
        assert_eq!(introduced(&again).0.len(), 3);
    }
}

/// More than an introduction can hold: the last one that a socket's buffer takes is not the last.
const MANY: u16 = 700;

#[test]
fn bad_clients_disturb_nobody() {
    let directory = Directory::new("ivshmem-b");
    let server = serve(&directory.socket(), MANY);
    let silent: Vec<_> = (0..5).map(|_| UnixStream::connect(directory.socket()).unwrap()).collect();
    let mut talker = UnixStream::connect(directory.socket()).unwrap();
    talker.write_all(&[7; 1000]).unwrap();
    drop(UnixStream::connect(directory.socket()).unwrap());
    let half = UnixStream::connect(directory.socket()).unwrap();
    assert!(message(&half).is_some());
    half.shutdown(std::net::Shutdown::Write).unwrap();
    let good = UnixStream::connect(directory.socket()).unwrap();
    good.set_read_timeout(LONG).unwrap();
    let (events, _) = introduced(&good);
    assert_eq!(events.len(), usize::from(MANY));
    events[usize::from(MANY) - 1].signal();
    assert!(server.vector(MANY - 1).unwrap().wait(LONG).unwrap());
    drop(events);
    // One that was slow gets the rest.
    let (events, _) = introduced(&silent[4]);
    assert_eq!(events.len(), usize::from(MANY));
    // The talker was thrown out: an end, not a wait.
    talker.set_read_timeout(LONG).unwrap();
    while message(&talker).is_some() {}
    drop(server);
    assert!(message(&good).is_none());
}

#[test]
fn a_client_hears_of_every_vector_that_comes_later() {
    let directory = Directory::new("ivshmem-e");
    let server = serve(&directory.socket(), 1);
    let client = UnixStream::connect(directory.socket()).unwrap();
    client.set_read_timeout(LONG).unwrap();
    assert_eq!(introduced(&client).0.len(), 1);
    // While it listens, and when it does not.
    for round in 0..2 {
        let (vector, ours) = server.take_vector().unwrap();
        let Some((number, Some(event))) = message(&client) else { panic!("no eventfd") };
        assert_eq!((vector, number), (1 + round, 2 + i64::from(round)));
        EventFd::from_fd(event).unwrap().signal();
        assert_eq!(ours.drain(), 1);
        server.stop_listening();
        assert!(!directory.socket().exists());
    }
    // Given back, and lost.
    server.give_vector(1);
    server.lose_vector(2);
    assert_eq!(server.take_vector().unwrap().0, 1);
    assert_eq!(server.take_vector().unwrap().0, 3);
    assert!(matches!(message(&client), Some((4, Some(_)))));
    // One that does not read is waited for by nobody, and gets the rest.
    for _ in 0..MANY {
        server.take_vector().unwrap();
    }
    for number in 0..i64::from(MANY) {
        server.tell();
        assert!(matches!(message(&client), Some((n, Some(_))) if n == 5 + number));
    }
    // Another QEMU: what is in use, no gap in the numbers.
    server.give_vector(MANY + 3);
    server.listen().unwrap();
    assert!(message(&client).is_none());
    let next = UnixStream::connect(directory.socket()).unwrap();
    assert_eq!(introduced(&next).0.len(), usize::from(MANY) + 3);
    assert_eq!(server.take_vector().unwrap().0, 2);
    // Without a connection there are those that were given back, and no more.
    server.stop_listening();
    server.hang_up();
    server.give_vector(0);
    assert_eq!(server.left(), Some(1));
    assert_eq!(server.take_vector().unwrap().0, 0);
    let error = server.take_vector().unwrap_err();
    assert!(error.to_string().contains("virtnic.Qemu"), "{error}");
    // At the end all are closed, those in use when they are given back.
    let (first, second) = (server.vector(0).unwrap(), server.vector(1).unwrap());
    server.give_vector(1);
    server.close();
    assert_eq!((first.number().is_some(), second.number()), (true, None));
    server.give_vector(0);
    assert_eq!((first.number(), server.left()), (None, Some(0)));
}

#[test]
fn vectors_are_reserved_and_given_back() {
    let directory = Directory::new("ivshmem-c");
    let server = serve(&directory.socket(), 0);
    let (a, event) = server.take_vector().unwrap();
    let (b, _) = server.take_vector().unwrap();
    assert_ne!(a, b);
    event.signal();
    server.give_vector(a);
    server.give_vector(a);
    server.give_vector(77);
    assert_eq!(event.drain(), 0);
    assert_eq!(server.take_vector().unwrap().0, a);
    assert!(server.vector(2).is_none());
    assert_eq!(server.left(), None);
}

#[test]
fn the_socket_file_comes_and_goes() {
    let directory = Directory::new("ivshmem-d");
    let server = serve(&directory.socket(), 1);
    let taken = Server::new(&directory.socket(), region()).listen().unwrap_err();
    assert!(taken.to_string().contains("exists"), "{taken}");
    server.close();
    server.close();
    assert!(!directory.socket().exists());
    assert!(UnixStream::connect(directory.socket()).is_err());
    drop(server);
    // What somebody else put there is left alone.
    let server = serve(&directory.socket(), 1);
    std::fs::remove_file(directory.socket()).unwrap();
    std::fs::write(directory.socket(), "").unwrap();
    drop(server);
    assert!(directory.socket().exists());
    let long = directory.0.join("x".repeat(120));
    assert!(matches!(Server::new(&long, region()).listen(), Err(Error::Invalid(_))));
    // A memory whose file was closed cannot be given to anybody.
    let server = Server::new(&directory.0.join("y"), region());
    server.memory.forget_file();
    let error = server.listen().unwrap_err();
    assert!(error.to_string().contains("memory=virtnic.Memory()"), "{error}");
}
