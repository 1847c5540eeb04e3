//! Starting with backends that are present, late, missing, or not vhost-user backends.

use super::peers::{Host, LONG, Peer, Room, Trio, frame, until};
use super::{UNKNOWN, pair};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};
use virtnic::Error;
use virtnic::vhost_user::{Backend, Interposer, Terms};

#[test]
fn a_missing_backend() {
    let room = Room::new("none");
    let start =
        |wait| Interposer::start(&room.front(), Backend::Connect(room.back()), wait, Vec::new());
    let error = start(Duration::ZERO).unwrap_err();
    assert!(matches!(error, Error::Os { errno: 2, .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("no vhost-user backend listens at") && text.contains("/back"), "{text}");
    assert!(text.contains("start it first, or wait for it with wait=SECONDS"), "{text}");
    assert!(room.files().is_empty());

    // Only its socket file is left.
    drop(Host::new(&room.back()));
    let started = Instant::now();
    let error = start(Duration::from_millis(150)).unwrap_err();
    assert!(matches!(error, Error::Os { errno: 111, .. }), "{error:?}");
    assert!(error.to_string().contains("within 150ms"), "{error}");
    assert!(started.elapsed() >= Duration::from_millis(150));

    // The path is not a socket, or a socket of another type.
    std::fs::write(room.front(), "").unwrap();
    let listen = Backend::Connect(room.front());
    assert!(Interposer::start(&room.back(), listen, LONG, Vec::new()).is_err());
    let long = std::path::Path::new("/x").join("y".repeat(108));
    let error =
        Interposer::start(&room.front(), Backend::Connect(long), LONG, Vec::new()).unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error:?}");
    let calls = vec![None; 257];
    let error = Interposer::start(&room.front(), Backend::Connect(room.back()), LONG, calls);
    assert!(matches!(error, Err(Error::Invalid(_))));

    // It starts late.
    std::fs::remove_file(room.front()).unwrap();
    let host = std::thread::scope(|scope| {
        let backend = scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            let host = Host::new(&room.back());
            (host.greet(), host)
        });
        let interposer = start(LONG).unwrap();
        let mode = std::fs::metadata(room.front()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        interposer.close();
        assert!(!room.front().exists());
        backend.join().unwrap().1
    });

    // QEMU's socket cannot be created: the backend is disconnected.
    std::fs::write(room.front(), "").unwrap();
    let error = std::thread::scope(|scope| {
        let backend = scope.spawn(|| host.greet());
        let error = start(LONG).unwrap_err();
        assert!(backend.join().unwrap().ended());
        error
    });
    assert!(error.to_string().contains("exists"), "{error}");
}

