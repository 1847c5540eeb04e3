//! The client against a scripted QEMU at the other end of a socket pair.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::QTest;
use crate::Error;
use crate::notify::EventFd;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

pub(super) const LONG: Duration = Duration::from_secs(10);
pub(super) const SHORT: Duration = Duration::from_millis(60);

pub(super) fn pair(timeout: Duration) -> (QTest, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (QTest::from_socket(OwnedFd::from(ours), timeout, None).unwrap(), theirs)
}

/// A fake QEMU that answers the n-th line with the n-th entry of a script, then only reads.
pub(super) fn scripted(
    timeout: Duration,
    script: &'static [&'static str],
) -> (QTest, thread::JoinHandle<Vec<String>>) {
    let (qtest, mut peer) = pair(timeout);
    let thread = thread::spawn(move || {
        let mut lines = Vec::new();
        let mut reader = BufReader::new(peer.try_clone().unwrap());
        let mut answers = script.iter();
        let mut line = String::new();
        while reader.read_line(&mut line).unwrap_or(0) > 0 {
            lines.push(std::mem::take(&mut line));
            match answers.next() {
                Some(&"EOF") => break,
                Some(answer) => peer.write_all(answer.as_bytes()).unwrap(),
                None => {}
            }
        }
        lines
    });
    (qtest, thread)
}

#[test]
fn each_method_sends_its_line() {
    let (qtest, peer) = scripted(
        LONG,
        &[
            "OK 0x1af4\n",
            "OK\n",
            "OK 0x00000000000000ff\n",
            "OK\n",
            "OK 0xc0ffee\n",
            "OK\n",
            "OK\n",
            "OK 42\n",
            "OK little\n",
            "OK\n",
            "OK 0x8086\n",
            "OK\n",
            "OK\n",
            "OK little\n",
        ],
    );
    assert_eq!(qtest.port_in(0xcfc, 2).unwrap(), 0x1af4);
    qtest.port_out(0xcf8, 4, 0x8000_0000).unwrap();
    assert_eq!(qtest.read(0xfe00_0000, 1).unwrap(), 0xff);
    qtest.write(0xfe00_0000, 8, u64::MAX).unwrap();
    assert_eq!(qtest.read_bytes(0x1000, 3).unwrap(), [0xc0, 0xff, 0xee]);
    qtest.write_bytes(0x1000, &[1, 0xab]).unwrap();
    qtest.intercept("ioapic").unwrap();
    assert_eq!(qtest.clock_step(Some(42)).unwrap(), 42);
    qtest.flush().unwrap();
    assert_eq!(qtest.indexed_in(0xcf8, 0x8000_0000, 0xcfe, 2).unwrap(), 0x8086);
    qtest.indexed_out(0xcf8, 0x8000_0004, 0xcfc, 1, 7).unwrap();
    qtest.flush().unwrap();
    qtest.close();
    assert_eq!(
        peer.join().unwrap(),
        [
            "inw 0xcfc\n",
            "outl 0xcf8 0x80000000\n",
            "readb 0xfe000000\n",
            "writeq 0xfe000000 0xffffffffffffffff\n",
            "read 0x1000 0x3\n",
            "write 0x1000 0x2 0x01ab\n",
            "irq_intercept_in ioapic\n",
            "clock_step 0x2a\n",
            "endianness\n",
            "outl 0xcf8 0x80000000\n",
            "inw 0xcfe\n",
            "outl 0xcf8 0x80000004\n",
            "outb 0xcfc 0x7\n",
            "endianness\n",
        ]
    );
}

