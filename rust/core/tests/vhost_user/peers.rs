//! Scripted peers of a vhost-user connection, and a directory for their sockets.

use rustix::fs::fstat;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use virtnic::notify::EventFd;
use virtnic::vhost_user::{Backend, Interposer, Retry, Terms};

pub const LONG: Duration = Duration::from_secs(10);
pub const FEATURES: u64 = 1 << 30 | 1 << 34;

/// Serialises the tests, because they count this process's descriptors.
static TURN: Mutex<()> = Mutex::new(());

/// A temporary directory. When dropped, checks that no descriptor was leaked.
pub struct Room {
    path: PathBuf,
    open: usize,
    _turn: MutexGuard<'static, ()>,
}

impl Room {
    pub fn new(name: &str) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let path = std::env::temp_dir().join(format!("virtnic-vu-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self { path, open: open_descriptors(), _turn: turn }
    }
    pub fn front(&self) -> PathBuf {
        self.path.join("front")
    }
    pub fn back(&self) -> PathBuf {
        self.path.join("back")
    }
    pub fn files(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(&self.path)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
        if !std::thread::panicking() {
            assert_eq!(open_descriptors(), self.open, "descriptors were left open");
        }
    }
}

pub fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Processor time of the interposer's thread.
pub fn busy() -> Duration {
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
        if stat.contains("(virtnic-vhost)") {
            let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
            let ticks: u64 =
                fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
            return Duration::from_millis(ticks * 10);
        }
    }
    panic!("the interposer has no thread");
}

