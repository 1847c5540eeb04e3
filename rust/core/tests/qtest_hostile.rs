//! A fake QEMU that violates the QTest protocol, at each of its replies and in every way.
//!
//! The call must fail with an error within its timeout, and must read no more from the peer than
//! the longest reply.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::io::{BufRead, BufReader, IoSlice, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use virtnic::qtest::QTest;
use virtnic::{Error, Result};

const TIMEOUT: Duration = Duration::from_millis(200);
/// Two timeouts, and a margin for a busy machine.
const BOUND: Duration = Duration::from_secs(4);
/// The most bytes that the client may take from a peer: a reply and a socket buffer.
const TAKEN: usize = 1 << 20;

/// A call and its correct reply.
type Call = (&'static str, fn(&QTest) -> Result<()>, &'static str);

const CALLS: [Call; 8] = [
    ("port_in", |q| q.port_in(0xcfc, 4).map(drop), "OK 0x00000001\n"),
    ("port_out", |q| q.port_out(0xcf8, 4, 1).and_then(|()| q.flush()), "OK\n"),
    ("read", |q| q.read(0x1000, 2).map(drop), "OK 0x0000000000000001\n"),
    ("write", |q| q.write(0x1000, 2, 1).and_then(|()| q.flush()), "OK\n"),
    ("read_bytes", |q| q.read_bytes(0x1000, 4).map(drop), "OK 0x01020304\n"),
    ("write_bytes", |q| q.write_bytes(0, &[1, 2]).and_then(|()| q.flush()), "OK\n"),
    ("intercept", |q| q.intercept("ioapic"), "OK\n"),
    ("clock_step", |q| q.clock_step(Some(1)).map(drop), "OK 1\n"),
];

/// What is sent instead of a correct reply.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Break {
    Close,
    /// This many bytes of the correct reply, then the end of the connection, or nothing more.
    CutAndClose(usize),
    CutAndSilence(usize),
    Say(&'static [u8]),
    /// Bytes that are repeated until the connection or the call ends.
    ForEver(&'static [u8]),
    /// The correct reply, followed by another one.
    Twice,
    /// Nothing; the peer does not read either.
    StopsReading,
}

const BREAKS: [Break; 27] = [
    Break::Close,
    Break::CutAndClose(1),
    Break::CutAndClose(2),
    Break::CutAndSilence(1),
    Break::CutAndSilence(2),
    Break::Say(b""),
    Break::Say(b"\n"),
    Break::Say(b"ok\n"),
    Break::Say(b"OK nonsense\n"),
    Break::Say(b"OK 0x\n"),
    Break::Say(b"OK 0x1ffffffffffffffff\n"),
    Break::Say(b"OK -1\n"),
    Break::Say(b"OK \xff\xfe\n"),
    Break::Say(b"OK\0\n"),
    Break::Say(b"FAIL\n"),
    Break::Say(b"ERR \x1b[2J\n"),
    Break::Say(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    Break::Say(b"IRQ raise 1024\n"),
    Break::Say(b"IRQ raise -1\n"),
    Break::Say(b"IRQ\n"),
    Break::ForEver(b"A"),
    Break::ForEver(b"OK 0x0000000000000000000000000000000000000000000000000000000"),
    Break::ForEver(b"IRQ raise 5\nIRQ lower 5\n"),
    Break::ForEver(b"FAIL no\n"),
    Break::ForEver(b"\0"),
    Break::Twice,
    Break::StopsReading,
];

struct Room(PathBuf);

impl Room {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("virtnic-qh-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Stops the other thread when dropped, also if a check fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Acts as QEMU, with a fault at its `nth` reply. Returns how many bytes were taken from it.
fn qemu(socket: &UnixStream, nth: usize, right: &str, how: Break, over: &AtomicBool) -> usize {
    let mut reader = BufReader::new(socket.try_clone().unwrap());
    let mut writer = socket.try_clone().unwrap();
    writer.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
    let mut line = String::new();
    let mut taken = 0;
    for _ in 0..nth {
        line.clear();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return 0;
        }
        let reply = if line.starts_with("endianness") { "OK little\n" } else { right };
        writer.write_all(reply.as_bytes()).unwrap();
    }
    line.clear();
    let _ = reader.read_line(&mut line);
    let cut = |count: usize| &right.as_bytes()[..count.min(right.len() - 1)];
    match how {
        Break::Close => drop(socket.shutdown(Shutdown::Both)),
        Break::CutAndClose(count) => {
            let _ = writer.write_all(cut(count));
            let _ = socket.shutdown(Shutdown::Both);
        }
        Break::CutAndSilence(count) => drop(writer.write_all(cut(count))),
        Break::Say(bytes) => drop(writer.write_all(bytes)),
        Break::Twice => drop(writer.write_all(right.repeat(4).as_bytes())),
        Break::StopsReading => {}
        Break::ForEver(bytes) => {
            let much = bytes.repeat(1000);
            while !over.load(Ordering::Relaxed) {
                match writer.write(&much) {
                    Ok(count) => taken += count,
                    Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(_) => break,
                }
            }
        }
    }
    // Does not read or close until the call has ended.
    while !over.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(1));
    }
    taken
}

fn check(room: &Room, name: &str, call: fn(&QTest) -> Result<()>, right: &str, how: Break) {
    let path = room.0.join(name);
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    let (over, taken) = (AtomicBool::new(false), AtomicUsize::new(0));
    // The first reply, to `endianness`, was correct, or there would be no connection.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (socket, _) = listener.accept().unwrap();
            taken.store(qemu(&socket, 1, right, how, &over), Ordering::Relaxed);
        });
        let ended = Over(&over);
        let qtest = QTest::connect(&path, TIMEOUT).unwrap();
        let began = Instant::now();
        let result = call(&qtest);
        let again = call(&qtest);
        let elapsed = began.elapsed();
        drop(ended);
        let what = format!("{name}, {how:?}: {result:?}");
        match &result {
            // The correct reply came first; the second call finds the extra reply.
            Ok(()) => assert!(how == Break::Twice, "{what}"),
            Err(Error::Timeout(_) | Error::QemuDied(_) | Error::Qemu(_)) => {}
            Err(_) => panic!("{what}"),
        }
        // After one extra reply, or an error reply, the next call may still succeed.
        let may_go_on = matches!(how, Break::Say(_) | Break::Twice);
        assert!(again.is_err() || may_go_on, "{what}, then {again:?}");
        assert!(elapsed < BOUND, "{what}: {elapsed:?}");
        for error in [result.err(), again.err()].into_iter().flatten() {
            let text = error.to_string();
            assert!(text.len() < 1000 && !text.contains(['\x1b', '\0', '\n']), "{text:?}");
        }
        let began = Instant::now();
        qtest.close();
        drop(qtest);
        assert!(began.elapsed() < BOUND);
    });
    // Interrupt messages without end are read and discarded.
    if !matches!(how, Break::ForEver(bytes) if bytes.starts_with(b"IRQ")) {
        assert!(taken.into_inner() <= TAKEN, "{name}, {how:?}");
    }
}