#[test]
fn a_peer_that_does_not_answer_or_is_not_a_backend() {
    let room = Room::new("mute");
    let host = Host::new(&room.back());
    let start = || {
        Interposer::start(&room.front(), Backend::Connect(room.back()), Duration::ZERO, Vec::new())
            .unwrap_err()
    };
    // It listens, but does not accept connections.
    let started = Instant::now();
    let error = start();
    assert!(matches!(error, Error::Qemu(_)), "{error:?}");
    assert!(error.to_string().contains("did not answer GET_FEATURES for 5 s"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(10));
    drop(host.accept());
    // It answers late, but within the limit.
    std::thread::scope(|scope| {
        let started = scope.spawn(|| {
            Interposer::start(&room.front(), Backend::Connect(room.back()), LONG, Vec::new())
        });
        std::thread::sleep(Duration::from_millis(2200));
        let _backend = host.greet();
        started.join().unwrap().unwrap();
    });
    // It closes at once, or sends something else.
    for (said, expected) in [
        (&b""[..], "closed the connection without an answer"),
        (b"HTTP/1.0 400 Bad", "payload"),
        (&frame(1, 1, &[0; 8]), "does not speak vhost-user"),
    ] {
        let error = std::thread::scope(|scope| {
            scope.spawn(|| {
                let peer = host.accept();
                peer.next();
                (&peer.0).write_all(said).unwrap();
            });
            start()
        });
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn a_backend_may_connect_to_us() {
    let room = Room::new("server");
    // The socket file of a dead process is replaced, that of a live one is not.
    let host = Host::new(&room.back());
    let start =
        |wait| Interposer::start(&room.front(), Backend::Listen(room.back()), wait, Vec::new());
    assert!(start(Duration::ZERO).unwrap_err().to_string().contains("exists"));
    drop(host);
    let error = start(Duration::from_millis(50)).unwrap_err();
    assert!(matches!(error, Error::Timeout(_)), "{error:?}");
    assert!(error.to_string().contains("no vhost-user backend connected to"), "{error}");
    assert!(room.files().is_empty());

    let (interposer, mut backend) = std::thread::scope(|scope| {
        let backend = scope.spawn(|| Peer::connect(&room.back()).greet());
        (start(LONG).unwrap(), backend.join().unwrap())
    });
    for round in 0..3 {
        let qemu = Peer::connect(&room.front());
        qemu.send(UNKNOWN, 1, &[round], &[]);
        assert_eq!(backend.next().payload, [round]);
        drop(backend);
        assert!(qemu.ended());
        // A backend that has connected and disconnected again is skipped.
        drop(Peer::connect(&room.back()));
        backend = Peer::connect(&room.back()).greet();
    }
    assert_eq!(interposer.stats().backend_losses, 3);
    drop(interposer);
    assert!(backend.ended() && room.files().is_empty());
}

#[test]
fn a_backend_that_disconnects_before_qemu_connects_is_replaced() {
    let room = Room::new("early");
    let mut trio = Trio::new(&room, Vec::new());
    drop(trio.qemu);
    // If either side reconnects rapidly, there is one attempt every 100 ms.
    let started = Instant::now();
    for _ in 0..4 {
        drop(trio.host.greet());
    }
    assert!(started.elapsed() >= Duration::from_millis(250));
    trio.qemu = Peer::new(pair());
    trio.again(&room);
    assert_eq!(trio.down(UNKNOWN, 5, &[]).number(), 5);
}

/// The requests that QEMU sends before a netdev exists.
const GET_FEATURES: u32 = 1;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_PROTOCOL_FEATURES: u32 = 16;
const GET_QUEUE_NUM: u32 = 17;

#[test]
fn a_backend_with_too_few_queue_pairs_is_refused_before_qemu_connects() {
    let room = Room::new("pairs");
    let host = Host::new(&room.back());
    for (pairs, protocol, fits) in [(2u64, 1u64, true), (1, 1, false), (8, 8, false)] {
        let started = std::thread::scope(|scope| {
            let backend = scope.spawn(|| {
                let peer = host.greet();
                assert_eq!(peer.next().request, GET_PROTOCOL_FEATURES);
                peer.send(GET_PROTOCOL_FEATURES, 5, &protocol.to_ne_bytes(), &[]);
                if protocol & 1 != 0 {
                    let chosen = peer.next();
                    assert_eq!((chosen.request, chosen.number()), (SET_PROTOCOL_FEATURES, 1));
                    assert_eq!(peer.next().request, GET_QUEUE_NUM);
                    peer.send(GET_QUEUE_NUM, 5, &pairs.to_ne_bytes(), &[]);
                }
                peer
            });
            let terms = Terms { pairs: 2, ..Terms::default() };
            let at = Backend::Connect(room.back());
            let started =
                Interposer::start_interruptible(&room.front(), at, LONG, Vec::new(), terms, None);
            (started, backend.join().unwrap())
        });
        match started.0 {
            Ok(_) => assert!(fits),
            Err(error) => {
                let text = error.to_string();
                assert!(!fits && text.contains("has 1 queue pair, but 2 are required"), "{text}");
            }
        }
    }
}

#[test]
fn creating_a_netdev_ends_if_its_backend_fails() {
    let room = Room::new("trial");
    let mut trio = Trio::new(&room, Vec::new());
    for asked in [None, Some(GET_QUEUE_NUM)] {
        trio.interposer.begin_trial();
        if let Some(question) = asked {
            // The backend's answer is invalid. QEMU would disconnect, so it gets a valid answer.
            trio.qemu.send(question, 1, &[], &[]);
            assert_eq!(trio.backend.next().request, question);
            trio.backend.send(UNKNOWN, 5, &[1; 8], &[]);
            assert_eq!(trio.qemu.next().number(), 256);
        }
        drop(std::mem::replace(&mut trio.backend, Peer::new(pair())));
        until("the loss is noticed", || !trio.interposer.connected());
        for (question, flags, expected) in [
            (GET_FEATURES, 1, 1 << 32 | 1 << 30),
            (GET_PROTOCOL_FEATURES, 1, 1),
            (GET_QUEUE_NUM, 1, 256),
            (UNKNOWN, 9, 0),
        ] {
            // Requests that need no reply get none.
            trio.qemu.send_number(SET_PROTOCOL_FEATURES, 1, &[]);
            trio.qemu.send(question, flags, &[], &[]);
            let answer = trio.qemu.next();
            assert_eq!((answer.request, answer.flags, answer.number()), (question, 5, expected));
        }
        let why = trio.interposer.end_trial().unwrap();
        let words = if asked.is_some() {
            "it answered GET_QUEUE_NUM with"
        } else {
            "it disconnected before"
        };
        assert!(why.contains(words), "{why}");
        assert_eq!(trio.interposer.end_trial(), None);
        // QEMU disconnects with its netdev, and the next backend is used normally.
        drop(std::mem::replace(&mut trio.qemu, Peer::new(pair())));
        trio.again(&room);
        assert_eq!(trio.down(UNKNOWN, 7, &[]).number(), 7);
    }
    // The backend disconnects before QEMU connects.
    drop(std::mem::replace(&mut trio.qemu, Peer::new(pair())));
    trio.backend = trio.host.greet();
    trio.interposer.begin_trial();
    drop(std::mem::replace(&mut trio.backend, Peer::new(pair())));
    let early =
        || trio.interposer.refusal().is_some_and(|why| why.contains("before QEMU connected"));
    until("the loss is noticed", early);
    trio.qemu = Peer::connect(&room.front());
    trio.qemu.send(GET_QUEUE_NUM, 1, &[], &[]);
    assert_eq!(trio.qemu.next().number(), 256);
    assert!(trio.interposer.end_trial().unwrap().contains("before QEMU connected"));
}

#[test]
fn a_backend_that_rejects_a_request_does_not_serve() {
    const SET_MEM_TABLE: u32 = 5;
    let room = Room::new("refuses");
    let trio = Trio::new(&room, Vec::new());
    trio.qemu.send(SET_MEM_TABLE, 9, &[0; 8], &[]);
    trio.backend.next();
    trio.backend.send(SET_MEM_TABLE, 5, &1u64.to_ne_bytes(), &[]);
    assert!(trio.qemu.ended());
    let why = trio.interposer.refusal().unwrap();
    assert!(why.contains("it refused SET_MEM_TABLE"), "{why}");
}
