//! QTest, the ivshmem server and child processes with a real QEMU whose vCPU is halted.
//!
//! The QEMU is `$VIRTNIC_QEMU`, or `qemu-system-x86_64`. Without a QEMU the tests print that they
//! are skipped; with `CI=true` they fail.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use virtnic::Error;
use virtnic::ivshmem::Server;
use virtnic::memory::{PageRequest, PageSize, Placement, Region, RegionOptions};
use virtnic::notify::EventFd;
use virtnic::process::{Child, spawn};
use virtnic::qtest::QTest;

const LONG: Duration = Duration::from_secs(20);
const SIZE: usize = 4 << 20;

/// Where the tests put the BARs of the ivshmem device.
const DOORBELL_BAR: u64 = 0xfe00_0000;
const MEMORY_BAR: u64 = 0x1_0000_0000;

/// A scratch directory; removed when dropped.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("virtnic-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn qemu() -> Option<OsString> {
    let qemu = std::env::var_os("VIRTNIC_QEMU").unwrap_or_else(|| "qemu-system-x86_64".into());
    let runs = Command::new(&qemu)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if runs {
        return Some(qemu);
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "there is no {}", qemu.display());
    eprintln!("SKIPPED: there is no {}", qemu.display());
    None
}

/// 64 KiB of firmware that halts the vCPU: cli; hlt; jmp back.
fn firmware(directory: &Path) -> PathBuf {
    let mut code = vec![0xff; 0x1_0000];
    code[0xfff0..0xfff4].copy_from_slice(&[0xfa, 0xf4, 0xeb, 0xfd]);
    let path = directory.join("parked.bin");
    std::fs::write(&path, code).unwrap();
    path
}

struct Qemu {
    // Dropped in this order: the connection first, the directory last.
    qtest: QTest,
    child: Child,
    stderr: PathBuf,
    directory: Directory,
}

fn start(accel: &str, more: &[&str]) -> Option<Qemu> {
    start_in(Directory::new(), accel, more)
}

fn start_in(directory: Directory, accel: &str, more: &[&str]) -> Option<Qemu> {
    let mut argv = vec![qemu()?];
    let firmware = firmware(&directory.0);
    let socket = directory.0.join("qtest");
    let qtest = format!("unix:{},server=on,wait=off", socket.display());
    let fixed = [
        "-nodefaults",
        "-display",
        "none",
        "-vga",
        "none",
        "-m",
        "16",
        "-machine",
        "pc",
        "-accel",
        accel,
        "-qtest-log",
        "/dev/null",
        "-qtest",
        &qtest,
        "-bios",
        firmware.to_str().unwrap(),
    ];
    argv.extend(fixed.iter().chain(more).map(OsString::from));
    let stderr = directory.0.join("stderr");
    let child =
        spawn(argv, std::env::vars_os().collect(), std::fs::File::create(&stderr).unwrap().into())
            .unwrap();
    match QTest::connect(&socket, LONG) {
        Ok(qtest) => Some(Qemu { qtest, child, stderr, directory }),
        Err(error) => panic!("{error}\n{}", std::fs::read_to_string(&stderr).unwrap()),
    }
}

impl Qemu {
    fn config_address(&self, slot: u32, offset: u32) {
        self.qtest.port_out(0xcf8, 4, 1 << 31 | slot << 11 | offset).unwrap();
    }
    fn config_read(&self, slot: u32, offset: u32) -> u32 {
        self.config_address(slot, offset);
        self.qtest.port_in(0xcfc, 4).unwrap()
    }
    fn config_write(&self, slot: u32, offset: u32, value: u32) {
        self.config_address(slot, offset);
        self.qtest.port_out(0xcfc, 4, value).unwrap();
    }
    /// Finds the ivshmem device and places its BARs.
    fn place_ivshmem(&self) -> u32 {
        let slot = (0..32).find(|slot| self.config_read(*slot, 0) == 0x1110_1af4).unwrap();
        self.config_write(slot, 0x10, DOORBELL_BAR as u32);
        self.config_write(slot, 0x18, MEMORY_BAR as u32);
        self.config_write(slot, 0x1c, (MEMORY_BAR >> 32) as u32);
        self.config_write(slot, 0x04, 0x6);
        slot
    }
    fn ring(&self, value: u32) {
        self.qtest.write(DOORBELL_BAR + 12, 4, u64::from(value)).unwrap();
    }
    fn words(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap()
    }
}

