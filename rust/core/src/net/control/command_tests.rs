//! Commands to a device in this process: for what no backend of the tests offers, and for devices
//! that refuse or answer nonsense.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use crate::memory::{PageRequest, PageSize, Placement, Region, RegionOptions};
use crate::net::{HashTypes, PortOptions, Rss};
use crate::notify::{Doorbell, EventFd};
use crate::virtio::Status;
use crate::virtio::negotiation::Preferences;
use crate::virtio::ring::RingOptions;
use crate::virtio::ring::testing::{Device, SplitDevice};
use crate::virtio::transport::{QueueAddresses, Transport};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

const PAIRS: u16 = 2;
const CONTROL: u16 = 2 * PAIRS;
const SIZE: u16 = 64;

/// A device with registers in memory, whose control queue a thread serves.
struct Fake {
    offered: Features,
    /// What it does not offer any more.
    withdrawn: Mutex<Features>,
    status: AtomicU8,
    queues: Mutex<BTreeMap<u16, QueueAddresses>>,
    resets: Mutex<Vec<u16>>,
    /// Whether it was reset: what it knows of its queues is of the past.
    fresh: AtomicBool,
    /// Whether a status was written that nobody has read back.
    posted: AtomicBool,
    /// Whether it leaves commands alone for now.
    busy: AtomicBool,
    kick: Arc<EventFd>,
}

