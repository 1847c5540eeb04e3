//! The vhost-user interposer between scripted peers, both correct and hostile.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "vhost_user/descriptors.rs"]
mod descriptors;
#[path = "vhost_user/peers.rs"]
mod peers;
#[path = "vhost_user/retry.rs"]
mod retry;
#[path = "vhost_user/start.rs"]
mod start;

use peers::{
    FEATURES, Host, LONG, Peer, Room, Trio, busy, frame, inode, open_descriptors, same_eventfd,
    until,
};
use rustix::fs::{MemfdFlags, memfd_create};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use virtnic::Error;
use virtnic::notify::{Doorbell, EventFd};
use virtnic::vhost_user::Driver;

const SET_MEM_TABLE: u32 = 5;
const RESET_OWNER: u32 = 4;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_BACKEND_REQ_FD: u32 = 21;
const UNKNOWN: u32 = 0xfeed;
const NO_FD: u64 = 1 << 8;

fn event() -> Arc<EventFd> {
    Arc::new(EventFd::new().unwrap())
}

fn files(count: usize) -> Vec<OwnedFd> {
    (0..count).map(|_| memfd_create("test", MemfdFlags::CLOEXEC).unwrap()).collect()
}

#[test]
fn messages_and_descriptors_pass_both_ways_as_they_are() {
    let room = Room::new("pass");
    let trio = Trio::new(&room, vec![Some(event())]);
    let files = files(32);
    let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    let inodes: Vec<_> = files.iter().map(inode).collect();
    let payload: Vec<u8> = (0..65536).map(|i| (i % 251) as u8).collect();
    for (from, to) in [(&trio.qemu, &trio.backend), (&trio.backend, &trio.qemu)] {
        for (request, flags, size, count) in
            [(UNKNOWN, 1, 0, 0), (SET_MEM_TABLE, 9, 296, 8), (u32::MAX, u32::MAX, 65536, 32)]
        {
            std::thread::scope(|scope| {
                let sending = scope.spawn(|| {
                    from.send(request, flags, &payload[..size], &fds[..count]);
                });
                let message = to.next();
                assert_eq!((message.request, message.flags), (request, flags));
                assert!(message.payload == payload[..size]);
                assert_eq!(message.inodes(), inodes[..count]);
                sending.join().unwrap();
            });
        }
    }
    // A message is delivered slightly before it is counted.
    let counted = || {
        let stats = trio.interposer.stats();
        (stats.messages_to_backend, stats.messages_to_qemu, stats.links)
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while counted() != (3, 3, 1) && std::time::Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert_eq!(counted(), (3, 3, 1));
    assert_eq!(trio.interposer.features(), FEATURES);
}

#[test]
fn descriptors_may_arrive_with_any_byte_and_are_sent_with_the_first() {
    let room = Room::new("bytes");
    let trio = Trio::new(&room, Vec::new());
    let files = files(2);
    let message = frame(SET_MEM_TABLE, 1, &[3; 8]);
    for at in 0..message.len() {
        for (i, byte) in message.iter().enumerate() {
            let fds: Vec<_> = files.iter().filter(|_| i == at).map(AsFd::as_fd).collect();
            trio.qemu.send_bytes(&[*byte], &fds).unwrap();
        }
        let passed = trio.backend.next();
        assert_eq!(passed.payload, [3; 8]);
        assert_eq!(passed.fds.len(), 2, "sent with byte {at}");
    }
    // Two messages in one write stay separate, with the descriptors at the right one.
    let mut two = frame(UNKNOWN, 1, &[]);
    two.extend_from_slice(&message);
    trio.qemu.send_bytes(&frame(UNKNOWN, 1, &[1]), &[]).unwrap();
    trio.qemu.send_bytes(&two, &[]).unwrap();
    trio.qemu.send_bytes(&message, &[files[0].as_fd()]).unwrap();
    let counts: Vec<_> = (0..4).map(|_| trio.backend.next()).map(|m| m.fds.len()).collect();
    assert_eq!(counts, [0, 0, 0, 1]);
}

#[test]
fn a_back_channel_works() {
    let room = Room::new("back");
    let trio = Trio::new(&room, Vec::new());
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    trio.qemu.send(SET_BACKEND_REQ_FD, 9, &[], &[theirs.as_fd()]);
    drop(theirs);
    let message = trio.backend.next();
    let channel = Peer::new(message.fds.into_iter().next().unwrap().into());
    let file = files(1);
    channel.send(3, 1, &[9; 32], &[file[0].as_fd()]);
    let slave = Peer::new(ours);
    let request = slave.next();
    assert_eq!((request.request, request.inodes()), (3, vec![inode(&file[0])]));
    drop(channel);
    assert!(slave.ended());
}

#[test]
fn a_kick_is_one_write_to_the_eventfd_of_qemu() {
    let room = Room::new("kick");
    let trio = Trio::new(&room, Vec::new());
    let kick = trio.interposer.kick(1).unwrap();
    let doorbell = Doorbell::Kick(Arc::clone(&kick), Box::new(Doorbell::Silent));
    doorbell.ring(1, 0);
    assert_eq!((kick.connected(), kick.lost()), (false, 1));

    let qemus = EventFd::new().unwrap();
    let qemus_fd = qemus.hold().unwrap();
    let passed = trio.down(SET_VRING_KICK, 1, &[qemus_fd.as_fd()]);
    assert_eq!((passed.number(), passed.fds.len()), (1, 1));
    assert_eq!(qemus.drain(), 1, "what was published before is to be noticed");
    let backends = EventFd::from_fd(passed.fds.into_iter().next().unwrap()).unwrap();
    doorbell.ring(1, 0);
    doorbell.ring(1, 0);
    assert_eq!(backends.drain(), 2);
    assert!(!trio.interposer.kick(0).unwrap().connected());

    // Stop another queue, then this one.
    trio.qemu.send(GET_VRING_BASE, 1, &[0; 8], &[]);
    trio.backend.next();
    assert!(kick.connected());
    trio.qemu.send(GET_VRING_BASE, 1, &[1, 0, 0, 0, 0, 0, 0, 0], &[]);
    trio.backend.next();
    doorbell.ring(1, 0);
    assert_eq!((backends.drain(), kick.connected(), kick.lost()), (0, false, 2));

    // A new eventfd replaces the old one; withdrawing it leaves none.
    let newer = EventFd::new().unwrap();
    let newer_fd = newer.hold().unwrap();
    trio.down(SET_VRING_KICK, 1, &[qemus_fd.as_fd()]);
    trio.down(SET_VRING_KICK, 1, &[newer_fd.as_fd()]);
    qemus.drain();
    newer.drain();
    doorbell.ring(1, 0);
    assert_eq!((qemus.drain(), newer.drain()), (0, 1));
    let passed = trio.down(SET_VRING_KICK, 1 | NO_FD, &[]);
    assert_eq!((passed.number(), passed.fds.len(), kick.connected()), (1 | NO_FD, 0, false));

    trio.down(SET_VRING_KICK, 255, &[newer_fd.as_fd()]);
    assert!(trio.interposer.kick(255).unwrap().connected());
    trio.qemu.send(RESET_OWNER, 1, &[], &[]);
    trio.backend.next();
    assert!(!trio.interposer.kick(255).unwrap().connected());
    assert!(matches!(trio.interposer.kick(256), Err(Error::Invalid(_))));
    let stats = trio.interposer.stats();
    assert_eq!((stats.kicks_learnt, stats.kicks_lost), (4, 2));
}

#[test]
fn the_backend_interrupts_us_and_not_qemu() {
    let room = Room::new("call");
    let ours = event();
    let trio = Trio::new(&room, vec![Some(Arc::clone(&ours)), None]);
    let qemus = EventFd::new().unwrap();
    let qemus_fd = qemus.hold().unwrap();
    // Also if QEMU withdraws its own eventfd, or sends two by mistake.
    for (number, fds) in [
        (0, vec![qemus_fd.as_fd()]),
        (NO_FD, vec![]),
        (0, vec![qemus_fd.as_fd(), qemus_fd.as_fd()]),
        (0, vec![]),
    ] {
        let passed = trio.down(SET_VRING_CALL, number, &fds);
        assert_eq!((passed.number(), passed.fds.len()), (0, 1));
        assert!(same_eventfd(passed.fds[0].as_fd(), &ours));
    }
    // For a queue without a replacement, QEMU's eventfd is forwarded.
    for queue in [1, 2, 255] {
        let passed = trio.down(SET_VRING_CALL, queue, &[qemus_fd.as_fd()]);
        assert_eq!(passed.number(), queue);
        assert!(same_eventfd(passed.fds[0].as_fd(), &qemus));
        let passed = trio.down(SET_VRING_CALL, queue | NO_FD, &[]);
        assert_eq!((passed.number(), passed.fds.len()), (queue | NO_FD, 0));
    }
    assert_eq!(trio.interposer.stats().calls_replaced, 4);
}

#[test]
fn the_driver_sets_where_a_new_backend_continues() {
    let room = Room::new("base");
    let trio = Trio::new(&room, Vec::new());
    let state = |index: u32, num: u32| u64::from(num) << 32 | u64::from(index);
    assert_eq!(trio.down(SET_VRING_BASE, state(1, 7), &[]).number(), state(1, 7));
    trio.interposer.follow(1, Some(Arc::new(|| Some(0x8005))));
    trio.interposer.follow(2, Some(Arc::new(|| None)));
    assert_eq!(trio.down(SET_VRING_BASE, state(1, 7), &[]).number(), state(1, 0x8005_8005));
    for index in [0, 2, 0x1_0001, u32::MAX] {
        assert_eq!(trio.down(SET_VRING_BASE, state(index, 7), &[]).number(), state(index, 7));
    }
    trio.interposer.follow(1, None);
    assert_eq!(trio.down(SET_VRING_BASE, state(1, 7), &[]).number(), state(1, 7));
}

/// A driver that counts the calls of its functions.
#[derive(Default)]
struct Told {
    stopped: AtomicUsize,
    starting: AtomicUsize,
    packed: bool,
}

impl Driver for Told {
    fn stopped(&self) -> bool {
        self.stopped.fetch_add(1, Ordering::SeqCst);
        self.packed
    }
    fn starting(&self) -> Option<u16> {
        self.starting.fetch_add(1, Ordering::SeqCst);
        None
    }
}

#[test]
fn qemu_finds_no_buffers_in_a_stopped_packed_ring() {
    let room = Room::new("where");
    let trio = Trio::new(&room, Vec::new());
    trio.interposer.follow(1, Some(Arc::new(Told { packed: true, ..Told::default() })));
    trio.interposer.follow(2, Some(Arc::<Told>::default()));
    let state = |index: u64, num: u64| index | num << 32;
    for (answer, passed) in [
        (state(1, 0x8022), state(1, 0x0022)),
        (state(1, 0x8021_0022), state(1, 0x8021_8022)),
        (state(2, 0x8022), state(2, 0x8022)), // a split ring
        (state(3, 0x8022), state(3, 0x8022)), // a ring without a driver
    ] {
        trio.backend.send(GET_VRING_BASE, 1 | 4, &answer.to_ne_bytes(), &[]);
        assert_eq!(trio.qemu.next().number(), passed);
    }
    // A reply without a state.
    trio.backend.send(GET_VRING_BASE, 1 | 4, &1u32.to_ne_bytes(), &[]);
    assert_eq!(trio.qemu.next().payload, 1u32.to_ne_bytes());
}

#[test]
fn the_driver_is_notified_before_qemu_gets_the_ring() {
    let room = Room::new("told");
    let mut trio = Trio::new(&room, Vec::new());
    let drivers = [0; 2].map(|_| Arc::<Told>::default());
    for (queue, driver) in (0..).zip(&drivers) {
        trio.interposer.follow(queue, Some(driver.clone()));
    }
    let told = || drivers.each_ref().map(|driver| driver.stopped.load(Ordering::SeqCst));
    // A stopped ring: the driver is notified on the backend's reply, not on the request.
    trio.down(GET_VRING_BASE, 1, &[]);
    assert_eq!(told(), [0, 0]);
    trio.backend.send(GET_VRING_BASE, 1 | 4, &1u64.to_ne_bytes(), &[]);
    trio.qemu.next();
    assert_eq!(told(), [0, 1]);
    // Rings without a driver, and a reply to another request.
    for (request, ring) in [(GET_VRING_BASE, 2u64), (GET_VRING_BASE, u64::MAX), (UNKNOWN, 0)] {
        trio.backend.send(request, 1 | 4, &ring.to_ne_bytes(), &[]);
        trio.qemu.next();
    }
    assert_eq!(told(), [0, 1]);
    // A lost backend: all drivers are notified before QEMU is disconnected.
    trio.backend = Peer::new(pair());
    assert!(trio.qemu.ended());
    assert_eq!(told(), [1, 2]);
    trio.again(&room);
    trio.down(SET_VRING_BASE, 0, &[]);
    assert_eq!(drivers.each_ref().map(|d| d.starting.load(Ordering::SeqCst)), [1, 0]);
    // A disconnected QEMU has no rings, so no driver is notified.
    trio.qemu = Peer::new(pair());
    assert!(trio.backend.ended());
    assert_eq!(told(), [1, 2]);
}

#[test]
fn in_band_notifications_are_not_offered() {
    let room = Room::new("inband");
    let trio = Trio::new(&room, Vec::new());
    trio.qemu.send(GET_PROTOCOL_FEATURES, 1, &[], &[]);
    assert!(trio.backend.next().payload.is_empty());
    trio.backend.send(GET_PROTOCOL_FEATURES, 5, &0xffff_ffffu64.to_ne_bytes(), &[]);
    assert_eq!(trio.qemu.next().number(), 0xffff_bfff);
    assert_eq!(trio.down(SET_PROTOCOL_FEATURES, 0x4001, &[]).number(), 1);
    // Bit 14 of other values is not changed.
    assert_eq!(trio.down(UNKNOWN, 0x4001, &[]).number(), 0x4001);
}

#[test]
fn qemu_is_disconnected_with_the_backend_and_reconnects_after_it() {
    let room = Room::new("loss");
    let ours = event();
    let mut trio = Trio::new(&room, vec![Some(Arc::clone(&ours))]);
    let qemus = EventFd::new().unwrap();
    let qemus_fd = qemus.hold().unwrap();
    trio.down(SET_VRING_KICK, 0, &[qemus_fd.as_fd()]);
    let kick = trio.interposer.kick(0).unwrap();
    assert!(kick.connected());

    // The backend ends: first its listening socket, then its connection.
    let Trio { host, backend, qemu, interposer } = trio;
    drop(host);
    drop(backend);
    assert!(qemu.ended());
    until("the loss is told", || !interposer.connected() && !kick.connected());
    assert!(interposer.changed().wait(Some(LONG)).unwrap());
    assert!(interposer.changed().drain() > 0);
    // QEMU is not accepted yet, because it would hang without a backend.
    std::thread::sleep(Duration::from_millis(250));
    assert!(std::os::unix::net::UnixStream::connect(room.front()).is_err());

    trio =
        Trio { host: Host::new(&room.back()), backend: qemu, qemu: Peer::new(pair()), interposer };
    trio.again(&room);
    assert!(trio.interposer.changed().drain() > 0);
    qemus.drain();
    trio.down(SET_VRING_KICK, 0, &[qemus_fd.as_fd()]);
    assert_eq!(qemus.drain(), 1, "buffers published meanwhile are noticed");
    let passed = trio.down(SET_VRING_CALL, 0, &[]);
    assert!(same_eventfd(passed.fds[0].as_fd(), &ours));
    let stats = trio.interposer.stats();
    assert_eq!((stats.links, stats.backend_losses, stats.qemu_losses), (2, 1, 0));
}

fn pair() -> std::os::unix::net::UnixStream {
    std::os::unix::net::UnixStream::pair().unwrap().0
}

#[test]
fn the_backend_is_disconnected_with_qemu() {
    let room = Room::new("qemu");
    let mut trio = Trio::new(&room, Vec::new());
    // One QEMU at a time: the socket is removed, because a second QEMU would hang.
    assert!(room.files() == ["back"]);
    for round in 1..=3 {
        trio.qemu = Peer::new(pair());
        assert!(trio.backend.ended());
        trio.again(&room);
        assert_eq!(trio.down(UNKNOWN, round, &[]).number(), round);
    }
    assert_eq!(trio.interposer.stats().qemu_losses, 3);
    trio.interposer.close();
    trio.interposer.close();
    assert!(trio.backend.ended() && trio.qemu.ended());
    assert!(room.files() == ["back"] && !trio.interposer.connected());
}

#[test]
fn a_reply_sent_before_the_backend_disconnected_is_delivered() {
    let room = Room::new("last");
    let trio = Trio::new(&room, Vec::new());
    trio.backend.send(UNKNOWN, 5, &[4; 40_000], &[]);
    trio.backend.send(UNKNOWN, 5, &[5; 40_000], &[]);
    drop(trio.backend);
    assert_eq!(trio.qemu.next().payload, [4; 40_000]);
    assert_eq!(trio.qemu.next().payload, [5; 40_000]);
    assert!(trio.qemu.ended());
}

#[test]
fn back_pressure_loses_nothing_and_costs_nothing() {
    let room = Room::new("pressure");
    let trio = Trio::new(&room, Vec::new());
    let file = files(1);
    std::thread::scope(|scope| {
        let qemu = &trio.qemu;
        let file = &file[0];
        let sender = scope.spawn(move || {
            for i in 0..200u64 {
                let mut payload = i.to_ne_bytes().to_vec();
                payload.resize(30_000, i as u8);
                qemu.send(UNKNOWN, 1, &payload, &[file.as_fd()]);
            }
        });
        // This is much more than the sockets hold, so the sender blocks and our thread sleeps.
        std::thread::sleep(Duration::from_millis(100));
        let before = busy();
        std::thread::sleep(Duration::from_millis(400));
        assert!(!sender.is_finished());
        assert!(busy() - before <= Duration::from_millis(20), "a busy loop");
        for i in 0..200u64 {
            let message = trio.backend.next();
            assert_eq!(message.payload[..8], i.to_ne_bytes());
            assert!(message.payload[8..].iter().all(|b| *b == i as u8));
            assert_eq!(message.inodes(), [inode(file)]);
        }
        sender.join().unwrap();
    });
}

#[test]
fn a_disconnected_qemu_causes_no_busy_loop_if_the_backend_does_not_read() {
    let room = Room::new("stuck");
    let trio = Trio::new(&room, Vec::new());
    trio.qemu.0.set_nonblocking(true).unwrap();
    let message = frame(UNKNOWN, 1, &[1; 60_000]);
    // Send until the backend's queue, our one message and QEMU's queue have been full for a while.
    let (mut full, mut sent) = (0, 0);
    while full < 20 {
        match (&trio.qemu.0).write(&message[sent % message.len()..]) {
            Ok(count) => (full, sent) = (0, sent + count),
            Err(_) => {
                full += 1;
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
    trio.qemu.0.shutdown(std::net::Shutdown::Both).unwrap();
    drop(trio.qemu);
    let before = busy();
    std::thread::sleep(Duration::from_millis(400));
    assert!(busy() - before <= Duration::from_millis(20), "a busy loop");
    // When it reads again, it gets what was sent, then the end.
    assert_eq!(trio.backend.next().payload.len(), 60_000);
    assert!(trio.backend.ended());
}

#[test]
fn waiting_costs_nothing() {
    let room = Room::new("idle");
    let trio = Trio::new(&room, Vec::new());
    let rest = || {
        let before = busy();
        std::thread::sleep(Duration::from_millis(500));
        busy() - before
    };
    assert!(rest() <= Duration::from_millis(10), "joined");
    drop(trio.qemu);
    let _backend = trio.host.greet();
    assert!(rest() <= Duration::from_millis(10), "without QEMU");
    drop((trio.host, _backend));
    assert!(rest() <= Duration::from_millis(20), "without a backend");
}

/// Whatever one side sends, the other is at worst disconnected, and the next pair is served.
#[test]
fn a_peer_that_breaks_the_protocol_is_disconnected() {
    let room = Room::new("lies");
    let mut trio = Trio::new(&room, vec![Some(event()); 2]);
    let many = files(40);
    let giant = |size: u32| {
        let mut bytes = frame(UNKNOWN, 1, &[]);
        bytes[8..12].copy_from_slice(&size.to_ne_bytes());
        bytes
    };
    let valid = frame(SET_VRING_KICK, 1, &0u64.to_ne_bytes());
    let mut lies: Vec<(Vec<u8>, usize)> = vec![
        (giant(65_537), 0),
        (giant(u32::MAX), 3),
        (frame(UNKNOWN, 1, &[]), 33),
        (frame(SET_VRING_KICK, 1, &[0; 8]), 40),
    ];
    // Closed at every byte, with and without descriptors.
    for end in 1..valid.len() {
        lies.push((valid[..end].to_vec(), end % 3));
    }
    for (bytes, count) in lies {
        for by_qemu in [true, false] {
            let fds: Vec<_> = many[..count].iter().map(AsFd::as_fd).collect();
            let (liar, victim) = match by_qemu {
                true => (&trio.qemu, &trio.backend),
                false => (&trio.backend, &trio.qemu),
            };
            liar.send_bytes(&bytes, &fds).unwrap();
            let truncated = bytes.len() < valid.len() && bytes.len() != 12 || bytes == valid[..12];
            if truncated {
                liar.0.shutdown(std::net::Shutdown::Write).unwrap();
            }
            assert!(victim.receive().is_none(), "{bytes:?} was passed on");
            assert!(liar.ended());
            trio.again(&room);
        }
    }
    let before = open_descriptors();
    trio.down(UNKNOWN, 1, &[]);
    assert_eq!(open_descriptors(), before);
}

#[test]
fn unusual_notification_messages_are_forwarded() {
    let room = Room::new("odd");
    let trio = Trio::new(&room, vec![Some(event())]);
    let kick = trio.interposer.kick(0).unwrap();
    let good = EventFd::new().unwrap();
    let good_fd = good.hold().unwrap();
    trio.down(SET_VRING_KICK, 0, &[good_fd.as_fd()]);
    assert!(kick.connected());
    // No descriptor, two descriptors, or one whose use could block or raise SIGPIPE.
    let (reader, writer) = std::io::pipe().unwrap();
    let (socket, other) = std::os::unix::net::UnixStream::pair().unwrap();
    drop((reader, other));
    let file = files(1);
    for fds in [
        vec![],
        vec![good_fd.as_fd(), good_fd.as_fd()],
        vec![writer.as_fd()],
        vec![socket.as_fd()],
        vec![file[0].as_fd()],
    ] {
        trio.down(SET_VRING_KICK, 0, &[good_fd.as_fd()]);
        let passed = trio.down(SET_VRING_KICK, 0, &fds);
        assert_eq!(passed.inodes(), fds.iter().map(inode).collect::<Vec<_>>());
        assert!(!kick.connected());
        kick.ring();
    }
    // Payloads of a wrong size are forwarded, and select no queue.
    trio.down(SET_VRING_KICK, 0, &[good_fd.as_fd()]);
    let looked_into =
        [SET_VRING_BASE, SET_VRING_KICK, SET_VRING_CALL, SET_PROTOCOL_FEATURES, GET_VRING_BASE];
    trio.interposer.follow(0, Some(Arc::new(|| Some(1))));
    for request in looked_into {
        for payload in [&[][..], &[0; 3], &[0xff; 7], &[0xff; 9]] {
            trio.qemu.send(request, 1, payload, &[good_fd.as_fd()]);
            let passed = trio.backend.next();
            assert_eq!((passed.payload.as_slice(), passed.fds.len()), (payload, 1));
        }
    }
    assert!(kick.connected());
    // If the file had been used as an eventfd, it would have grown.
    assert_eq!(rustix::fs::fstat(&file[0]).unwrap().st_size, 0);
}

/// Sends random bytes, and random messages of the types that the interposer inspects.
#[test]
fn random_bytes_and_random_messages() {
    let room = Room::new("noise");
    let mut trio = Trio::new(&room, vec![Some(event()), None, Some(event())]);
    let file = files(3);
    let good = EventFd::new().unwrap();
    let good_fd = good.hold().unwrap();
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for round in 0..30 {
        let started = Instant::now();
        for _ in 0..20 {
            let from = if random() % 2 == 0 { &trio.qemu } else { &trio.backend };
            let size = random() as usize % 20;
            let payload: Vec<u8> = (0..size).map(|_| random() as u8).collect();
            let bytes = match random() % 50 {
                0 => (0..random() % 40 + 1).map(|_| random() as u8).collect(),
                _ => frame(random() as u32 % 45, random() as u32 % 16, &payload),
            };
            let mut fds: Vec<_> = file.iter().map(AsFd::as_fd).collect();
            fds.push(good_fd.as_fd());
            fds.truncate(random() as usize % 5);
            if from.send_bytes(&bytes, &fds).is_err() {
                break;
            }
        }
        (0..4).for_each(|queue| trio.interposer.kick(queue).unwrap().ring());
        drop(std::mem::replace(&mut trio.qemu, Peer::new(pair())));
        assert!(trio.backend.ended());
        trio.again(&room);
        assert!(started.elapsed() < LONG, "round {round}");
    }
    assert_eq!(trio.down(UNKNOWN, 7, &[]).number(), 7);
}