#[test]
fn port_io_and_mmio() {
    let Some(qemu) = start("tcg", &[]) else { return };
    // The host bridge and the ISA bridge of a 440FX.
    assert_eq!(qemu.config_read(0, 0), 0x1237_8086);
    assert_eq!(qemu.config_read(1, 0), 0x7000_8086);
    assert_eq!(qemu.config_read(31, 0), 0xffff_ffff);
    qemu.config_address(0, 0);
    assert_eq!(qemu.qtest.port_in(0xcfc, 2).unwrap(), 0x8086);
    assert_eq!(qemu.qtest.port_in(0xcfe, 1).unwrap(), 0x37);
    // RAM, in every access width, and a long transfer that is split.
    let (at, value) = (0x10_0000, 0x0123_4567_89ab_cdef);
    qemu.qtest.write(at, 8, value).unwrap();
    assert_eq!(qemu.qtest.read(at, 8).unwrap(), value);
    assert_eq!(qemu.qtest.read(at, 4).unwrap(), value & 0xffff_ffff);
    assert_eq!(qemu.qtest.read(at, 2).unwrap(), 0xcdef);
    assert_eq!(qemu.qtest.read(at, 1).unwrap(), 0xef);
    assert_eq!(qemu.qtest.read(at + 4, 4).unwrap(), 0x0123_4567);
    let data: Vec<u8> = (0..10_000u32).map(|n| (n * 7) as u8).collect();
    qemu.qtest.write_bytes(at + 1, &data).unwrap();
    assert_eq!(qemu.qtest.read_bytes(at + 1, data.len()).unwrap(), data);
    // Addresses without a device, at both ends of the address space.
    assert_eq!(qemu.qtest.read(u64::MAX, 1).unwrap() & !0xff, 0);
    qemu.qtest.port_in(0xffff, 4).unwrap();
    qemu.qtest.flush().unwrap();
    assert_eq!(qemu.qtest.death(), None);
}

#[test]
fn errors_of_qemu_are_returned() {
    let Some(qemu) = start("tcg", &[]) else { return };
    let error = qemu.qtest.clock_step(Some(1)).unwrap_err();
    assert!(matches!(&error, Error::Qemu(why) if why.contains("FAIL")), "{error}");
    assert!(qemu.qtest.run_clock(Duration::from_millis(1)).is_err());
    qemu.qtest.flush().unwrap();
}

#[test]
fn interrupts_of_the_ioapic_arrive() {
    let Some(qemu) =
        start("tcg", &["-device", "isa-serial,chardev=null", "-chardev", "null,id=null"])
    else {
        return;
    };
    let event = Arc::new(EventFd::new().unwrap());
    qemu.qtest.intercept("ioapic").unwrap();
    qemu.qtest.on_irq(4, &event);
    // The first UART (IRQ 4): OUT2 connects its interrupt, "transmitter empty" raises it.
    qemu.qtest.port_out(0x3fc, 1, 0x08).unwrap();
    qemu.qtest.port_out(0x3f9, 1, 0x02).unwrap();
    assert!(event.wait(Some(LONG)).unwrap());
    assert!(qemu.qtest.irq_level(4));
    // Reading the identification register lowers it, before the reply is sent.
    assert_eq!(qemu.qtest.port_in(0x3fa, 1).unwrap() & 0xf, 0x2);
    assert!(!qemu.qtest.irq_level(4));
}

#[test]
fn the_death_of_qemu_is_detected_at_once() {
    let Some(qemu) = start("tcg", &[]) else { return };
    let event = Arc::new(EventFd::new().unwrap());
    qemu.qtest.watch(&event);
    let killed = Instant::now();
    qemu.child.kill();
    assert!(event.wait(Some(LONG)).unwrap());
    assert!(matches!(qemu.qtest.port_in(0xcfc, 4), Err(Error::QemuDied(_))));
    assert!(killed.elapsed() < Duration::from_secs(1));
    assert_eq!(qemu.child.wait(Some(LONG)).unwrap(), Some(-9));
}

