//! Deadlines, stopped rings and misbehaving sides of a link.

#![allow(clippy::unwrap_used)]
use super::super::message::{NEED_REPLY, REPLY};
use super::*;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

const ALL: PollFlags = PollFlags::IN.union(PollFlags::OUT);

fn vrings() -> Vrings {
    Vrings::new(Vec::new())
}

fn link() -> (UnixStream, Link, UnixStream) {
    let (qemu, ours) = UnixStream::pair().unwrap();
    let (backend, theirs) = UnixStream::pair().unwrap();
    (qemu, Link::new(OwnedFd::from(ours).into(), OwnedFd::from(theirs).into()), backend)
}

fn bytes(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut message = Message::ask(request);
    message.flags = flags;
    message.payload = payload.to_vec();
    message.to_bytes()
}

#[test]
fn a_backend_that_does_not_answer_is_disconnected() {
    let start = Instant::now();
    for (request, flags) in [(request::GET_QUEUE_NUM, 1), (999, 1 | NEED_REPLY)] {
        let (mut qemu, mut link, mut backend) = link();
        qemu.write_all(&bytes(request, flags, &[])).unwrap();
        link.serve(&vrings(), ALL, ALL, start).unwrap();
        assert_eq!(link.deadline(), Some(start + TIMEOUT));
        link.serve(&vrings(), ALL, ALL, start + TIMEOUT / 2).unwrap();
        // Half an answer does not count.
        backend.write_all(&bytes(request, 1 | REPLY, &[0; 8])[..8]).unwrap();
        let cut = link.serve(&vrings(), ALL, ALL, start + TIMEOUT).unwrap_err();
        assert_eq!(cut.side, Side::Backend);
        assert!(
            cut.end.to_string().contains("did not answer ")
                && cut.end.to_string().contains("for 10 s"),
            "{}",
            cut.end
        );
    }
    let (mut qemu, mut link, mut backend) = link();
    qemu.write_all(&bytes(request::GET_QUEUE_NUM, 1, &[])).unwrap();
    link.serve(&vrings(), ALL, ALL, start).unwrap();
    backend.write_all(&bytes(request::GET_QUEUE_NUM, 1 | REPLY, &[0; 8])).unwrap();
    link.serve(&vrings(), ALL, ALL, start + TIMEOUT * 2).unwrap();
    assert_eq!(link.deadline(), None);
}

#[test]
fn a_request_that_the_backend_did_not_receive_is_answered() {
    let (mut qemu, mut link, backend) = link();
    qemu.write_all(&bytes(request::GET_QUEUE_NUM, 1, &[])).unwrap();
    drop(backend);
    // QEMU's request is read first.
    let cut = link.serve(&vrings(), ALL, PollFlags::empty(), Instant::now()).unwrap_err();
    assert_eq!(cut.side, Side::Backend);
    link.into_stand_in().unwrap().serve().unwrap();
    let mut reply = [0; 20];
    qemu.set_read_timeout(Some(TIMEOUT)).unwrap();
    qemu.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..4], request::GET_QUEUE_NUM.to_ne_bytes());
}

#[test]
fn a_backend_without_qemu_stops_its_rings() {
    let (qemu, mut link, mut backend) = link();
    drop(qemu);
    let served = std::thread::spawn(move || {
        let mut asked = Vec::new();
        for _ in 0..2 {
            let mut message = [0; 20];
            backend.read_exact(&mut message).unwrap();
            assert_eq!(message[..4], request::GET_VRING_BASE.to_ne_bytes());
            asked.push(message[12]);
            // Another message may come first.
            backend.write_all(&bytes(998, 1, &[1])).unwrap();
            let reply = bytes(request::GET_VRING_BASE, 1 | REPLY, &message[12..]);
            backend.write_all(&reply).unwrap();
        }
        (asked, backend)
    });
    assert!(stopped(&mut link, &[0, 3], TIMEOUT));
    let (asked, backend) = served.join().unwrap();
    assert_eq!(asked, [0, 3]);
    // The wait for one that does not answer is limited.
    assert!(!stopped(&mut link, &[0], Duration::from_millis(20)));
    drop(backend);
    assert!(!stopped(&mut link, &[0], TIMEOUT));
}