/// Many threads read registers through one selector; each reads the one it selected.
#[test]
fn selecting_and_accessing_a_register_is_atomic() {
    let (qtest, peer) = pair(LONG);
    let device = thread::spawn(move || {
        let (reader, mut writer) = (BufReader::new(peer.try_clone().unwrap()), peer);
        let mut selected = String::new();
        for line in reader.lines().map_while(Result::ok) {
            let answer = match line.strip_prefix("outl 0xcf8 ") {
                Some(index) => {
                    index.clone_into(&mut selected);
                    "OK\n".to_owned()
                }
                None => format!("OK {selected}\n"),
            };
            if writer.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    });
    thread::scope(|scope| {
        for thread in 1..=4_u32 {
            let qtest = &qtest;
            scope.spawn(move || {
                for n in 0..200 {
                    let index = thread << 16 | n;
                    assert_eq!(qtest.indexed_in(0xcf8, index, 0xcfc, 4).unwrap(), index);
                }
            });
        }
    });
    qtest.close();
    device.join().unwrap();
}

#[test]
fn commands_that_abort_qemu_are_never_sent() {
    let (qtest, mut peer) = pair(LONG);
    let refused = [
        qtest.port_in(0, 8).map(drop),
        qtest.port_out(0, 3, 0),
        qtest.port_out(0, 1, 0x100),
        qtest.port_out(0, 2, 0x1_0000),
        qtest.indexed_in(0, 0, 0, 8).map(drop),
        qtest.indexed_out(0, 0, 0, 3, 0),
        qtest.indexed_out(0, 0, 0, 1, 0x100),
        qtest.read(0, 0).map(drop),
        qtest.read(u64::MAX, 2).map(drop),
        qtest.write(0, 4, 1 << 32),
        qtest.read_bytes(u64::MAX - 1, 3).map(drop),
        qtest.write_bytes(u64::MAX, &[0, 0]),
        qtest.intercept(""),
        qtest.intercept("two words"),
        qtest.intercept("line\nfeed"),
        qtest.intercept("bl\u{e4}h"),
        qtest.clock_step(Some(1 << 63)).map(drop),
        qtest.run_clock(Duration::ZERO),
    ];
    for (n, result) in refused.into_iter().enumerate() {
        assert!(matches!(result, Err(Error::Invalid(_))), "{n}: {result:?}");
    }
    // An empty transfer sends no request, because QEMU aborts on a length of 0.
    assert!(qtest.read_bytes(0, 0).unwrap().is_empty());
    qtest.write_bytes(0, &[]).unwrap();
    qtest.close();
    let mut written = Vec::new();
    peer.read_to_end(&mut written).unwrap();
    assert!(written.is_empty(), "{written:?}");
}

#[test]
fn replies_may_be_split_anywhere() {
    let reply = b"IRQ raise 3\nOK\nIRQ lower 3\nIRQ raise 3\nOK 0x00ab\n";
    for cut in 1..reply.len() {
        let (qtest, mut peer) = pair(LONG);
        let event = Arc::new(EventFd::new().unwrap());
        qtest.on_irq(3, &event);
        qtest.port_out(0x80, 1, 1).unwrap();
        let answer = thread::spawn(move || {
            // A reply must not come before its request.
            let mut reader = BufReader::new(peer.try_clone().unwrap());
            for _ in 0..2 {
                reader.read_line(&mut String::new()).unwrap();
            }
            peer.write_all(&reply[..cut]).unwrap();
            thread::yield_now();
            peer.write_all(&reply[cut..]).unwrap();
            peer
        });
        let value = qtest.port_in(0x80, 1);
        let _peer = answer.join().unwrap();
        assert_eq!(value.unwrap(), 0xab, "cut at {cut}");
        assert_eq!(event.drain(), 2);
        assert!(qtest.irq_level(3));
    }
}

#[test]
fn a_refused_write_is_reported_by_the_next_call_that_waits() {
    let (qtest, _peer) =
        scripted(LONG, &["FAIL no such port\n", "ERR again\n", "OK 0x01\n", "OK 0x02\n"]);
    qtest.port_out(0x80, 1, 7).unwrap();
    qtest.port_out(0x81, 1, 7).unwrap();
    let error = qtest.port_in(0x80, 1).unwrap_err();
    let Error::Qemu(why) = &error else { panic!("{error:?}") };
    assert!(why.contains("outb 0x80 0x7") && why.contains("FAIL no such port"), "{why}");
    assert!(why.contains("1 more"), "{why}");
    assert_eq!(qtest.port_in(0x80, 1).unwrap(), 2);
}

#[test]
fn a_refusal_names_the_command() {
    let (qtest, _peer) = scripted(LONG, &["FAIL Unknown command 'clock_step'\n", "OK little\n"]);
    let error = qtest.clock_step(None).unwrap_err();
    assert!(matches!(&error, Error::Qemu(why) if why.contains("`clock_step`")), "{error}");
    qtest.flush().unwrap();
}

#[test]
fn interrupts_reach_every_eventfd_of_a_line() {
    let (qtest, mut peer) = pair(LONG);
    let [a, b, other] = [(); 3].map(|()| Arc::new(EventFd::new().unwrap()));
    qtest.on_irq(11, &a);
    qtest.on_irq(11, &b);
    qtest.on_irq(10, &other);
    peer.write_all(b"IRQ raise 11\n").unwrap();
    assert!(a.wait(Some(LONG)).unwrap() && b.wait(Some(LONG)).unwrap());
    assert!(qtest.irq_level(11) && !qtest.irq_level(10));
    // An eventfd that is added while the line is raised is signalled, also when added again.
    let late = Arc::new(EventFd::new().unwrap());
    qtest.on_irq(11, &late);
    assert_eq!(late.drain(), 1);
    assert_eq!((a.drain(), b.drain(), late.drain(), other.drain()), (1, 1, 0, 0));
    drop(a);
    peer.write_all(b"IRQ lower 11\nIRQ raise 11\n").unwrap();
    assert!(b.wait(Some(LONG)).unwrap());
}

#[test]
fn long_transfers_are_split() {
    let (qtest, mut peer) = pair(LONG);
    let answer = thread::spawn(move || {
        let mut reader = BufReader::new(peer.try_clone().unwrap());
        let mut line = String::new();
        let mut lines = Vec::new();
        for bytes in [4096, 4096, 8] {
            line.clear();
            reader.read_line(&mut line).unwrap();
            lines.push(line.clone());
            peer.write_all(format!("OK 0x{}\n", "5a".repeat(bytes)).as_bytes()).unwrap();
        }
        for _ in 0..2 {
            line.clear();
            reader.read_line(&mut line).unwrap();
            lines.push(line[..22].to_owned());
            peer.write_all(b"OK\n").unwrap();
        }
        lines
    });
    assert_eq!(qtest.read_bytes(0x1000, 8200).unwrap(), vec![0x5a; 8200]);
    qtest.write_bytes(0x1000, &[0; 2050]).unwrap();
    assert_eq!(
        answer.join().unwrap(),
        [
            "read 0x1000 0x1000\n",
            "read 0x2000 0x1000\n",
            "read 0x3000 0x8\n",
            "write 0x1000 0x800 0x0",
            "write 0x1800 0x2 0x000",
        ]
    );
}

#[test]
fn the_clock_runs_in_real_time_and_steps_never_pile_up() {
    let (qtest, mut peer) = pair(LONG);
    let steps = thread::spawn(move || {
        let mut reader = BufReader::new(peer.try_clone().unwrap());
        let mut line = String::new();
        let mut total = 0;
        let mut steps = 0;
        while reader.read_line(&mut line).unwrap_or(0) > 0 {
            let ns = line.trim_end().strip_prefix("clock_step 0x").unwrap();
            total += u64::from_str_radix(ns, 16).unwrap();
            steps += 1;
            line.clear();
            if steps == 3 {
                // QEMU is busy: no second step may be sent meanwhile.
                thread::sleep(Duration::from_millis(50));
                assert!(reader.buffer().is_empty());
                assert_eq!(rustix::io::ioctl_fionread(&peer).unwrap(), 0);
            }
            if peer.write_all(format!("OK {total}\n").as_bytes()).is_err() {
                break;
            }
        }
        (steps, total)
    });
    let started = Instant::now();
    qtest.run_clock(Duration::from_millis(1)).unwrap();
    thread::sleep(Duration::from_millis(150));
    qtest.run_clock(Duration::from_millis(5)).unwrap();
    thread::sleep(Duration::from_millis(50));
    let elapsed = started.elapsed();
    qtest.close();
    let (steps, total) = steps.join().unwrap();
    assert!((10..200).contains(&steps), "{steps}");
    let total = Duration::from_nanos(total);
    assert!(total <= elapsed + Duration::from_millis(5), "{total:?} of {elapsed:?}");
    assert!(total >= elapsed - Duration::from_millis(60), "{total:?} of {elapsed:?}");
}

#[test]
fn the_clock_needs_the_qtest_accelerator() {
    let (qtest, _peer) = scripted(LONG, &["FAIL Unknown command 'clock_step'\n"]);
    assert!(matches!(qtest.run_clock(SHORT), Err(Error::Qemu(_))));
}

#[test]
fn connecting_waits_for_the_socket_and_for_an_answer() {
    let directory = std::env::temp_dir().join(format!("virtnic-qtest-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let path = directory.join("qtest");
    let started = Instant::now();
    let error = QTest::connect(&path, SHORT).unwrap_err();
    assert!(matches!(&error, Error::Timeout(why) if why.contains("-qtest unix:")), "{error}");
    assert!(started.elapsed() >= SHORT);
    let late = path.clone();
    let peer = thread::spawn(move || {
        thread::sleep(SHORT);
        let listener = UnixListener::bind(&late).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        let mut request = [0; 11];
        peer.read_exact(&mut request).unwrap();
        assert_eq!(&request, b"endianness\n");
        peer.write_all(b"OK little\n").unwrap();
        listener
    });
    let qtest = QTest::connect(&path, LONG).unwrap();
    let listener = peer.join().unwrap();
    qtest.close();
    // It accepts but does not answer, because another client is connected to QEMU.
    let error = QTest::connect(&path, SHORT).unwrap_err();
    assert!(matches!(&error, Error::Timeout(why) if why.contains("another client")), "{error}");
    drop(listener);
    // The listener has ended, or never existed.
    for path in [&path, &directory.join("nobody")] {
        let started = Instant::now();
        let error = QTest::connect_to_running(path, LONG, None).unwrap_err();
        assert!(
            matches!(&error, Error::QemuDied(why) if why.contains("nobody listens")),
            "{error}"
        );
        assert!(started.elapsed() < LONG);
    }
    let long = directory.join("x".repeat(120));
    assert!(matches!(QTest::connect(&long, SHORT), Err(Error::Invalid(_))));
    std::fs::remove_dir_all(&directory).unwrap();
}