#[test]
fn a_stopped_qemu_is_a_timeout_and_works_again() {
    let Some(qemu) = start("tcg", &[]) else { return };
    let socket = qemu.directory.0.join("qtest");
    qemu.qtest.close();
    let qtest = QTest::connect(&socket, Duration::from_secs(2)).unwrap();
    let signal = |name: &str| {
        let pid = qemu.child.pid().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    };
    signal("-STOP");
    assert!(matches!(qtest.port_in(0xcfc, 4), Err(Error::Timeout(_))));
    signal("-CONT");
    assert_eq!(qtest.read(0xffff_fff0, 1).unwrap(), 0xfa);
}

#[test]
fn the_clock_runs_with_the_qtest_accelerator() {
    let Some(program) = qemu() else { return };
    let probe = Directory::new();
    let has = spawn(
        vec![
            program,
            "-machine".into(),
            "none".into(),
            "-accel".into(),
            "qtest".into(),
            "-display".into(),
            "none".into(),
            "-nodefaults".into(),
            "-qtest-log".into(),
            "/dev/null".into(),
            "-qtest".into(),
            format!("unix:{},server=on,wait=off", probe.0.join("q").display()).into(),
        ],
        std::env::vars_os().collect(),
        std::fs::File::create(probe.0.join("stderr")).unwrap().into(),
    )
    .unwrap();
    if has.wait(Some(Duration::from_millis(700))).unwrap().is_some() {
        eprintln!("SKIPPED: this QEMU has no qtest accelerator");
        return;
    }
    drop(has);
    let qemu = start("qtest", &[]).unwrap();
    let before = qemu.qtest.clock_step(Some(1)).unwrap();
    assert_eq!(qemu.qtest.clock_step(Some(1000)).unwrap(), before + 1000);
    let started = Instant::now();
    qemu.qtest.run_clock(Duration::from_millis(2)).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    // The test's own two steps of 1 ns and one of 1,000 ns do not count.
    let now = qemu.qtest.clock_step(Some(1)).unwrap();
    let (ran, real) = (Duration::from_nanos(now - before - 1002), started.elapsed());
    assert!(ran <= real && real - ran < Duration::from_millis(100), "{ran:?} of {real:?}");
}

fn region() -> Arc<Region> {
    Region::new(&RegionOptions {
        size: SIZE,
        pages: PageRequest::Exactly(PageSize::Base),
        placement: Placement::Virtual,
        node: None,
        directory: None,
        buffer_size: 2048,
        jumbo_buffers: None,
        jumbo_size: None,
    })
    .unwrap()
}

/// A listening server with `vectors` vectors in use.
fn serve(path: &Path, memory: Arc<Region>, vectors: u16) -> Server {
    let server = Server::new(path, memory);
    server.listen().unwrap();
    for _ in 0..vectors {
        server.take_vector().unwrap();
    }
    server
}

/// A QEMU with an ivshmem device whose BARs are placed. Each of our vectors is a peer with one
/// vector.
fn with_ivshmem(server: &Path) -> Option<Qemu> {
    let chardev = format!("socket,id=iv,path={}", server.display());
    let device = "ivshmem-doorbell,chardev=iv,vectors=1";
    let qemu = start("tcg", &["-chardev", &chardev, "-device", device])?;
    qemu.place_ivshmem();
    Some(qemu)
}

