//! Commands to a device in this process: for what no backend of the tests offers, and for devices
//! that refuse or answer nonsense.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use crate::memory::{PageRequest, PageSize, Placement, Region, RegionOptions};
use crate::net::{HashTypes, PortOptions, Rss};
use crate::notify::{Doorbell, EventFd};
use crate::virtio::Status;
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
    status: AtomicU8,
    queues: Mutex<BTreeMap<u16, QueueAddresses>>,
    resets: Mutex<Vec<u16>>,
    kick: Arc<EventFd>,
}

impl Transport for Fake {
    fn device_features(&self) -> Result<Features> {
        Ok(self.offered)
    }
    fn set_driver_features(&self, features: Features) -> Result<()> {
        assert_eq!(features - self.offered, Features::NONE);
        Ok(())
    }
    fn status(&self) -> Result<Status> {
        Ok(Status::from_bits_retain(self.status.load(Ordering::Relaxed)))
    }
    fn set_status(&self, status: Status) -> Result<()> {
        self.status.store(status.bits(), Ordering::Relaxed);
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
        })
        .unwrap();
        let fake = Arc::new(Fake {
            offered: features | Features::VERSION_1 | Features::CTRL_VQ | Features::MQ,
            status: AtomicU8::new(0),
            queues: Mutex::default(),
            resets: Mutex::default(),
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
                    let Some(at) = fake.queues.lock().unwrap().get(&CONTROL).copied() else {
                        continue;
                    };
                    let device = device.get_or_insert_with(|| {
                        let addresses = (at.descriptors, at.driver, at.device);
                        SplitDevice::new(&region, addresses, &RingOptions::new(at.size))
                    });
                    while let Some(chain) = device.take() {
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
        let options = PortOptions { pairs, ..PortOptions::default() };
        let port = Port::start(fake.clone(), region.pool(), options).unwrap();
        commands.lock().unwrap().clear();
        Self { port: Some(port), fake, commands, answer, stop, thread: Some(thread) }
    }

    fn port(&self) -> &Port {
        self.port.as_ref().unwrap()
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
