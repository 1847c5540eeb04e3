//! Starting a device (section 3.1.1): features, queues, interrupts.

use crate::memory::Pool;
use crate::net::config::{Mac, NetConfig};
use crate::net::control::queue::ControlQueue;
use crate::net::device::Device;
use crate::net::interrupts::intx::IntxDispatcher;
use crate::net::interrupts::{Events, Vectors};
use crate::net::lifecycle::large_frames;
use crate::net::lifecycle::legacy;
use crate::net::packet::header::{Front, HASH_HEADER_LEN};
use crate::net::port::{Port, Setup};
use crate::net::queue::pair::QueuePair;
use crate::net::queue::{AnyRing, Common, RxQueue, TxQueue};
use crate::notify::{Doorbell, EventFd};
use crate::virtio::negotiation::Preferences;
use crate::virtio::ring::RingOptions;
use crate::virtio::transport::{NO_VECTOR, Transport};
use crate::virtio::{Features, Status};
use crate::{Error, Result};
use std::sync::Arc;

/// Largest default queue size.
const DEFAULT_QUEUE_SIZE: u16 = 1024;
/// One command at a time takes three descriptors.
const CONTROL_QUEUE_SIZE: u16 = 16;

/// Options of a port.
#[derive(Clone, Debug, Default)]
pub struct PortOptions {
    /// Number of queue pairs; 0 means 1.
    pub pairs: u16,
    /// Entries of each queue; 0: the device's own size, at most 1,024.
    pub queue_size: u16,
    /// Features to require, prefer and refuse.
    pub preferences: Preferences,
    /// The eventfds that interrupts signal; none: polling.
    pub events: Option<Events>,
    /// MSI-X table entries.
    pub vectors: Option<Vectors>,
    /// The eventfd of the INTx line, if used instead of MSI-X.
    pub intx: Option<Arc<EventFd>>,
    /// How to kick each receive and transmit queue, by index, if not through the transport.
    pub doorbells: Option<Vec<Doorbell>>,
    /// The MAC address for a device without one.
    pub mac: Mac,
}

impl PortOptions {
    fn check(&self, pairs: usize) -> Result<()> {
        let enough = |what: &str, has: usize, wanted: usize| {
            if has >= wanted {
                return Ok(());
            }
            Err(Error::Invalid(format!("{pairs} queue pairs need {wanted} {what}, not {has}")))
        };
        if let Some(events) = &self.events {
            enough("pairs of eventfds", events.pairs.len(), pairs)?;
        }
        if let Some(vectors) = &self.vectors {
            enough("pairs of MSI-X vectors", vectors.pairs.len(), pairs)?;
        }
        if let Some(doorbells) = &self.doorbells {
            enough("doorbells", doorbells.len(), 2 * pairs)?;
        }
        Ok(())
    }
}

impl Port {
    /// Starts the device and posts receive buffers.
    ///
    /// # Errors
    /// [`Error::Invalid`] for options that do not fit the device, [`Error::Device`] if the device
    /// refuses or misbehaves, [`Error::MemoryUnavailable`], [`Error::QemuDied`], [`Error::Refused`]
    /// if the device does not enable its queue pairs.
    pub fn start(
        transport: Arc<dyn Transport>,
        pool: Arc<Pool>,
        options: PortOptions,
    ) -> Result<Self> {
        transport.set_status(Status::empty())?;
        let started = bring_up(transport.clone(), pool, options);
        if started.is_err() {
            // Best effort: the caller gets the first error.
            let _ = transport.set_status(Status::FAILED);
            let _ = transport.set_status(Status::empty());
        }
        started
    }
}