#[test]
fn ivshmem_shares_the_memory_and_rings_our_eventfds() {
    let directory = Directory::new();
    let path = directory.0.join("ivshmem");
    let memory = region();
    for vectors in [1, 64, 1024] {
        let server = serve(&path, Arc::clone(&memory), vectors);
        let Some(qemu) = with_ivshmem(&path) else { return };
        // Both sides see the same bytes.
        memory.write(SIZE - 8, b"from us!").unwrap();
        assert_eq!(qemu.qtest.read_bytes(MEMORY_BAR + SIZE as u64 - 8, 8).unwrap(), b"from us!");
        qemu.qtest.write_bytes(MEMORY_BAR + 4096, b"from QEMU").unwrap();
        qemu.qtest.flush().unwrap();
        let mut bytes = [0; 9];
        memory.read(4096, &mut bytes).unwrap();
        assert_eq!(&bytes, b"from QEMU");
        // Each doorbell signals its own eventfd.
        let last = vectors - 1;
        let event = server.vector(last).unwrap();
        qemu.ring(Server::doorbell_value(last));
        assert!(event.wait(Some(LONG)).unwrap());
        qemu.qtest.flush().unwrap();
        assert_eq!(event.drain(), 1);
        for other in 0..last {
            assert_eq!(server.vector(other).unwrap().drain(), 0);
        }
        // A doorbell of a peer that does not exist does nothing.
        qemu.ring(Server::doorbell_value(vectors));
        qemu.ring(77 << 16);
        qemu.qtest.flush().unwrap();
        assert_eq!(event.drain(), 0);
        assert_eq!(qemu.words(), "");
    }
}

/// The first thing this QEMU does is ring the last doorbell, so our eventfds must be connected as
/// soon as the device exists.
#[test]
fn doorbells_work_as_soon_as_the_device_exists() {
    let directory = Directory::new();
    let path = directory.0.join("ivshmem");
    let server = serve(&path, region(), 512);
    let event = server.vector(511).unwrap();
    for _ in 0..5 {
        let Some(qemu) = with_ivshmem(&path) else { return };
        qemu.ring(Server::doorbell_value(511));
        qemu.qtest.flush().unwrap();
        assert_eq!(event.drain(), 1);
    }
}

#[test]
fn one_server_serves_several_qemus_again_and_again() {
    let directory = Directory::new();
    let path = directory.0.join("ivshmem");
    let memory = region();
    let server = serve(&path, Arc::clone(&memory), 4);
    let (vector, event) = server.take_vector().unwrap();
    let Some(first) = with_ivshmem(&path) else { return };
    for round in 0..3u8 {
        let second = with_ivshmem(&path).unwrap();
        first.qtest.write(MEMORY_BAR, 1, u64::from(round)).unwrap();
        first.qtest.flush().unwrap();
        assert_eq!(second.qtest.read(MEMORY_BAR, 1).unwrap(), u64::from(round));
        first.ring(Server::doorbell_value(vector));
        second.ring(Server::doorbell_value(vector));
        first.qtest.flush().unwrap();
        second.qtest.flush().unwrap();
        assert_eq!(event.drain(), 2);
        // IVPosition: no QEMU has one of our peer numbers.
        let numbers = [&first, &second].map(|q| q.qtest.read(DOORBELL_BAR + 8, 4).unwrap());
        assert_eq!(numbers, [0, 0]);
        second.child.kill();
    }
}

/// A running QEMU is told of new vectors, even if the server no longer listens.
#[test]
fn vectors_are_added_while_qemu_runs() {
    let directory = Directory::new();
    let path = directory.0.join("ivshmem");
    let server = serve(&path, region(), 1);
    let Some(qemu) = with_ivshmem(&path) else { return };
    server.stop_listening();
    assert!(!path.exists());
    for count in [1, 2, 300] {
        let new: Vec<_> = (0..count).map(|_| server.take_vector().unwrap()).collect();
        let began = Instant::now();
        // The last vector is announced last. Until then, its doorbell does nothing.
        let (last, event) = new.last().unwrap();
        while event.drain() == 0 {
            assert!(began.elapsed() < LONG);
            server.tell();
            qemu.ring(Server::doorbell_value(*last));
            qemu.qtest.flush().unwrap();
        }
        for (vector, event) in &new {
            qemu.ring(Server::doorbell_value(*vector));
            qemu.qtest.flush().unwrap();
            assert_eq!(event.drain(), 1, "vector {vector} of {count}");
        }
    }
    // QEMU already knows vectors that were released.
    let before = server.vectors();
    server.give_vector(7);
    let (again, event) = server.take_vector().unwrap();
    qemu.ring(Server::doorbell_value(again));
    qemu.qtest.flush().unwrap();
    assert_eq!((again, event.drain(), server.vectors()), (7, 1, before));
    // Known vectors keep working without the connection.
    server.hang_up();
    qemu.ring(Server::doorbell_value(again));
    qemu.qtest.flush().unwrap();
    assert_eq!(event.drain(), 1);
    assert_eq!(qemu.words(), "");
}

