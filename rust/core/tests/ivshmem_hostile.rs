//! Hostile clients of the ivshmem server, which attack it or the memory that it shares.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{
    FallocateFlags, Mode, OFlags, SealFlags, fallocate, fcntl_add_seals, fcntl_get_seals,
    ftruncate, open as open_file,
};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use virtnic::ivshmem::Server;
use virtnic::memory::{PageRequest, PageSize, Placement, Region, RegionOptions};

const LONG: Duration = Duration::from_secs(10);
const VECTORS: u16 = 4;
/// Messages that a new client gets: version, peer number, each vector, memory.
const MESSAGES: usize = 3 + VECTORS as usize;

/// Serialises the tests, because they count this process's descriptors.
static TURN: Mutex<()> = Mutex::new(());

struct Room {
    path: PathBuf,
    server: Server,
    region: Arc<Region>,
    open: usize,
    _turn: MutexGuard<'static, ()>,
}

fn open() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

impl Room {
    fn new(name: &str, pages: PageRequest) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let region = Region::new(&RegionOptions {
            size: 4 << 20,
            pages,
            placement: Placement::Virtual,
            node: None,
            directory: None,
            buffer_size: 2048,
            jumbo_buffers: None,
            jumbo_size: None,
        });
        let region = region.unwrap();
        let path = std::env::temp_dir().join(format!("virtnic-ih-{name}-{}", std::process::id()));
        let server = Server::new(&path, region.clone());
        server.listen().unwrap();
        for _ in 0..VECTORS {
            server.take_vector().unwrap();
        }
        let open = open();
        Self { path, server, region, open, _turn: turn }
    }

    fn connect(&self) -> UnixStream {
        let socket = UnixStream::connect(&self.path).unwrap();
        socket.set_read_timeout(Some(LONG)).unwrap();
        socket
    }

    /// Checks that a well-behaved client gets everything.
    fn introduce(&self) -> OwnedFd {
        let socket = self.connect();
        let mut memory = None;
        for _ in 0..MESSAGES {
            memory = message(&socket).expect("a message, not the end").1;
        }
        memory.expect("the memory comes last")
    }

    /// Checks that no descriptor of a disconnected client is left.
    fn settle(&self) {
        let began = Instant::now();
        while open() > self.open {
            assert!(began.elapsed() < LONG, "{} descriptors, {} before", open(), self.open);
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn message(socket: &UnixStream) -> Option<(i64, Option<OwnedFd>)> {
    let mut bytes = [0; 8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let into = &mut [IoSliceMut::new(&mut bytes)];
    let got = recvmsg(socket, into, &mut control, RecvFlags::CMSG_CLOEXEC).ok()?;
    let fd = control.drain().find_map(|part| match part {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    (got.bytes == 8).then(|| (i64::from_le_bytes(bytes), fd))
}

#[test]
fn a_client_that_disconnects_after_any_message() {
    let room = Room::new("goes", PageRequest::Exactly(PageSize::Base));
    for how in [None, Some(Shutdown::Write), Some(Shutdown::Read), Some(Shutdown::Both)] {
        for after in 0..=MESSAGES {
            let socket = room.connect();
            for _ in 0..after {
                assert!(message(&socket).is_some());
            }
            if let Some(how) = how {
                socket.shutdown(how).unwrap();
                drop(room.introduce());
            }
        }
    }
    drop(room.introduce());
    room.settle();
}

#[test]
fn a_client_that_sends_is_disconnected_and_its_descriptors_are_closed() {
    let room = Room::new("talks", PageRequest::Exactly(PageSize::Base));
    let (pipe, _writer) = std::io::pipe().unwrap();
    for count in [0, 1, 7, 8, 9, 100_000] {
        for fds in [0, 1, 253] {
            let socket = room.connect();
            let mine = vec![pipe.as_fd(); fds];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if fds > 0 {
                assert!(control.push(SendAncillaryMessage::ScmRights(&mine)));
            }
            let bytes = vec![0xff; count];
            // Descriptors need a message of at least one byte.
            let flags = SendFlags::NOSIGNAL;
            let _ = sendmsg(&socket, &[IoSlice::new(&bytes)], &mut control, flags);
            if count > 0 {
                // The initial messages, or a part of them, then the end.
                let came = std::iter::from_fn(|| message(&socket)).count();
                assert!(came <= MESSAGES);
            }
        }
    }
    drop(room.introduce());
    drop((pipe, _writer));
    room.settle();
}

/// Descriptors that a client sends during the initial messages are closed and not used.
#[test]
fn descriptors_of_every_kind_at_every_message_are_closed() {
    let room = Room::new("kinds", PageRequest::Exactly(PageSize::Base));
    let memory = room.introduce();
    let path = |name: &str, flags| open_file(name, flags | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let (pipe, _) = std::io::pipe().unwrap();
    let (socket, _) = UnixStream::pair().unwrap();
    let kinds: Vec<OwnedFd> = vec![
        path("/", OFlags::DIRECTORY),
        path("/proc/self/stat", OFlags::PATH),
        path("/dev/null", OFlags::RDWR),
        eventfd(0, EventfdFlags::CLOEXEC).unwrap(),
        pipe.into(),
        socket.into(),
        memory,
    ];
    for fd in &kinds {
        for after in 0..=MESSAGES {
            for count in [1, 16, 253] {
                let client = room.connect();
                for _ in 0..after {
                    assert!(message(&client).is_some());
                }
                let mine = vec![fd.as_fd(); count];
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                assert!(control.push(SendAncillaryMessage::ScmRights(&mine)));
                let bytes = (after as i64 - 1).to_le_bytes();
                let _ =
                    sendmsg(&client, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL);
                let rest = std::iter::from_fn(|| message(&client)).count();
                assert!(after + rest <= MESSAGES, "{after} and {rest}");
            }
        }
    }
    // A socket sent through itself is only freed when both ends are closed.
    {
        let client = room.connect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let mine = [client.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&mine)));
        let _ = sendmsg(&client, &[IoSlice::new(&[0; 8])], &mut control, SendFlags::NOSIGNAL);
    }
    drop(kinds);
    drop(room.introduce());
    room.settle();
}

#[test]
fn clients_that_never_read_cost_a_bounded_number_of_descriptors() {
    let room = Room::new("crowd", PageRequest::Exactly(PageSize::Base));
    let crowd: Vec<_> = (0..300).map(|_| room.connect()).collect();
    // 256 clients are accepted; the others are disconnected without a message.
    let refused = crowd.iter().skip(256).filter(|socket| message(socket).is_none()).count();
    assert_eq!(refused, 44);
    assert!(open() <= room.open + 300 + 256, "{}", open());
    drop(crowd);
    room.settle();
    drop(room.introduce());
    assert_eq!(room.server.vectors(), usize::from(VECTORS));
}

/// A client with the descriptor can write to the memory, but not shrink it.
fn cannot_be_shrunk(pages: PageRequest, name: &str) {
    let room = Room::new(name, pages);
    let memory = room.introduce();
    room.region.write(0, b"here").unwrap();
    let size = room.region.size() as u64;
    for length in [0, 4096, size - (2 << 20), size + (2 << 20), u64::MAX >> 1] {
        let refused = ftruncate(&memory, length);
        assert!(matches!(refused, Err(Errno::PERM | Errno::INVAL | Errno::FBIG)), "{refused:?}");
    }
    // It cannot be grown by writing after its end, sealed against us, or unsealed.
    assert!(fallocate(&memory, FallocateFlags::empty(), size, 2 << 20).is_err());
    for seals in [SealFlags::WRITE, SealFlags::FUTURE_WRITE, SealFlags::empty()] {
        assert_eq!(fcntl_add_seals(&memory, seals), Err(Errno::PERM));
    }
    let seals = fcntl_get_seals(&memory).unwrap();
    assert!(seals.contains(SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL));
    for mode in [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE] {
        assert!(fallocate(&memory, mode, 0, 2 << 20).is_err());
    }
    let mut bytes = [0; 4];
    room.region.read(0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"here");
    // A hole can be punched, but reads as zeros and causes no SIGBUS, because pages are free.
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&memory, hole, 0, size).unwrap();
    room.region.read(0, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 4]);
    room.region.write(0, b"back").unwrap();
    for offset in (0..size as usize).step_by(4096) {
        room.region.read(offset, &mut bytes).unwrap();
    }
}

#[test]
fn the_memory_cannot_be_shrunk() {
    cannot_be_shrunk(PageRequest::Exactly(PageSize::Base), "base");
}

#[test]
fn hugepages_cannot_be_shrunk() {
    let free = virtnic::memory::hugepages(None).unwrap_or_default();
    if free.iter().any(|count| count.size == PageSize::Huge2M && count.free >= 8) {
        cannot_be_shrunk(PageRequest::Exactly(PageSize::Huge2M), "huge");
    } else {
        eprintln!("skipped: fewer than 8 free hugepages of 2 MiB");
    }
}
