//! Protocol violations, time-outs and the end of a connection.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::QTest;
use super::pipeline::MAX_OUTSTANDING;
use super::tests::{LONG, SHORT, pair};
use crate::Error;
use crate::notify::EventFd;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn broken_protocol_ends_the_connection_at_once() {
    for reply in [
        "\n",
        "HELLO\n",
        "OK 0xzz\n",
        "OK\n",
        "OK 0x100\n",
        "IRQ raise\n",
        "IRQ raise 99999\n",
        "OK 0x12\nOK 0x12\n",
        "ok 0x12\n",
        "\u{0}\n",
    ] {
        let (qtest, mut peer) = pair(LONG);
        let event = Arc::new(EventFd::new().unwrap());
        qtest.watch(&event);
        let answer = thread::spawn(move || {
            let mut request = [0; 64];
            let _ = peer.read(&mut request).unwrap();
            peer.write_all(reply.as_bytes()).unwrap();
            peer
        });
        let started = Instant::now();
        let first = qtest.port_in(0x80, 1);
        let _peer = answer.join().unwrap();
        assert!(event.wait(Some(LONG)).unwrap(), "{reply:?}");
        if !reply.starts_with("OK 0x12\n") {
            assert!(matches!(first, Err(Error::QemuDied(_))), "{reply:?}: {first:?}");
        }
        assert!(matches!(qtest.port_in(0x80, 1), Err(Error::QemuDied(_))), "{reply:?}");
        assert!(qtest.death().unwrap().contains("protocol"), "{:?}", qtest.death());
        assert!(started.elapsed() < Duration::from_secs(5));
    }
}

#[test]
fn an_endless_line_ends_the_connection() {
    let (qtest, mut peer) = pair(LONG);
    let flood = thread::spawn(move || while peer.write_all(&[b'A'; 4096]).is_ok() {});
    let error = qtest.port_in(0x80, 1).unwrap_err();
    assert!(matches!(&error, Error::QemuDied(why) if why.contains("more than")), "{error}");
    flood.join().unwrap();
}

#[test]
fn a_flood_of_interrupts_does_not_block_a_call() {
    let (qtest, mut peer) = pair(LONG);
    let reader = peer.try_clone().unwrap();
    let flood = thread::spawn(move || {
        let mut request = String::new();
        BufReader::new(reader).read_line(&mut request).unwrap();
        for _ in 0..20_000 {
            peer.write_all(b"IRQ raise 0\nIRQ lower 0\n").unwrap();
        }
        peer.write_all(b"OK 0x01\n").unwrap();
        peer
    });
    assert_eq!(qtest.port_in(0x80, 1).unwrap(), 1);
    flood.join().unwrap();
}

#[test]
fn the_end_wakes_every_waiter() {
    let (qtest, peer) = pair(LONG);
    let event = Arc::new(EventFd::new().unwrap());
    qtest.watch(&event);
    let waiters: Vec<_> = (0..8)
        .map(|n| {
            let qtest = qtest.clone();
            thread::spawn(move || qtest.port_in(n, 1))
        })
        .collect();
    thread::sleep(SHORT);
    let started = Instant::now();
    drop(peer);
    for waiter in waiters {
        assert!(matches!(waiter.join().unwrap(), Err(Error::QemuDied(_))));
    }
    assert!(event.wait(Some(LONG)).unwrap());
    assert!(started.elapsed() < Duration::from_secs(1));
    // A watcher that is added after the end is called at once.
    let late = Arc::new(EventFd::new().unwrap());
    qtest.watch(&late);
    assert_eq!(late.drain(), 1);
    assert!(matches!(qtest.port_out(0, 1, 0), Err(Error::QemuDied(_))));
}

#[test]
fn closing_wakes_waiters_and_ends_the_threads() {
    let (qtest, peer) = pair(LONG);
    let other = qtest.clone();
    let waiter = thread::spawn(move || other.port_in(1, 1));
    thread::sleep(SHORT);
    qtest.close();
    assert!(matches!(waiter.join().unwrap(), Err(Error::Closed(_))));
    assert!(matches!(qtest.port_in(1, 1), Err(Error::Closed(_))));
    assert!(qtest.death().unwrap().contains("closed"));
    qtest.close();
    drop(peer);
}

