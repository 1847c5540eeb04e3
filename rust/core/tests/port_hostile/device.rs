//! A port with fake registers that accept everything, and the device side of its rings.

use std::sync::{Arc, Mutex};
use virtnic::Result;
use virtnic::memory::{Iova, PageRequest, PageSize, Placement, Pool, Region, RegionOptions};
use virtnic::net::{Port, PortOptions};
use virtnic::notify::Doorbell;
use virtnic::virtio::ring::RingOptions;
use virtnic::virtio::ring::testing::Device;
use virtnic::virtio::transport::{QueueAddresses, Transport};
use virtnic::virtio::{Features, Status};

pub const SIZE: u16 = 64;
pub const HEADER: usize = 12;

/// The kind of rings, and whether a frame may span several buffers.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub event_idx: bool,
    pub in_order: bool,
    pub merge: bool,
}

impl Kind {
    pub const ALL: [Self; 4] = [
        Self { event_idx: false, in_order: false, merge: false },
        Self { event_idx: true, in_order: false, merge: true },
        Self { event_idx: false, in_order: true, merge: true },
        Self { event_idx: true, in_order: true, merge: false },
    ];
}

/// A ring format with its device.
pub trait Format: Device + Send {
    const PACKED: bool;
}

impl Format for virtnic::virtio::ring::testing::SplitDevice {
    const PACKED: bool = false;
}

impl Format for virtnic::virtio::ring::testing::PackedDevice {
    const PACKED: bool = true;
}

/// Registers that accept every value.
struct Registers {
    features: Features,
    status: Mutex<Status>,
    queues: Mutex<Vec<(u16, QueueAddresses)>>,
}

impl Transport for Registers {
    fn reset_queue(&self, _: u16) -> Result<()> {
        Ok(())
    }
    fn device_features(&self) -> Result<Features> {
        Ok(self.features)
    }
    fn set_driver_features(&self, _: Features) -> Result<()> {
        Ok(())
    }
    fn status(&self) -> Result<Status> {
        Ok(*self.status.lock().unwrap())
    }
    fn set_status(&self, status: Status) -> Result<()> {
        *self.status.lock().unwrap() = status;
        Ok(())
    }
    fn read_config(&self, _: usize, out: &mut [u8]) -> Result<()> {
        out.fill(0x52);
        Ok(())
    }
    fn write_config(&self, _: usize, _: &[u8]) -> Result<()> {
        Ok(())
    }
    fn queue_count(&self) -> Result<u16> {
        Ok(2)
    }
    fn queue_max_size(&self, _: u16) -> Result<u16> {
        Ok(SIZE)
    }
    fn setup_queue(&self, queue: u16, addresses: &QueueAddresses) -> Result<()> {
        self.queues.lock().unwrap().push((queue, *addresses));
        Ok(())
    }
    fn doorbell(&self, _: u16) -> Result<Doorbell> {
        Ok(Doorbell::Silent)
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

pub fn pool() -> Arc<Pool> {
    let options = RegionOptions {
        size: 4 << 20,
        pages: PageRequest::Exactly(PageSize::Base),
        placement: Placement::At(Iova(1 << 36)),
        node: None,
        directory: None,
        buffer_size: 2048,
        jumbo_buffers: Some(4),
        jumbo_size: None,
    };
    Region::new(&options).unwrap().pool()
}

/// A started port, and the device side of its receive and transmit queues.
pub struct Rig<D> {
    pub port: Port,
    pub pool: Arc<Pool>,
    pub rx: D,
    pub tx: D,
    /// The addresses of each queue's areas.
    pub queues: [QueueAddresses; 2],
}

impl<D: Format> Rig<D> {
    pub fn new(pool: &Arc<Pool>, kind: Kind) -> Self {
        Self::with(pool, kind, Features::NONE)
    }

    /// Creates a port with additional features, such as offloads.
    pub fn with(pool: &Arc<Pool>, kind: Kind, more: Features) -> Self {
        let mut offered = Features::VERSION_1 | more;
        for (wanted, feature) in [
            (D::PACKED, Features::RING_PACKED),
            (kind.event_idx, Features::EVENT_IDX),
            (kind.in_order, Features::IN_ORDER),
            (kind.merge, Features::MRG_RXBUF),
        ] {
            if wanted {
                offered |= feature;
            }
        }
        let registers = Arc::new(Registers {
            features: offered,
            status: Mutex::new(Status::empty()),
            queues: Mutex::default(),
        });
        let mut options = PortOptions::default();
        // Request all features: some are only negotiated on request.
        options.preferences.insist = offered;
        let port = Port::start(registers.clone(), pool.clone(), options).unwrap();
        let queue = |index: u16| {
            let queues = registers.queues.lock().unwrap();
            queues.iter().find(|(queue, _)| *queue == index).unwrap().1
        };
        let queues = [queue(0), queue(1)];
        let ring = RingOptions {
            size: SIZE,
            event_idx: kind.event_idx,
            indirect: false,
            in_order: kind.in_order,
        };
        let [rx, tx] =
            queues.map(|at| D::new(pool.region(), (at.descriptors, at.driver, at.device), &ring));
        Self { port, pool: pool.clone(), rx, tx, queues }
    }

    /// Stops the port, and checks that all buffers are returned.
    pub fn finish(self) {
        self.port.stop();
        drop(self.port);
        accounted(&self.pool);
    }
}

pub fn accounted(pool: &Pool) {
    assert_eq!(pool.free(), pool.count(), "buffers are missing");
    assert_eq!(pool.jumbo_free(), pool.jumbo_count(), "jumbo buffers are missing");
}

/// The sizes in bytes of the areas that the driver and the device write.
pub fn areas(packed: bool, at: &QueueAddresses) -> [(Iova, usize); 3] {
    let size = usize::from(at.size);
    let descriptors = (at.descriptors, 16 * size);
    if packed {
        [descriptors, (at.driver, 4), (at.device, 4)]
    } else {
        [descriptors, (at.driver, 6 + 2 * size), (at.device, 6 + 8 * size)]
    }
}

/// Pseudo-random numbers; the same seed gives the same numbers.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 11) as usize % limit
    }
}