pub fn until(what: &str, mut check: impl FnMut() -> bool) {
    let started = Instant::now();
    while !check() {
        assert!(started.elapsed() < LONG, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[derive(Debug)]
pub struct Message {
    pub request: u32,
    pub flags: u32,
    pub payload: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

impl Message {
    pub fn number(&self) -> u64 {
        u64::from_ne_bytes(self.payload.as_slice().try_into().unwrap())
    }
    /// The inode of each descriptor. All eventfds share one inode, see [`same_eventfd`].
    pub fn inodes(&self) -> Vec<u64> {
        self.fds.iter().map(inode).collect()
    }
}

pub fn inode(fd: impl AsFd) -> u64 {
    fstat(fd).unwrap().st_ino
}

/// Whether a signal on one is received on the other. Drains both.
pub fn same_eventfd(one: BorrowedFd<'_>, other: &EventFd) -> bool {
    other.drain();
    EventFd::from_fd(one.try_clone_to_owned().unwrap()).unwrap().signal();
    let same = other.drain() == 1;
    EventFd::from_fd(one.try_clone_to_owned().unwrap()).unwrap().drain();
    same
}

pub fn frame(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for field in [request, flags, payload.len() as u32] {
        bytes.extend_from_slice(&field.to_ne_bytes());
    }
    bytes.extend_from_slice(payload);
    bytes
}

/// One end of a connection.
#[derive(Debug)]
pub struct Peer(pub UnixStream);

impl Peer {
    pub fn connect(path: &Path) -> Self {
        let mut stream = None;
        until("the socket takes a connection", || {
            stream = UnixStream::connect(path).ok();
            stream.is_some()
        });
        Self::new(stream.unwrap())
    }

    pub fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.set_write_timeout(Some(LONG)).unwrap();
        Self(stream)
    }

    pub fn send(&self, request: u32, flags: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) {
        self.send_bytes(&frame(request, flags, payload), fds).unwrap();
    }

    pub fn send_number(&self, request: u32, number: u64, fds: &[BorrowedFd<'_>]) {
        self.send(request, 1, &number.to_ne_bytes(), fds);
    }

    /// Sends all bytes with one call, together with the descriptors.
    pub fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> std::io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(250))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
        }
        let sent = sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
        assert_eq!(sent, bytes.len());
        Ok(())
    }

    /// Receives a message as DPDK and QEMU do: descriptors come with the header only.
    pub fn receive(&self) -> Option<Message> {
        let mut header = [0; 12];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = recvmsg(
            &self.0,
            &mut [IoSliceMut::new(&mut header)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        );
        let got = match got {
            Err(rustix::io::Errno::CONNRESET) => return None,
            other => other.expect("a message within ten seconds").bytes,
        };
        let fds = control
            .drain()
            .flat_map(|m| match m {
                RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
                _ => Vec::new(),
            })
            .collect();
        if got == 0 {
            return None;
        }
        (&self.0).read_exact(&mut header[got..]).ok()?;
        let field = |i: usize| u32::from_ne_bytes(header[4 * i..4 * i + 4].try_into().unwrap());
        let mut payload = vec![0; field(2) as usize];
        (&self.0).read_exact(&mut payload).ok()?;
        Some(Message { request: field(0), flags: field(1), payload, fds })
    }

    pub fn next(&self) -> Message {
        self.receive().expect("a message, not the end")
    }

    /// Whether the other side has closed; discards what was received before.
    pub fn ended(&self) -> bool {
        while self.receive().is_some() {}
        true
    }

    /// Answers the interposer's first request.
    pub fn greet(self) -> Self {
        let asked = self.next();
        assert_eq!((asked.request, asked.flags, asked.payload.len()), (1, 1, 0));
        self.send(1, 5, &FEATURES.to_ne_bytes(), &[]);
        self
    }
}

/// A listening socket of a backend.
pub struct Host(pub UnixListener);

impl Host {
    pub fn new(path: &Path) -> Self {
        let _ = std::fs::remove_file(path);
        Self(UnixListener::bind(path).unwrap())
    }
    pub fn accept(&self) -> Peer {
        Peer::new(self.0.accept().unwrap().0)
    }
    /// Accepts connections until one requests the features, and answers it.
    pub fn greet(&self) -> Peer {
        self.accept().greet()
    }
}

/// An interposer with a fake QEMU and a fake backend.
pub struct Trio {
    pub host: Host,
    pub backend: Peer,
    pub qemu: Peer,
    pub interposer: Interposer,
}

impl Trio {
    pub fn new(room: &Room, calls: Vec<Option<Arc<EventFd>>>) -> Self {
        Self::with(room, calls, Retry::default())
    }

    pub fn with(room: &Room, calls: Vec<Option<Arc<EventFd>>>, retry: Retry) -> Self {
        let host = Host::new(&room.back());
        let (interposer, backend) = std::thread::scope(|scope| {
            let backend = scope.spawn(|| host.greet());
            let at = Backend::Connect(room.back());
            let terms = Terms { retry, ..Terms::default() };
            let started =
                Interposer::start_interruptible(&room.front(), at, LONG, calls, terms, None);
            (started.unwrap(), backend.join().unwrap())
        });
        let qemu = Peer::connect(&room.front());
        until("the two are joined", || interposer.connected());
        assert!(interposer.changed().drain() > 0);
        Self { host, backend, qemu, interposer }
    }

    /// Connects a new QEMU and a new backend after one of them has disconnected.
    pub fn again(&mut self, room: &Room) {
        self.backend = self.host.greet();
        self.qemu = Peer::connect(&room.front());
        until("the two are joined", || self.interposer.connected());
    }

    /// QEMU starts the rings of the first pair; after that, the backend counts as serving.
    pub fn serve(&self) {
        const SET_VRING_KICK: u32 = 12;
        for ring in 0..2 {
            let event = EventFd::new().unwrap();
            self.down(SET_VRING_KICK, ring, &[event.hold().unwrap().as_fd()]);
        }
        let asked = self.backend.next();
        assert_eq!((asked.request, asked.flags, asked.payload.len()), (1, 1, 0));
        assert!(!self.interposer.serving());
        self.backend.send(1, 5, &FEATURES.to_ne_bytes(), &[]);
        until("it serves", || self.interposer.serving());
    }

    /// Sends a message from QEMU; returns it as the backend receives it.
    pub fn down(&self, request: u32, number: u64, fds: &[BorrowedFd<'_>]) -> Message {
        self.qemu.send_number(request, number, fds);
        let message = self.backend.next();
        assert_eq!(message.request, request);
        message
    }
}