/// Other messages of the backend do not delay the end.
#[test]
fn stopping_ends_whatever_a_backend_sends() {
    let (_qemu, mut link, mut backend) = link();
    let mut stopping = Stopping::of(vec![0], Duration::ZERO);
    for _ in 0..100 {
        backend.write_all(&bytes(998, 1, &[1])).unwrap();
    }
    assert_eq!(link.stop_rings(&mut stopping), Some(false), "no message was the answer");
    let mut asked = [0; 20];
    backend.read_exact(&mut asked).unwrap();
    let mut stopping = Stopping::of(vec![0], TIMEOUT);
    assert_eq!(link.stop_rings(&mut stopping), None);
    let answer = bytes(request::GET_VRING_BASE, 1 | REPLY, &[0; 8]);
    backend.write_all(&answer).unwrap();
    let steps = (0..200).take_while(|_| link.stop_rings(&mut stopping).is_none()).count();
    assert!(steps <= 100, "{steps}");
}

fn stopped(link: &mut Link, rings: &[u32], timeout: Duration) -> bool {
    let mut stopping = Stopping::of(rings.to_vec(), timeout);
    loop {
        if let Some(stopped) = link.stop_rings(&mut stopping) {
            return stopped;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_side_that_does_not_read_is_disconnected() {
    let start = Instant::now();
    let (mut qemu, mut link, mut backend) = link();
    qemu.set_nonblocking(true).unwrap();
    let message = bytes(999, 1, &[7; 60_000]);
    let mut sent = 0;
    while let Ok(count) = qemu.write(&message[sent % message.len()..]) {
        sent += count;
        link.serve(&vrings(), ALL, ALL, start).unwrap();
    }
    // The backend's socket, the lane and QEMU's socket are full: no more is read.
    assert_eq!(link.interest().0, PollFlags::empty());
    assert_eq!(link.interest().1, ALL);
    // It may be an answer to the unknown message.
    backend.write_all(&bytes(998, 1, &[1])).unwrap();
    link.serve(&vrings(), ALL, ALL, start + TIMEOUT / 2).unwrap();
    let mut reply = [0; 13];
    qemu.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..4], 998u32.to_ne_bytes());
    let cut = link.serve(&vrings(), ALL, ALL, start + TIMEOUT).unwrap_err();
    assert_eq!(cut.side, Side::Backend);
    assert!(cut.end.to_string().contains("did not read for 10 s"), "{}", cut.end);
}

#[test]
fn a_backend_that_sends_without_end_is_disconnected() {
    for (what, flags) in [(998, 1), (request::GET_FEATURES, 1 | REPLY)] {
        let (mut qemu, mut link, mut backend) = link();
        for ring in [0u32, 1] {
            let kick = bytes(request::SET_VRING_KICK, 1, &u64::from(ring | 0x100).to_ne_bytes());
            let enable = [ring.to_ne_bytes(), 1u32.to_ne_bytes()].concat();
            qemu.write_all(&kick).unwrap();
            qemu.write_all(&bytes(request::SET_VRING_ENABLE, 1, &enable)).unwrap();
        }
        let flood: Vec<u8> = bytes(what, flags, &[0; 8]).repeat(200);
        let now = Instant::now();
        let mut cut = None;
        for step in 0..400 {
            if step == 3 {
                backend.write_all(&flood).unwrap();
            }
            if let Err(end) = link.serve(&vrings(), ALL, ALL, now) {
                cut = Some(end);
                break;
            }
            assert!(!link.serves(), "{what}");
        }
        let cut = cut.unwrap();
        assert_eq!(cut.side, Side::Backend);
        assert!(cut.end.to_string().contains("65 messages without a request"));
    }
}