#[test]
fn every_reply_broken_in_every_way() {
    let room = Room::new("every");
    std::thread::scope(|scope| {
        for (name, call, right) in CALLS {
            let room = &room;
            scope.spawn(move || BREAKS.map(|how| check(room, name, call, right, how)));
        }
    });
}

#[test]
fn the_first_reply_broken_in_every_way() {
    let room = Room::new("first");
    for how in BREAKS {
        let path = room.0.join("qtest");
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (socket, _) = listener.accept().unwrap();
                qemu(&socket, 0, "OK little\n", how, &over)
            });
            let began = Instant::now();
            let result = QTest::connect(&path, TIMEOUT);
            drop(Over(&over));
            assert!(began.elapsed() < BOUND, "{how:?}");
            match result {
                Ok(_) => assert!(how == Break::Twice, "{how:?}"),
                Err(Error::Timeout(_) | Error::QemuDied(_) | Error::Qemu(_)) => {}
                Err(other) => panic!("{how:?}: {other:?}"),
            }
        });
    }
}

/// QTest passes no descriptors. Descriptors sent with a reply, or a part of one, are closed.
#[test]
fn descriptors_that_come_with_replies_are_closed() {
    // Other tests run in this process, so use files that no other test opens.
    let mine = || {
        let links = std::fs::read_dir("/proc/self/fd").unwrap();
        links.filter(|link| names_ours(&link.as_ref().unwrap().path())).count()
    };
    let room = Room::new("rights");
    let path = room.0.join("qtest");
    let listener = UnixListener::bind(&path).unwrap();
    let file = memfd_create(OURS, MemfdFlags::CLOEXEC).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (socket, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(socket.try_clone().unwrap());
            let mut line = String::new();
            while reader.read_line(&mut line).unwrap_or(0) > 0 {
                let reply = if line.starts_with("endianness") { "OK little\n" } else { "OK 0x1\n" };
                // Some descriptors with the first half of the reply, many with the second.
                for (part, count) in [(&reply[..3], 1), (&reply[3..], 253)] {
                    let fds = vec![file.as_fd(); count];
                    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
                    let mut control = SendAncillaryBuffer::new(&mut space);
                    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
                    let bytes = [IoSlice::new(part.as_bytes())];
                    sendmsg(&socket, &bytes, &mut control, SendFlags::NOSIGNAL).unwrap();
                }
                line.clear();
            }
        });
        let qtest = QTest::connect(&path, Duration::from_secs(5)).unwrap();
        for _ in 0..50 {
            assert_eq!(qtest.port_in(0xcfc, 4).unwrap(), 1);
        }
        assert_eq!(mine(), 1, "descriptors were taken");
        qtest.close();
    });
    assert_eq!(mine(), 1);
}

const OURS: &str = "virtnic-qtest-rights";

fn names_ours(link: &std::path::Path) -> bool {
    std::fs::read_link(link).is_ok_and(|target| target.to_string_lossy().contains(OURS))
}
