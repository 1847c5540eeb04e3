//! Reconnecting to a lost backend.

use super::peers::{FEATURES, LONG, Peer, Room, Trio, until};
use std::time::{Duration, Instant};
use virtnic::vhost_user::{Backend, Interposer, Retry, Terms};

const SHORT: Duration = Duration::from_millis(5);

fn hang_up(peer: &Peer) {
    peer.0.shutdown(std::net::Shutdown::Both).unwrap();
}

#[test]
fn without_retries_the_interposer_ends_with_the_backend() {
    let room = Room::new("off");
    let retry = Retry { attempts: Some(0), ..Retry::default() };
    let Trio { host, backend, qemu, interposer } = Trio::with(&room, Vec::new(), retry);
    assert_eq!(interposer.given_up(), None);
    drop(backend);
    assert!(qemu.ended());
    until("it is over", || interposer.given_up().is_some());
    let why = interposer.given_up().unwrap();
    assert!(why.contains("/back disconnected"), "{why}");
    assert!(interposer.changed().drain() > 0 && !interposer.connected());
    // The interposer does not connect to the new backend, and does not accept QEMU.
    host.0.set_nonblocking(true).unwrap();
    std::thread::sleep(3 * SHORT);
    assert!(host.0.accept().is_err() && !room.front().exists());
    interposer.close();
}

#[test]
fn failed_retries_end_it_with_the_reason() {
    let room = Room::new("few");
    let retry = Retry { attempts: Some(4), pause: SHORT, longest: 2 * SHORT };
    let trio = Trio::with(&room, Vec::new(), retry);
    trio.serve();
    let Trio { host, backend, qemu, interposer } = trio;
    std::thread::sleep(3 * SHORT); // long enough to count as success
    let started = Instant::now();
    drop((host, backend));
    assert!(qemu.ended());
    until("it is over", || interposer.given_up().is_some());
    // The first attempt is made at once, the others after 5, 10 and 10 ms.
    assert!(started.elapsed() >= 5 * SHORT, "{:?}", started.elapsed());
    let why = interposer.given_up().unwrap();
    assert!(why.contains("/back in 4 attempts: ") && why.contains("refused"), "{why}");
}

#[test]
fn a_backend_that_returns_in_time_resets_the_retries() {
    let room = Room::new("intime");
    let retry = Retry { attempts: Some(3), pause: 20 * SHORT, longest: 20 * SHORT };
    let mut trio = Trio::with(&room, Vec::new(), retry);
    for _ in 0..5 {
        trio.serve();
        std::thread::sleep(21 * SHORT); // long enough to count as success
        hang_up(&trio.backend);
        assert!(trio.qemu.ended());
        trio.again(&room);
    }
    assert_eq!(trio.interposer.given_up(), None);
}

#[test]
fn a_backend_that_repeatedly_disconnects_at_once_is_given_up() {
    let room = Room::new("fickle");
    let retry = Retry { attempts: Some(3), pause: SHORT, longest: LONG };
    let mut trio = Trio::with(&room, Vec::new(), retry);
    for _ in 0..2 {
        trio.serve();
        hang_up(&trio.backend);
        assert!(trio.qemu.ended());
        trio.again(&room);
    }
    trio.serve();
    hang_up(&trio.backend);
    until("it is over", || trio.interposer.given_up().is_some());
    let why = trio.interposer.given_up().unwrap();
    assert!(
        why.contains("in 3 attempts: the backend disconnected right after connecting"),
        "{why}"
    );
    assert_eq!(trio.interposer.stats().backend_losses, 3);
}

#[test]
fn a_connecting_backend_has_as_long_as_all_pauses_together() {
    let room = Room::new("listening");
    let retry = Retry { attempts: Some(3), pause: SHORT, longest: SHORT };
    let interposer = std::thread::scope(|scope| {
        let backend = scope.spawn(|| {
            until("it listens", || room.back().exists());
            Peer::connect(&room.back()).greet()
        });
        let at = Backend::Listen(room.back());
        let terms = Terms { retry, ..Terms::default() };
        let started =
            Interposer::start_interruptible(&room.front(), at, LONG, Vec::new(), terms, None);
        drop(backend.join().unwrap());
        started.unwrap()
    });
    until("it is over", || interposer.given_up().is_some());
    let why = interposer.given_up().unwrap();
    assert!(why.contains("/back in 3 attempts: none has connected"), "{why}");
}

#[test]
fn a_backend_that_never_serves_is_given_up() {
    let room = Room::new("idle");
    let retry = Retry { attempts: Some(2), pause: SHORT, longest: SHORT };
    let mut trio = Trio::with(&room, Vec::new(), retry);
    std::thread::sleep(3 * SHORT); // would count as success if it had served
    hang_up(&trio.backend);
    trio.again(&room);
    std::thread::sleep(3 * SHORT);
    // This time QEMU disconnects.
    hang_up(&trio.qemu);
    until("it is over", || trio.interposer.given_up().is_some());
    let why = trio.interposer.given_up().unwrap();
    assert!(why.contains("in 2 attempts: QEMU disconnected during setup"), "{why}");
    assert_eq!(trio.interposer.refusal().as_deref(), why.split_once("attempts: ").map(|(_, w)| w));
    assert_eq!((trio.interposer.stats().refusals, trio.interposer.serving()), (2, false));
}

#[test]
fn a_backend_without_the_features_in_use_is_refused() {
    const SET_FEATURES: u32 = 2;
    let room = Room::new("lacks");
    let retry = Retry { attempts: Some(3), pause: SHORT, longest: SHORT };
    let trio = Trio::with(&room, Vec::new(), retry);
    trio.down(SET_FEATURES, FEATURES, &[]);
    hang_up(&trio.backend);
    for _ in 0..2 {
        let peer = trio.host.accept();
        peer.next();
        peer.send(1, 5, &(FEATURES & !(1 << 34)).to_ne_bytes(), &[]);
        assert!(peer.ended());
        assert!(!room.front().exists());
    }
    until("it is over", || trio.interposer.given_up().is_some());
    let why = trio.interposer.given_up().unwrap();
    assert!(why.contains("without RING_PACKED"), "{why}");
}
