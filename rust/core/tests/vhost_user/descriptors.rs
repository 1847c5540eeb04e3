//! Descriptors of every kind, with every request, from both sides. They are forwarded unchanged;
//! the interposer does not keep, use, wait for or modify them.

use super::peers::{LONG, Peer, Room, Trio, frame, inode, open_descriptors, until};
use super::{SET_MEM_TABLE, SET_VRING_CALL, SET_VRING_KICK, UNKNOWN, event};
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create, open};
use rustix::io::write;
use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;
use virtnic::notify::EventFd;

/// Existing requests (1 to 44), and some that do not exist.
const REQUESTS: std::ops::Range<u32> = 0..48;

/// One descriptor of each kind, by name.
fn kinds() -> Vec<(&'static str, OwnedFd)> {
    let path = |name: &str, flags| open(name, flags | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let full = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    let reference = path(&format!("/proc/self/fd/{}", full.as_raw_fd()), OFlags::PATH);
    let (reader, writer) = std::io::pipe().unwrap();
    let (socket, _) = UnixStream::pair().unwrap();
    vec![
        ("a directory", path("/", OFlags::DIRECTORY)),
        ("a path", path("/proc/self/stat", OFlags::PATH)),
        ("a reference to an eventfd", reference),
        ("a device", path("/dev/null", OFlags::RDWR)),
        ("a file to be read only", path("/proc/self/maps", OFlags::RDONLY)),
        ("a file without a byte", memfd_create("short", MemfdFlags::CLOEXEC).unwrap()),
        ("a blocking eventfd that is full", full),
        ("a timer", timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC).unwrap()),
        ("an epoll set", epoll::create(epoll::CreateFlags::CLOEXEC).unwrap()),
        ("a pipe's reading end", reader.into()),
        ("a pipe's writing end", writer.into()),
        ("a socket that is broken", socket.into()),
    ]
}

/// Whether a descriptor is not forwarded: a kick that is not a descriptor of an eventfd itself.
fn lost(request: u32, name: &str) -> bool {
    request == SET_VRING_KICK && name == "a reference to an eventfd"
}

#[test]
fn descriptors_of_every_kind_are_forwarded_with_every_request() {
    let room = Room::new("kinds");
    let trio = Trio::new(&room, Vec::new());
    let kinds = kinds();
    let kick = trio.interposer.kick(0).unwrap();
    let before = open_descriptors();
    let learnt =
        |name: &str| ["a blocking eventfd that is full", "a timer", "an epoll set"].contains(&name);
    for request in REQUESTS {
        for (name, fd) in &kinds {
            for (from, to) in [(&trio.qemu, &trio.backend), (&trio.backend, &trio.qemu)] {
                for count in [1, 2, 32] {
                    let fds: Vec<BorrowedFd<'_>> = vec![fd.as_fd(); count];
                    // Byte 0 of the payload names queue 0.
                    from.send(request, 1, &[0; 8], &fds);
                    let came = to.next();
                    let expected = if lost(request, name) && count == 1 && to.is(&trio.backend) {
                        Vec::new()
                    } else {
                        vec![inode(fd); count]
                    };
                    assert_eq!(came.inodes(), expected, "{name}, request {request}");
                    assert_eq!(came.payload, [0; 8]);
                    if request == SET_VRING_KICK && to.is(&trio.backend) {
                        assert_eq!(kick.connected(), count == 1 && learnt(name), "{name}");
                        // Descriptors from one side never block the other.
                        let began = Instant::now();
                        (0..4).for_each(|_| kick.ring());
                        assert!(began.elapsed() < LONG / 10, "{name}");
                    }
                }
            }
        }
    }
    // No descriptor is kept.
    until("all are closed", || open_descriptors() == before);
    assert_eq!(trio.down(UNKNOWN, 7, &[]).number(), 7);
}

/// The backend checks QEMU's memory tables: regions without a descriptor, descriptors without a
/// region, a file that is shorter than its region.
#[test]
fn malformed_memory_tables_are_forwarded() {
    let room = Room::new("table");
    let trio = Trio::new(&room, Vec::new());
    let short = memfd_create("short", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&short, 4096).unwrap();
    let before = open_descriptors();
    let table = |regions: u32, bytes: usize| {
        let mut payload = vec![0xff; bytes];
        let named = bytes.min(4);
        payload[..named].copy_from_slice(&regions.to_ne_bytes()[..named]);
        payload
    };
    for regions in [0, 1, 8, 9, 33, u32::MAX] {
        for bytes in [0, 3, 4, 8, 39, 40, 41, 8 + 8 * 32, 65_536] {
            for count in [0, 1, 8, 9, 32] {
                let fds = vec![short.as_fd(); count];
                let payload = table(regions, bytes);
                std::thread::scope(|scope| {
                    scope.spawn(|| trio.qemu.send(SET_MEM_TABLE, 9, &payload, &fds));
                    let came = trio.backend.next();
                    assert!(came.payload == payload, "{regions} regions in {bytes} bytes");
                    assert_eq!(came.inodes(), vec![inode(&short); count]);
                });
            }
        }
    }
    until("all are closed", || open_descriptors() == before);
}

/// Disconnects in the middle of every request, with every kind of descriptor in transit.
#[test]
fn disconnecting_within_a_message_leaks_no_descriptor() {
    let room = Room::new("middle");
    let mut trio = Trio::new(&room, vec![Some(event())]);
    let kinds = kinds();
    let before = open_descriptors();
    let requests = [SET_MEM_TABLE, SET_VRING_KICK, SET_VRING_CALL, 1, 21, UNKNOWN];
    for (number, (name, fd)) in kinds.iter().enumerate() {
        let request = requests[number % requests.len()];
        for by_qemu in [true, false] {
            let fds = vec![fd.as_fd(); 1 + number];
            let bytes = frame(request, 1, &[0; 8]);
            let (liar, victim) = match by_qemu {
                true => (&trio.qemu, &trio.backend),
                false => (&trio.backend, &trio.qemu),
            };
            liar.send_bytes(&bytes[..12 + number % 8], &fds).unwrap();
            liar.0.shutdown(std::net::Shutdown::Write).unwrap();
            assert!(victim.receive().is_none(), "{name} was passed on");
            assert!(liar.ended());
            trio.again(&room);
            until(name, || open_descriptors() == before);
        }
    }
}

/// A call descriptor that QEMU withdraws, or sends as another kind, is replaced by ours.
#[test]
fn calls_of_every_kind_are_replaced() {
    let room = Room::new("calls");
    let ours = event();
    let trio = Trio::new(&room, vec![Some(ours.clone())]);
    for (name, fd) in &kinds() {
        for count in [1, 2, 32] {
            let came = trio.down(SET_VRING_CALL, 0, &vec![fd.as_fd(); count]);
            assert_eq!(came.fds.len(), 1, "{name}");
            let theirs = came.fds.into_iter().next().unwrap();
            EventFd::from_fd(theirs).unwrap().signal();
            assert_eq!(ours.drain(), 1, "{name}");
        }
    }
}

impl Peer {
    fn is(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}