fn bring_up(transport: Arc<dyn Transport>, pool: Arc<Pool>, options: PortOptions) -> Result<Port> {
    let wanted = options.pairs.max(1);
    options.check(wanted.into())?;
    let mut status = Status::ACKNOWLEDGE | Status::DRIVER;
    transport.set_status(status)?;
    let offered = transport.device_features()?;
    let mut preferences = options.preferences;
    if options.doorbells.is_some() {
        refuse_data(&mut preferences)?;
    }
    if needs_merging(transport.as_ref(), offered - preferences.refuse, &pool)? {
        preferences.prefer |= Features::MRG_RXBUF;
    }
    large_frames::plan(offered, &mut preferences, &pool)?;
    let (accepted, outcomes) = legacy::agree(transport.as_ref(), offered, &preferences)?;
    transport.set_driver_features(accepted)?;
    if !transport.is_legacy() {
        status |= Status::FEATURES_OK;
        transport.set_status(status)?;
        if !transport.status()?.contains(Status::FEATURES_OK) {
            return Err(Error::Device(format!(
                "the device refused the features {accepted} (FEATURES_OK did not stay set)"
            )));
        }
    }
    let config = NetConfig::read(transport.as_ref(), accepted, options.mac)?;
    let merge = accepted.contains(Features::MRG_RXBUF);
    check_mtu(config.mtu, merge, &pool)?;
    check_pairs(wanted, &config, accepted, transport.pairs().is_some())?;
    let device = Arc::new(Device::new(transport.clone(), pool, accepted, options.events.clone()));
    let config_vector = options.vectors.as_ref().map(|vectors| vectors.config);
    if let Some(vector) = config_vector {
        transport.set_config_vector(vector)?;
    }
    let pairs = (0..wanted)
        .map(|index| make_pair(&device, &options, index))
        .collect::<Result<Box<[_]>>>()?;
    let control = if accepted.contains(Features::CTRL_VQ) {
        Some(make_control(&device, config.control_queue())?)
    } else {
        None
    };
    let intx = match (&options.intx, &options.events) {
        (Some(line), Some(events)) => {
            Some(IntxDispatcher::start(line.clone(), transport.clone(), events.clone())?)
        }
        _ => None,
    };
    transport.set_status(status | Status::DRIVER_OK)?;
    for pair in &pairs {
        pair.rx.wait_for_it().refill();
    }
    transport.settled()?;
    let setup = Setup {
        config,
        config_vector,
        doorbells_given: options.doorbells.is_some(),
        insisted: preferences.insist,
    };
    let port = Port::new(device, pairs, control, setup, outcomes, intx);
    if wanted > 1 {
        port.set_queues(wanted)?;
    }
    Ok(port)
}

/// An eventfd carries no data.
fn refuse_data(preferences: &mut Preferences) -> Result<()> {
    let told = Features::NOTIFICATION_DATA | Features::NOTIF_CONFIG_DATA;
    let insisted = preferences.insist & told;
    if insisted != Features::NONE {
        return Err(Error::Invalid(format!(
            "{insisted} cannot be had where the backend is kicked by eventfds, which carry no \
             data; use notify=\"qtest\""
        )));
    }
    preferences.refuse |= told;
    Ok(())
}

fn make_pair(device: &Arc<Device>, options: &PortOptions, index: u16) -> Result<QueuePair> {
    let accepted = device.accepted();
    let vectors = match &options.vectors {
        Some(vectors) => vectors.pairs.get(usize::from(index)).copied(),
        None => None,
    };
    let (rx_vector, tx_vector) = vectors.unwrap_or((NO_VECTOR, NO_VECTOR));
    let hashes = accepted.contains(Features::HASH_REPORT);
    let transport = device.transport();
    let legacy = transport.is_legacy();
    let header_len = if hashes { HASH_HEADER_LEN } else { legacy::header_len(legacy, accepted) };
    let queue = |index: u16, vector: u16| {
        let given = options.doorbells.as_ref().and_then(|all| all.get(usize::from(index)));
        let doorbell = match given {
            Some(doorbell) => doorbell.or(|| transport.doorbell(index))?,
            None => transport.doorbell(index)?,
        };
        let most = transport.queue_max_size(index)?;
        let size = if legacy {
            legacy::queue_size(index, options.queue_size, most)?
        } else {
            queue_size(index, options.queue_size, most)?
        };
        let ring = make_ring(&device.pool, frame_ring(accepted), size)?;
        let mut common = Common::new(index, ring, device.pool.clone(), doorbell, Arc::default())
            .with_header(header_len);
        common.disable_interrupts();
        let addresses = common.addresses(vector);
        transport.setup_queue(index, &addresses)?;
        Ok::<_, Error>((common, addresses))
    };
    let (rx, rx_addresses) = queue(2 * index, rx_vector)?;
    let (tx, tx_addresses) = queue(2 * index + 1, tx_vector)?;
    let rx = RxQueue::new(rx, accepted.contains(Features::MRG_RXBUF))
        .telling(device.too_long.clone())
        .with_front(Front::of(accepted, header_len));
    let tx = TxQueue::new(tx).with_features(accepted);
    let addresses = [rx_addresses, tx_addresses];
    Ok(QueuePair::new(device.clone(), index, rx, tx, addresses, hashes))
}