#[test]
fn a_qemu_outlives_the_server() {
    let directory = Directory::new();
    let path = directory.0.join("ivshmem");
    let server = serve(&path, region(), 4);
    let event = server.vector(3).unwrap();
    let value = Server::doorbell_value(3);
    let Some(qemu) = with_ivshmem(&path) else { return };
    drop(server);
    assert!(!path.exists());
    qemu.ring(value);
    assert!(event.wait(Some(LONG)).unwrap());
    assert_eq!(qemu.qtest.death(), None);
}

const PARENT: &str = "VIRTNIC_TEST_PARENT";

/// Not a test itself: `a_child_ends_when_its_parent_is_killed` runs it in another process.
#[test]
fn parent_that_is_killed() {
    if std::env::var_os(PARENT).is_none() {
        return;
    }
    // Start the child from a thread that ends at once. That must not end the child.
    let qemu = std::thread::spawn(|| start("tcg", &[])).join().unwrap().unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(qemu.child.wait(Some(Duration::ZERO)).unwrap(), None);
    println!("\nPID {} {}", qemu.child.pid(), qemu.directory.0.display());
    std::thread::sleep(LONG);
    panic!("nobody killed the parent");
}

#[test]
fn a_child_ends_when_its_parent_is_killed() {
    if qemu().is_none() {
        return;
    }
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "parent_that_is_killed", "--nocapture"])
        .env(PARENT, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(parent.stdout.take().unwrap()).lines();
    let line = lines.map(Result::unwrap).find(|l| l.starts_with("PID ")).unwrap();
    let mut words = line.split(' ').skip(1);
    let child: u32 = words.next().unwrap().parse().unwrap();
    let _left = Directory(words.next().unwrap().into());
    let alive = || {
        std::fs::read_to_string(format!("/proc/{child}/stat"))
            .is_ok_and(|stat| !stat.rsplit(')').next().unwrap().starts_with(" Z"))
    };
    assert!(alive());
    parent.kill().unwrap();
    parent.wait().unwrap();
    let killed = Instant::now();
    while alive() {
        assert!(killed.elapsed() < Duration::from_secs(5), "{child} lives on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// `cargo test -p virtnic --release --test qtest_qemu -- --ignored --nocapture measure`
#[test]
#[ignore = "prints figures"]
fn measure() {
    let Some(qemu) = start("tcg", &[]) else { return };
    let qtest = &qemu.qtest;
    let percentile = |times: &mut Vec<Duration>, p: usize| {
        times.sort_unstable();
        times[times.len() * p / 100]
    };
    let time = |f: &dyn Fn()| {
        let started = Instant::now();
        f();
        started.elapsed()
    };
    for _ in 0..3 {
        let mut trips: Vec<_> =
            (0..5000).map(|_| time(&|| assert!(qtest.port_in(0xcfc, 4).is_ok()))).collect();
        let mut posts = Vec::new();
        let posted = time(&|| {
            for _ in 0..5000 {
                qtest.port_out(0xcf8, 4, 0).unwrap();
            }
            qtest.flush().unwrap();
        });
        for _ in 0..1000 {
            posts.push(time(&|| qtest.write(0x10_0000, 2, 0).unwrap()));
            std::thread::sleep(Duration::from_micros(100));
        }
        println!(
            "round trip p50 {:?} p99 {:?}; pipelined {:?} each; one post p50 {:?}",
            percentile(&mut trips, 50),
            percentile(&mut trips, 99),
            posted / 5000,
            percentile(&mut posts, 50),
        );
    }
}