impl Transport for Fake {
    fn device_features(&self) -> Result<Features> {
        Ok(self.offered - *self.withdrawn.lock().unwrap())
    }
    fn set_driver_features(&self, features: Features) -> Result<()> {
        assert_eq!(features - self.offered, Features::NONE);
        Ok(())
    }
    fn status(&self) -> Result<Status> {
        self.posted.store(false, Ordering::Relaxed);
        Ok(Status::from_bits_retain(self.status.load(Ordering::Relaxed)))
    }
    fn set_status(&self, status: Status) -> Result<()> {
        self.status.store(status.bits(), Ordering::Relaxed);
        self.posted.store(true, Ordering::Relaxed);
        self.fresh.fetch_or(status.is_empty(), Ordering::Release);
        Ok(())
    }
    fn read_config(&self, offset: usize, out: &mut [u8]) -> Result<()> {
        let mut config = [0; 28];
        config[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
        config[8..10].copy_from_slice(&PAIRS.to_le_bytes());
        config[17] = 40;
        config[18..20].copy_from_slice(&128u16.to_le_bytes());
        config[20..24].copy_from_slice(&0x3fu32.to_le_bytes());
        out.copy_from_slice(&config[offset..offset + out.len()]);
        Ok(())
    }
    fn write_config(&self, _: usize, _: &[u8]) -> Result<()> {
        Ok(())
    }
    fn queue_count(&self) -> Result<u16> {
        Ok(CONTROL + 1)
    }
    fn queue_max_size(&self, queue: u16) -> Result<u16> {
        Ok(if queue <= CONTROL { SIZE } else { 0 })
    }
    fn setup_queue(&self, queue: u16, addresses: &QueueAddresses) -> Result<()> {
        self.queues.lock().unwrap().insert(queue, *addresses);
        Ok(())
    }
    fn reset_queue(&self, queue: u16) -> Result<()> {
        self.queues.lock().unwrap().remove(&queue).unwrap();
        self.resets.lock().unwrap().push(queue);
        Ok(())
    }
    fn doorbell(&self, queue: u16) -> Result<Doorbell> {
        Ok(if queue == CONTROL { Doorbell::Event(self.kick.clone()) } else { Doorbell::Silent })
    }
    fn set_config_vector(&self, _: u16) -> Result<()> {
        Ok(())
    }
    fn take_isr(&self) -> Result<u8> {
        Ok(0)
    }
    fn alive(&self) -> Result<()> {
        Ok(())
    }
}

/// A port on a fake device, and the commands that came.
struct Rig {
    port: Option<Port>,
    fake: Arc<Fake>,
    commands: Arc<Mutex<Vec<Vec<u8>>>>,
    answer: Arc<AtomicU8>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Rig {
    fn new(features: Features, pairs: u16) -> Self {
        let region = Region::new(&RegionOptions {
            size: 4 << 20,
            pages: PageRequest::Exactly(PageSize::Base),
            placement: Placement::Virtual,
            node: None,
            directory: None,
            buffer_size: 2048,
            jumbo_buffers: Some(2),
            jumbo_size: None,
        })
        .unwrap();
        let fake = Arc::new(Fake {
            withdrawn: Mutex::new(Features::NONE),
            offered: features | Features::VERSION_1 | Features::CTRL_VQ | Features::MQ,
            status: AtomicU8::new(0),
            queues: Mutex::default(),
            resets: Mutex::default(),
            fresh: AtomicBool::new(false),
            posted: AtomicBool::new(false),
            busy: AtomicBool::new(false),
            kick: Arc::new(EventFd::new().unwrap()),
        });
        let commands: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let (answer, stop) = (Arc::new(AtomicU8::new(0)), Arc::new(AtomicBool::new(false)));
        let thread = std::thread::spawn({
            let (fake, commands) = (fake.clone(), commands.clone());
            let (answer, stop, region) = (answer.clone(), stop.clone(), region.clone());
            move || {
                let mut device: Option<SplitDevice> = None;
                while !stop.load(Ordering::Acquire) {
                    let _ = fake.kick.wait(Some(Duration::from_millis(100)));
                    fake.kick.drain();
                    if fake.fresh.swap(false, Ordering::AcqRel) {
                        device = None;
                    }
                    let Some(at) = fake.queues.lock().unwrap().get(&CONTROL).copied() else {
                        continue;
                    };
                    let device = device.get_or_insert_with(|| {
                        let addresses = (at.descriptors, at.driver, at.device);
                        SplitDevice::new(&region, addresses, &RingOptions::new(at.size))
                    });
                    while !fake.busy.load(Ordering::Acquire)
                        && let Some(chain) = device.take()
                    {
                        let mut bytes = Vec::new();
                        for part in chain.parts.iter().filter(|part| !part.writable) {
                            bytes.extend(device.view().read(part.iova, part.len as usize));
                        }
                        commands.lock().unwrap().push(bytes);
                        let ack = chain.parts.last().unwrap();
                        assert!(ack.writable && ack.len == 1);
                        device.view().write(ack.iova, &[answer.load(Ordering::Relaxed)]);
                        device.put(&chain, 1);
                        device.flush();
                    }
                }
            }
        });
        let preferences = Preferences { prefer: features, ..Preferences::default() };
        let options = PortOptions { pairs, preferences, ..PortOptions::default() };
        let port = Port::start(fake.clone(), region.pool(), options).unwrap();
        commands.lock().unwrap().clear();
        Self { port: Some(port), fake, commands, answer, stop, thread: Some(thread) }
    }

    fn port(&self) -> &Port {
        self.port.as_ref().unwrap()
    }
    /// Has the device answer nothing for now, and the port not wait for it; or both as ever.
    fn make_busy(&mut self, busy: bool) {
        let control = self.port.as_mut().unwrap().control.as_mut().unwrap();
        control.set_timeout(Duration::from_millis(if busy { 10 } else { 30_000 }));
        self.fake.busy.store(busy, Ordering::Release);
        self.fake.kick.signal();
    }
    /// The commands since the last time.
    fn came(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.commands.lock().unwrap())
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let pool = self.port().pool().clone();
        self.port = None;
        self.stop.store(true, Ordering::Release);
        self.thread.take().unwrap().join().unwrap();
        assert_eq!(pool.free(), pool.count());
    }
}

#[test]
fn coalescing_is_told_as_the_specification_says() {
    let rig = Rig::new(Features::NOTF_COAL | Features::VQ_NOTF_COAL, 2);
    let coalescing = Coalescing { packets: 8, microseconds: 0x0102 };
    rig.port().set_coalescing(true, coalescing).unwrap();
    rig.port().set_coalescing(false, coalescing).unwrap();
    rig.port().set_queue_coalescing(1, false, coalescing).unwrap();
    let body = [8, 0, 0, 0, 2, 1, 0, 0];
    assert_eq!(
        rig.came(),
        [
            [&[6, 1][..], &body].concat(),
            [&[6, 0][..], &body].concat(),
            [&[6, 2, 3, 0, 0, 0][..], &body].concat(),
        ]
    );
    assert!(matches!(rig.port().set_queue_coalescing(2, true, coalescing), Err(Error::Invalid(_))));
}

#[test]
fn guest_offloads_and_hashes_are_told() {
    let rig = Rig::new(Features::CTRL_GUEST_OFFLOADS | Features::RSS | Features::HASH_REPORT, 2);
    rig.port().set_guest_offloads(Features::NONE).unwrap();
    assert_eq!(rig.came(), [[&[5, 0][..], &[0; 8]].concat()]);
    let mut rss =
        Rss { key: vec![9; 40], types: HashTypes::UDPV4, table: vec![1, 0], unclassified: 1 };
    rig.port().set_rss(&rss).unwrap();
    let mut config = vec![4, 1, 4, 0, 0, 0, 1, 0, 1, 0, 1, 0, 0, 0, 2, 0, 40];
    config.extend([9; 40]);
    assert_eq!(rig.came(), [config]);
    assert_eq!(rig.port().rss(), Some(rss.clone()));
    rss.table.clear();
    rig.port().set_rss(&rss).unwrap();
    let mut config = vec![4, 2, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 40];
    config.extend([9; 40]);
    assert_eq!(rig.came(), [config]);
    rig.port().set_queues(1).unwrap();
    assert_eq!((rig.came(), rig.port().rss()), (vec![vec![4, 0, 1, 0]], None));
}

#[test]
fn a_refusal_names_the_command_and_breaks_nothing() {
    let rig = Rig::new(Features::CTRL_VLAN, 2);
    for (answer, words) in [(1, "refused VLAN_ADD(7) (acknowledgement 1)"), (0xff, "without")] {
        rig.answer.store(answer, Ordering::Relaxed);
        match rig.port().add_vlan(7) {
            Err(Error::Refused(why)) => assert!(why.contains(words), "{why}"),
            other => panic!("{other:?}"),
        }
        assert!(matches!(rig.port().set_queues(1), Err(Error::Refused(_))));
        assert_eq!(rig.port().active_pairs(), 2);
        assert!(rig.port().pairs()[1].is_active());
    }
    rig.answer.store(0, Ordering::Relaxed);
    rig.port().remove_vlan(7).unwrap();
    assert_eq!(rig.came().last().unwrap(), &[2, 1, 7, 0]);
}

#[test]
fn a_queue_is_reset_alone() {
    let rig = Rig::new(Features::RING_RESET, 2);
    let pool = rig.port().pool().clone();
    let free = pool.free();
    rig.port().stop_pair(1).unwrap();
    rig.port().stop_pair(1).unwrap();
    assert_eq!(*rig.fake.resets.lock().unwrap(), [2, 3]);
    assert_eq!(pool.free(), free + usize::from(SIZE));
    assert!(matches!(
        rig.port().pairs()[1].send(&mut [[0u8; 60]].as_slice()),
        Err(Error::Closed(_))
    ));
    assert_eq!(rig.port().send(&mut [[0u8; 60]].as_slice()).unwrap().0, 1);
    // Not used after the start, for the device was told to use one pair meanwhile.
    rig.port().set_queues(1).unwrap();
    rig.port().start_pair(1).unwrap();
    assert!(!rig.port().pairs()[1].is_active());
    rig.port().set_queues(2).unwrap();
    assert_eq!(rig.port().pairs()[1].send(&mut [[0u8; 60]].as_slice()).unwrap().0, 1);
    assert_eq!(rig.fake.queues.lock().unwrap().len(), 5);
}

#[test]
fn more_pairs_than_the_device_has() {
    let rig = Rig::new(Features::NONE, 1);
    let options = PortOptions { pairs: 3, ..PortOptions::default() };
    match Port::start(rig.fake.clone(), rig.port().pool().clone(), options) {
        Err(Error::Invalid(why)) => assert!(why.contains("3 queue pairs") && why.contains("has 2")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_restart_tells_the_device_all_again() {
    let rig = Rig::new(
        Features::NOTF_COAL
            | Features::VQ_NOTF_COAL
            | Features::CTRL_VLAN
            | Features::CTRL_RX
            | Features::CTRL_MAC_ADDR
            | Features::CTRL_GUEST_OFFLOADS
            | Features::RSS,
        2,
    );
    let port = rig.port();
    let free = port.pool().free();
    let (mac, coalescing) = (Mac([2, 0, 0, 0, 0, 9]), Coalescing { packets: 1, microseconds: 2 });
    port.set_mac(mac).unwrap();
    port.set_receive_mode(ReceiveMode::Promiscuous, true).unwrap();
    port.set_receive_mode(ReceiveMode::Promiscuous, false).unwrap();
    port.set_mac_filter(&[], &[Mac([1, 0, 0, 0, 0, 1])]).unwrap();
    for vlan in [5, 0x206, 5] {
        port.add_vlan(vlan).unwrap();
    }
    port.remove_vlan(5).unwrap();
    port.set_guest_offloads(Features::NONE).unwrap();
    port.set_queue_coalescing(0, true, coalescing).unwrap();
    port.set_queue_coalescing(1, false, coalescing).unwrap();
    port.set_coalescing(false, coalescing).unwrap();
    let rss = Rss { key: vec![9], types: HashTypes::UDPV4, table: vec![1, 0], unclassified: 1 };
    port.set_rss(&rss).unwrap();
    let steering = rig.came().pop().unwrap();
    assert_eq!(port.send(&mut [[0u8; 60], [1; 60]].as_slice()).unwrap().0, 2);
    port.restart().unwrap();
    let values = [1, 0, 0, 0, 2, 0, 0, 0];
    assert_eq!(
        rig.came(),
        [
            vec![0, 0, 0],
            vec![1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 1],
            vec![1, 1, 2, 0, 0, 0, 0, 9],
            vec![2, 0, 6, 2],
            vec![4, 0, 2, 0],
            steering,
            [&[5, 0][..], &[0; 8]].concat(),
            [&[6, 0][..], &values].concat(),
            [&[6, 2, 0, 0, 0, 0][..], &values].concat(),
        ]
    );
    let stats = port.stats();
    assert_eq!((stats.tx.packets, stats.tx.completed, stats.tx.lost), (2, 0, 2));
    assert_eq!((port.pool().free(), port.restarts(), port.is_away()), (free, 1, false));
    assert_eq!((port.mac(), port.rss(), port.active_pairs()), (mac, Some(rss), 2));
    // What set_queues() ends is not brought back.
    port.set_queues(1).unwrap();
    port.restart().unwrap();
    assert!(rig.came().iter().all(|command| command[..2] != [4, 1]));
}

#[test]
fn a_restart_that_the_device_refuses_breaks_the_port_and_can_be_tried_again() {
    let rig = Rig::new(Features::CTRL_VLAN, 2);
    rig.port().add_vlan(7).unwrap();
    rig.answer.store(1, Ordering::Relaxed);
    assert!(matches!(rig.port().restart(), Err(Error::Refused(_))));
    match rig.port().send(&mut [[0u8; 60]].as_slice()) {
        Err(Error::Device(why)) => assert!(why.contains("not brought up again"), "{why}"),
        other => panic!("{other:?}"),
    }
    rig.answer.store(0, Ordering::Relaxed);
    rig.port().restart().unwrap();
    assert_eq!(rig.port().send(&mut [[0u8; 60]].as_slice()).unwrap().0, 1);
    assert_eq!(rig.port().restarts(), 1);
}

#[test]
fn a_device_that_says_so_is_reset() {
    let rig = Rig::new(Features::NONE, 1);
    assert!(!rig.port().restart_if_needed().unwrap());
    rig.fake.status.fetch_or(Status::DEVICE_NEEDS_RESET.bits(), Ordering::Relaxed);
    assert!(rig.port().restart_if_needed().unwrap());
    assert_eq!(rig.fake.status.load(Ordering::Relaxed), 0xf);
}

#[test]
fn a_device_that_has_less_is_asked_for_no_more() {
    let tso = Features::GUEST_TSO4 | Features::GUEST_CSUM;
    let rings = Features::EVENT_IDX;
    let others = Features::CTRL_GUEST_OFFLOADS | Features::CTRL_VLAN | Features::MRG_RXBUF;
    let rig = Rig::new(others | tso | rings, 2);
    let port = rig.port();
    assert!(port.accepted().contains(others | tso | rings), "{}", port.accepted());
    port.set_guest_offloads(tso).unwrap();
    let before = port.pairs()[1].addresses();
    rig.came();
    *rig.fake.withdrawn.lock().unwrap() = Features::GUEST_CSUM | rings;
    port.restart().unwrap();
    // Segments cannot be had without checksums.
    assert_eq!(rig.came(), [vec![4, 0, 2, 0], [&[5, 0][..], &[0; 8]].concat()]);
    assert_eq!(port.accepted() & (tso | rings), Features::NONE);
    assert_ne!(port.pairs()[1].addresses(), before);
    let outcomes = port.outcomes();
    let tso = outcomes.iter().find(|outcome| outcome.name == "GUEST_TSO4").unwrap();
    assert!(tso.offered && !tso.accepted && tso.why.contains("came back without"), "{tso:?}");
    assert_eq!(port.send(&mut [[0u8; 60]].as_slice()).unwrap().0, 1);
    // What the driver is built on is another thing.
    *rig.fake.withdrawn.lock().unwrap() = Features::CTRL_VLAN;
    match port.restart() {
        Err(Error::Device(why)) => assert!(why.contains("without CTRL_VLAN"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_queue_that_was_stopped_stays_so() {
    let rig = Rig::new(Features::RING_RESET, 2);
    rig.port().stop_pair(1).unwrap();
    rig.fake.resets.lock().unwrap().clear();
    rig.port().restart().unwrap();
    assert_eq!(*rig.fake.resets.lock().unwrap(), [2, 3]);
    assert!(!rig.port().pairs()[1].is_active());
    rig.port().start_pair(1).unwrap();
    assert_eq!(rig.port().pairs()[1].send(&mut [[0u8; 60]].as_slice()).unwrap().0, 1);
}

#[test]
fn while_the_device_is_away_queues_are_full_and_empty_and_commands_wait() {
    let rig = Rig::new(Features::CTRL_VLAN, 1);
    let port = rig.port();
    port.set_recoverable(true);
    assert_eq!(port.send(&mut [[0u8; 60]].as_slice()).unwrap().0, 1);
    port.suspend().unwrap();
    assert!(port.is_away());
    assert_eq!(port.pool().free(), port.pool().count());
    assert_eq!(port.send(&mut [[0u8; 60]].as_slice()).unwrap().0, 0);
    let mut burst = crate::net::Burst::new(port.pool().clone());
    assert_eq!(port.recv(64, &mut burst).unwrap(), 0);
    let fake: Arc<dyn Transport> = rig.fake.clone();
    std::thread::scope(|scope| {
        let command = scope.spawn(|| port.add_vlan(7));
        std::thread::sleep(Duration::from_millis(20));
        assert!(!command.is_finished());
        port.reattach(fake).unwrap();
        command.join().unwrap().unwrap();
    });
    assert_eq!(rig.came(), [[2, 0, 7, 0]]);
    assert_eq!(port.send(&mut [[0u8; 60]].as_slice()).unwrap().0, 1);
    let stats = port.stats();
    assert_eq!((stats.tx.packets, stats.tx.lost, stats.tx.ring_full), (2, 1, 1));
    port.suspend().unwrap();
    port.abandon("it is enough");
    match port.recv(64, &mut burst) {
        Err(Error::Device(why)) => assert!(why.contains("it is enough"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_command_that_is_carried_out_late_is_known() {
    let mut rig = Rig::new(Features::CTRL_MAC_ADDR | Features::CTRL_VLAN, 1);
    let (before, late) = (rig.port().mac(), Mac([2, 0, 0, 0, 0, 0x77]));
    rig.make_busy(true);
    let error = rig.port().set_mac(late).unwrap_err();
    assert!(matches!(error, Error::Timeout(_)) && error.to_string().contains("later"), "{error}");
    assert_eq!(rig.port().mac(), before, "nobody knows yet");
    let error = rig.port().add_vlan(3).unwrap_err();
    assert!(error.to_string().contains("was not asked"), "{error}");

    rig.make_busy(false);
    // This one waits until the queue is free.
    rig.port().add_vlan(4).unwrap();
    assert_eq!(rig.port().mac(), late);
    let vlan = vec![2, 0, 4, 0];
    let mac = [&[1, 1][..], &late.0].concat();
    assert_eq!(rig.came(), [mac.clone(), vlan.clone()]);
    // The next device is told what this one knows.
    rig.port().restart().unwrap();
    assert_eq!(rig.came(), [mac, vlan]);
}

#[test]
fn whoever_asks_for_the_address_hears_of_a_late_change() {
    let mut rig = Rig::new(Features::CTRL_MAC_ADDR, 1);
    let late = Mac([2, 0, 0, 0, 0, 0x77]);
    rig.make_busy(true);
    rig.port().set_mac(late).unwrap_err();
    rig.make_busy(false);
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while rig.port().mac() != late {
        assert!(std::time::Instant::now() < deadline, "the answer was not looked for");
        std::thread::yield_now();
    }
}

#[test]
fn a_late_refusal_changes_nothing() {
    let mut rig = Rig::new(Features::CTRL_MAC_ADDR | Features::CTRL_VLAN, 1);
    let before = rig.port().mac();
    rig.make_busy(true);
    rig.port().set_mac(Mac([2, 0, 0, 0, 0, 0x77])).unwrap_err();
    rig.answer.store(1, Ordering::Relaxed);
    rig.make_busy(false);
    assert!(matches!(rig.port().add_vlan(3), Err(Error::Refused(_))));
    assert_eq!(rig.port().mac(), before);
    rig.answer.store(0, Ordering::Relaxed);
    rig.came();
    rig.port().restart().unwrap();
    assert_eq!(rig.came(), [[0; 0]; 0]);
}

/// The queues go by what was given up, so the device has to.
#[test]
fn a_late_change_of_the_queues_is_undone() {
    let mut rig = Rig::new(Features::CTRL_VLAN, 2);
    rig.make_busy(true);
    rig.port().set_queues(1).unwrap_err();
    assert_eq!(rig.port().active_pairs(), 2);
    rig.make_busy(false);
    rig.port().add_vlan(3).unwrap();
    assert_eq!(rig.came(), [[4, 0, 1, 0], [2, 0, 3, 0], [4, 0, 2, 0]]);
    rig.port().add_vlan(4).unwrap();
    assert_eq!(rig.came(), [[2, 0, 4, 0]], "once");
}

/// A write returns before the device has done it, and QEMU drops frames that come before DRIVER_OK.
#[test]
fn a_started_port_runs() {
    let rig = Rig::new(Features::NONE, 1);
    let posted = || rig.fake.posted.load(Ordering::Relaxed);
    assert!(!posted());
    rig.port().restart().unwrap();
    assert!(!posted());
}