#[test]
fn dropping_the_last_clone_closes() {
    let (qtest, mut peer) = pair(LONG);
    drop(qtest.clone());
    qtest.port_out(0x80, 1, 7).unwrap();
    drop(qtest);
    let mut written = String::new();
    peer.read_to_string(&mut written).unwrap();
    assert_eq!(written, "outb 0x80 0x7\n");
}

#[test]
fn a_late_reply_is_not_matched_with_the_next_request() {
    let (qtest, mut peer) = pair(SHORT);
    assert!(matches!(qtest.port_in(1, 1), Err(Error::Timeout(_))));
    let answer = thread::spawn(move || {
        let mut request = [0; 64];
        let mut count = 0;
        while count < 14 {
            count += peer.read(&mut request).unwrap();
        }
        peer.write_all(b"OK 0x01\nOK 0x02\n").unwrap();
        peer
    });
    assert_eq!(qtest.port_in(2, 1).unwrap(), 2);
    answer.join().unwrap();
}

#[test]
fn unanswered_commands_are_bounded() {
    let (qtest, mut peer) = pair(SHORT);
    // The peer reads everything, so the socket never fills, but does not answer.
    let sink = thread::spawn(move || {
        let mut bytes = [0; 4096];
        let mut lines = 0;
        while let Ok(count @ 1..) = peer.read(&mut bytes) {
            lines += bytes[..count].iter().filter(|b| **b == b'\n').count();
        }
        lines
    });
    let mut posted = 0;
    let error = loop {
        match qtest.port_out(0x80, 1, 0) {
            Ok(()) => posted += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Timeout(_)), "{error:?}");
    assert_eq!(posted, MAX_OUTSTANDING);
    qtest.close();
    assert_eq!(sink.join().unwrap(), MAX_OUTSTANDING);
}

#[test]
fn a_full_socket_is_a_timeout_and_then_works_again() {
    let (qtest, mut peer) = pair(SHORT);
    let mut posted = 0;
    let error = loop {
        match qtest.port_out(0x80, 1, 0) {
            Ok(()) => posted += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Timeout(_)), "{error:?}");
    assert!(posted > 10 && qtest.death().is_none());
    let answer = thread::spawn(move || {
        let mut reader = BufReader::new(peer.try_clone().unwrap());
        let mut line = String::new();
        for _ in 0..posted {
            line.clear();
            reader.read_line(&mut line).unwrap();
            assert_eq!(line, "outb 0x80 0x0\n");
            peer.write_all(b"OK\n").unwrap();
        }
        line.clear();
        reader.read_line(&mut line).unwrap();
        peer.write_all(b"OK 0x55\n").unwrap();
        line
    });
    assert_eq!(qtest.port_in(1, 1).unwrap(), 0x55);
    assert_eq!(answer.join().unwrap(), "inb 0x1\n");
}

#[test]
fn a_partly_written_line_ends_the_connection() {
    let mut poisoned = 0;
    // Vary what is sent before the long lines, so that the socket's buffer ends at any byte.
    for short_lines in 0..4 {
        let (ours, _peer) = UnixStream::pair().unwrap();
        rustix::net::sockopt::set_socket_send_buffer_size(&ours, 1).unwrap();
        let qtest = QTest::from_socket(OwnedFd::from(ours), SHORT, None).unwrap();
        let event = Arc::new(EventFd::new().unwrap());
        qtest.watch(&event);
        for _ in 0..short_lines {
            qtest.port_out(0x80, 1, 0).unwrap();
        }
        let error = loop {
            if let Err(error) = qtest.write_bytes(0, &[0; 2048]) {
                break error;
            }
        };
        if matches!(error, Error::Timeout(_)) {
            assert!(qtest.death().is_none());
            continue;
        }
        poisoned += 1;
        assert!(matches!(&error, Error::QemuDied(why) if why.contains("bytes written")), "{error}");
        assert_eq!(qtest.death().unwrap(), error.to_string());
        assert!(event.wait(Some(LONG)).unwrap());
        assert!(matches!(qtest.port_out(0x80, 1, 0), Err(Error::QemuDied(_))));
    }
    assert!(poisoned > 0);
}

#[test]
fn the_check_function_ends_a_wait() {
    fn interrupted() -> crate::Result<()> {
        Err(Error::Busy("enough".into()))
    }
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let qtest = QTest::from_socket(OwnedFd::from(ours), LONG, Some(interrupted)).unwrap();
    let started = Instant::now();
    assert!(matches!(qtest.port_in(1, 1), Err(Error::Busy(_))));
    assert!(started.elapsed() < Duration::from_secs(2));
}