/// The control queue has no interrupt, because its callers wait for the reply.
fn make_control(device: &Device, index: u16) -> Result<ControlQueue> {
    let transport = device.transport();
    let most = transport.queue_max_size(index)?;
    let size = if transport.is_legacy() {
        legacy::queue_size(index, 0, most)?
    } else {
        queue_size(index, most.min(CONTROL_QUEUE_SIZE), most)?
    };
    let ring = make_ring(&device.pool, device.accepted(), size)?;
    let control = ControlQueue::new(index, ring, transport.doorbell(index)?, &device.pool)?;
    transport.setup_queue(index, &control.addresses())?;
    Ok(control)
}

/// A frame is one descriptor, so indirect tables would only take memory.
pub(in crate::net) fn frame_ring(accepted: Features) -> Features {
    accepted - Features::INDIRECT_DESC
}

pub(in crate::net) fn make_ring(
    pool: &Arc<Pool>,
    accepted: Features,
    size: u16,
) -> Result<AnyRing> {
    let options = RingOptions {
        size,
        event_idx: accepted.contains(Features::EVENT_IDX),
        indirect: accepted.contains(Features::INDIRECT_DESC),
        in_order: accepted.contains(Features::IN_ORDER),
    };
    AnyRing::new(accepted.contains(Features::RING_PACKED), pool.region(), &options)
}

fn check_pairs(wanted: u16, config: &NetConfig, accepted: Features, direct: bool) -> Result<()> {
    let most = config.max_pairs;
    if wanted > most {
        let why = if direct {
            "that is what its backend has"
        } else if accepted.contains(Features::MQ) {
            "give the netdev more (queues=)"
        } else {
            "it offers no MQ: its netdev has one queue (give it queues=), or cannot have more"
        };
        return Err(Error::Invalid(format!(
            "{wanted} queue pairs were asked for, but the device has {most}: {why}"
        )));
    }
    if wanted > 1 && !direct && !accepted.contains(Features::MQ) {
        return Err(Error::Invalid(format!(
            "{wanted} queue pairs were asked for, but without the feature MQ there is one"
        )));
    }
    Ok(())
}

/// The longest frame for an MTU: with an Ethernet header and a VLAN tag.
fn longest_frame(mtu: u16) -> usize {
    usize::from(mtu) + 18
}

/// Whether the offered MTU allows frames that fit only a jumbo buffer.
fn needs_merging(transport: &dyn Transport, offered: Features, pool: &Pool) -> Result<bool> {
    // Reading before feature negotiation is allowed (section 3.1.1, step 4).
    let config = NetConfig::read(transport, offered & Features::MTU, Mac::default())?;
    let frame = longest_frame(config.mtu);
    Ok(frame > pool.capacity() && frame <= pool.jumbo_capacity())
}

/// Checks that frames of the MTU fit a buffer, or if they are merged a jumbo buffer.
pub(in crate::net) fn check_mtu(mtu: u16, merge: bool, pool: &Pool) -> Result<()> {
    let frame = longest_frame(mtu);
    let room = if merge { pool.largest_frame() } else { pool.capacity() };
    if frame <= room {
        return Ok(());
    }
    let why = match (merge, pool.jumbo_count()) {
        (_, 0) => "the memory has no jumbo buffers",
        (true, _) => "a jumbo buffer no more than that",
        (false, _) => "MRG_RXBUF is not in force, so frames are not merged in jumbo buffers",
    };
    Err(Error::Invalid(format!(
        "the device's MTU of {mtu} makes frames of up to {frame} bytes, but a buffer holds {room} \
         and {why}; make the memory with a buffer_size of at least {frame}"
    )))
}

/// The size of a queue: the requested one, or the device's.
fn queue_size(index: u16, wanted: u16, most: u16) -> Result<u16> {
    if most == 0 {
        return Err(Error::Device(format!("the device has no queue {index}")));
    }
    let size = if wanted == 0 { most.min(DEFAULT_QUEUE_SIZE) } else { wanted };
    if size > most {
        return Err(Error::Invalid(format!(
            "queue {index} can have at most {most} entries, not {size}"
        )));
    }
    if !size.is_power_of_two() {
        return Err(Error::Invalid(format!("the queue size must be a power of two, not {size}")));
    }
    Ok(size)
}
