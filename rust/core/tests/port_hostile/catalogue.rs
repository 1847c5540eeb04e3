//! Every field that a device can write, with every kind of invalid value, and the effect on the
//! port.
//!
//! An invalid value either has no effect (the driver does not read the field, or every value is
//! valid), or breaks the port with an error that names the rule. In both cases all buffers are
//! returned when the port has stopped.

use super::device::{Format, HEADER, Kind, Rig, SIZE, areas, pool};
use virtnic::Error;
use virtnic::net::Burst;
use virtnic::virtio::ring::testing::{Chain, PackedDevice, SplitDevice, Width};

const POSTED: u32 = 2048 + HEADER as u32;
const FRAME: u32 = 60;

/// The effect of an invalid value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// None: traffic continues.
    None,
    /// The port breaks, with an error that contains this.
    Breaks(&'static str),
}

use Effect::{Breaks, None as Nothing};

/// One way to write invalid values. `Used` writes an entry for the oldest buffer with changed id
/// and length; the others set a field or an area directly.
#[derive(Clone, Copy, Debug)]
enum Lie {
    /// Sets all fields of this name.
    Field(&'static str, u64),
    /// Adds this to `used.idx`.
    Index(u16),
    /// Fills one of the three areas with a byte, from an offset up to a number of bytes.
    Area(usize, usize, usize, u8),
    /// Computes id and length of a used entry from the correct ones.
    Used(fn(u32) -> u32, fn(u32) -> u32),
    /// Writes an entry twice.
    Twice,
    /// Sets the flags of the next used descriptor to the correct ones, with these bits flipped.
    Flags(u16),
}

const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

const SAME: fn(u32) -> u32 = |value| value;

/// Both directions of a split ring.
const SPLIT: &[(Lie, Effect)] = &[
    // used.flags and avail_event: at most one kick more or less.
    (Lie::Field("used.flags", 0), Nothing),
    (Lie::Field("used.flags", 1), Nothing),
    (Lie::Field("used.flags", 0xffff), Nothing),
    (Lie::Field("used.avail_event", 0), Nothing),
    (Lie::Field("used.avail_event", 0x7fff), Nothing),
    (Lie::Field("used.avail_event", 0xffff), Nothing),
    // used.idx: beyond the available buffers, or backwards.
    (Lie::Index(SIZE + 1), Breaks("used.idx went from")),
    (Lie::Index(0x8000), Breaks("used.idx went from")),
    (Lie::Index(0xffff), Breaks("used.idx went from")),
    (Lie::Index(0), Nothing),
    // used.ring: entries beyond used.idx are not read.
    (Lie::Field("used.ring.id", 0xffff_ffff), Nothing),
    (Lie::Field("used.ring.len", 0xffff_ffff), Nothing),
    (Lie::Used(|_| SIZE as u32, SAME), Breaks("out of range")),
    (Lie::Used(|_| u32::MAX, SAME), Breaks("out of range")),
    (Lie::Used(|id| id | 0x1_0000, SAME), Breaks("out of range")),
    (Lie::Used(|id| id | 0x8000_0000, SAME), Breaks("out of range")),
    (Lie::Twice, Breaks("not a buffer that is with the device")),
    // The driver's own areas, which a device only reads: descriptors, avail.flags, avail.idx,
    // avail.ring, used_event.
    (Lie::Area(0, 0, usize::MAX, 0xff), Nothing),
    (Lie::Area(0, 0, usize::MAX, 0), Nothing),
    (Lie::Area(1, 0, 2, 0xff), Nothing),
    (Lie::Area(1, 2, 2, 0xff), Nothing),
    (Lie::Area(1, 4, 2 * SIZE as usize, 0xff), Nothing),
    (Lie::Area(1, 4 + 2 * SIZE as usize, 2, 0xff), Nothing),
];

const PACKED: &[(Lie, Effect)] = &[
    // Device event suppression: at most one kick more or less. Driver event suppression: not read.
    (Lie::Field("device_event.desc", 0xffff), Nothing),
    (Lie::Field("device_event.desc", 0x7fff), Nothing),
    (Lie::Field("device_event.flags", 0), Nothing),
    (Lie::Field("device_event.flags", 1), Nothing),
    (Lie::Field("device_event.flags", 2), Nothing),
    (Lie::Field("device_event.flags", 3), Nothing),
    (Lie::Field("device_event.flags", 0xffff), Nothing),
    (Lie::Area(1, 0, 4, 0xff), Nothing),
    // A descriptor that is not used: its address, length and id have no meaning.
    (Lie::Field("desc.addr", u64::MAX), Nothing),
    (Lie::Field("desc.addr", 0), Nothing),
    (Lie::Field("desc.len", 0xffff_ffff), Nothing),
    (Lie::Field("desc.id", 0xffff), Nothing),
    // A descriptor is only used if AVAIL = USED = wrap counter.
    (Lie::Flags(AVAIL), Nothing),
    (Lie::Flags(USED), Nothing),
    (Lie::Flags(AVAIL | USED), Nothing),
    (Lie::Flags(0xffff), Nothing),
    (Lie::Flags(0x7fff), Nothing),
    (Lie::Flags(0xff7f), Nothing),
    (Lie::Used(|_| SIZE as u32, SAME), Breaks("out of range")),
    (Lie::Used(|_| 0xffff, SAME), Breaks("out of range")),
    (Lie::Used(|id| id | 0x8000, SAME), Breaks("out of range")),
    (Lie::Twice, Breaks("not a buffer that is with the device")),
];

/// Receive rings, where the device writes into buffers.
const RECEIVE: &[(Lie, Effect)] = &[
    (Lie::Used(SAME, |_| POSTED), Nothing),
    (Lie::Used(SAME, |_| POSTED + 1), Breaks("takes only 2060")),
    (Lie::Used(SAME, |_| 0x8000_0000), Breaks("takes only 2060")),
    (Lie::Used(SAME, |_| u32::MAX), Breaks("takes only 2060")),
    (Lie::Used(SAME, |_| 0), Breaks("less than the 12 of the header")),
    (Lie::Used(SAME, |_| 11), Breaks("less than the 12 of the header")),
    (Lie::Used(SAME, |_| 12), Nothing),
];

/// Transmit rings, where some devices report the length that they read (section 2.7.8.2).
const TRANSMIT: &[(Lie, Effect)] =
    &[(Lie::Used(SAME, |_| 1), Nothing), (Lie::Used(SAME, |_| u32::MAX), Nothing)];

struct Case<D> {
    rig: Rig<D>,
    burst: Burst,
    receive: bool,
    /// Buffers used before.
    used: usize,
    /// Chains that the device holds, oldest first.
    held: std::collections::VecDeque<Chain>,
}

impl<D: Format> Case<D> {
    /// A port whose rings have processed `used` buffers; the device holds everything available.
    fn new(kind: Kind, receive: bool, used: usize) -> Self {
        let pool = pool();
        let (burst, rig) = (Burst::new(pool.clone()), Rig::new(&pool, kind));
        let mut case = Self { rig, burst, receive, used, held: Default::default() };
        for _ in 0..used {
            case.offer();
            case.honest();
            case.act().unwrap();
        }
        // The test must not depend on the previous contents of the ring.
        case.offer();
        case
    }

    fn device(&mut self) -> &mut D {
        if self.receive { &mut self.rig.rx } else { &mut self.rig.tx }
    }

    /// Sends, and lets the device take everything available.
    fn offer(&mut self) {
        if !self.receive {
            while self.held.len() < 8 {
                let (sent, stop) = self.rig.port.send(&mut &[[0u8; FRAME as usize]][..]).unwrap();
                assert_eq!((sent, stop), (1, None));
                let chain = self.rig.tx.take().unwrap();
                self.held.push_back(chain);
            }
        }
        let taken = self.device().take_all();
        self.held.extend(taken);
    }

    /// Uses the oldest buffer correctly.
    fn honest(&mut self) {
        let chain = self.held.pop_front().unwrap();
        let written = if self.receive {
            // A header with num_buffers = 1.
            let header = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
            self.device().view().write(chain.parts[0].iova, &header);
            HEADER as u32 + FRAME
        } else {
            0
        };
        self.device().put(&chain, written);
        self.device().flush();
    }

    /// Receives and sends like a program. Returns the frames received.
    fn act(&mut self) -> virtnic::Result<usize> {
        if self.receive {
            let got = self.rig.port.recv(64, &mut self.burst);
            self.burst.clear();
            got
        } else {
            self.rig.port.reclaim().map(|()| 0)
        }
    }

    fn tell(&mut self, lie: Lie) {
        let queue = usize::from(!self.receive);
        match lie {
            Lie::Field(name, value) => {
                let fields: Vec<_> =
                    self.device().fields().into_iter().filter(|f| f.name == name).collect();
                assert!(!fields.is_empty(), "no field {name}");
                for field in fields {
                    self.device().view().set(field, value);
                }
            }
            Lie::Index(by) => {
                let fields = self.device().fields();
                let field = fields.into_iter().find(|f| f.name == "used.idx").unwrap();
                let value = self.device().view().get(field).wrapping_add(by.into());
                assert_eq!(field.width, Width::Two);
                self.device().view().set(field, value);
            }
            Lie::Area(area, offset, count, byte) => {
                let (at, len) = areas(D::PACKED, &self.rig.queues[queue])[area];
                let bytes = vec![byte; count.min(len - offset)];
                self.device().view().write(at.plus(offset as u64), &bytes);
            }
            Lie::Used(id, len) => {
                let chain = self.held.pop_front().unwrap();
                if self.receive {
                    let header = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
                    self.device().view().write(chain.parts[0].iova, &header);
                }
                let len = len(if self.receive { HEADER as u32 + FRAME } else { 0 });
                self.device().put_raw(id(chain.id.into()), len, chain.descriptors);
                self.device().flush();
            }
            Lie::Twice => {
                let chain = self.held.front().unwrap().clone();
                self.honest();
                self.device().put(&chain, HEADER as u32 + FRAME);
                self.device().flush();
            }
            Lie::Flags(wrong) => self.set_flags(self.used_flags() ^ wrong),
        }
    }

    /// AVAIL and USED of a used descriptor in this lap.
    fn used_flags(&self) -> u16 {
        if (self.used / usize::from(SIZE)).is_multiple_of(2) { AVAIL | USED } else { 0 }
    }

    /// Sets the flags of the next packed descriptor to be used.
    fn set_flags(&mut self, flags: u16) {
        let next = (self.used % usize::from(SIZE)) as u16;
        let fields = self.device().fields();
        let field = fields.into_iter().find(|f| f.name == "desc.flags" && f.index == next).unwrap();
        self.device().view().set(field, flags.into());
    }
}

/// Writes one invalid value and checks the effect on the port.
fn check<D: Format>(kind: Kind, receive: bool, used: usize, lie: Lie, effect: Effect) {
    let what = format!("{lie:?}, receive {receive}, after {used}, {kind:?}, {}", D::PACKED);
    let mut case = Case::<D>::new(kind, receive, used);
    case.tell(lie);
    let result = case.act();
    match effect {
        Nothing => {
            result.unwrap_or_else(|error| panic!("{what}: {error}"));
            case.honest();
            case.act().unwrap_or_else(|error| panic!("{what}: {error}"));
            // Checking for kicks and interrupts is still safe.
            for _ in 0..4 {
                let _ = case.rig.port.send(&mut &[[0u8; 60]][..]).unwrap();
            }
        }
        Breaks(words) => {
            let error = result.expect_err(&what);
            assert!(matches!(error, Error::Device(_)), "{what}: {error:?}");
            assert!(error.to_string().contains(words), "{what}: {error}");
            // The port stays broken in both directions, with the reason.
            for again in [
                case.rig.port.recv(64, &mut case.burst).map(drop),
                case.rig.port.send(&mut &[[0u8; 60]][..]).map(drop),
                case.rig.port.reclaim(),
            ] {
                let again = again.expect_err(&what).to_string();
                assert!(again.contains("broken") && again.contains(words), "{what}: {again}");
            }
        }
    }
    case.burst.clear();
    drop(case.burst);
    case.rig.finish();
}

/// Positions at the start, within the second lap, and at the end of a lap.
const LAPS: [usize; 4] = [0, 5, SIZE as usize - 1, SIZE as usize + 7];

fn catalogue<D: Format>(both: &[(Lie, Effect)]) {
    for kind in Kind::ALL {
        for used in LAPS {
            for (receive, own) in [(true, RECEIVE), (false, TRANSMIT)] {
                for &(lie, effect) in both.iter().chain(own) {
                    check::<D>(kind, receive, used, lie, effect);
                }
            }
        }
    }
}

#[test]
fn every_field_of_a_split_ring() {
    catalogue::<SplitDevice>(SPLIT);
}

#[test]
fn every_field_of_a_packed_ring() {
    catalogue::<PackedDevice>(PACKED);
}

/// A packed device may use any descriptor at any time. If only the flags are changed, the driver
/// accepts the descriptor, since its id and length are those of a buffer that the device holds.
#[test]
fn a_packed_descriptor_with_only_its_flags_changed() {
    for used in LAPS {
        let mut case = Case::<PackedDevice>::new(Kind::ALL[0], true, used);
        case.set_flags(case.used_flags());
        assert_eq!(case.act().unwrap(), 1, "after {used}");
        case.rig.finish();
    }
}

/// The header of a received frame (section 5.1.6): only `num_buffers` is read, and only with
/// MRG_RXBUF. Hash and offload features are not negotiated, so their fields have no meaning.
fn header<D: Format>() {
    let fields = [
        ("flags", 0, 1),
        ("gso_type", 1, 1),
        ("hdr_len", 2, 2),
        ("gso_size", 4, 2),
        ("csum_start", 6, 2),
        ("csum_offset", 8, 2),
    ];
    for kind in Kind::ALL {
        for (name, offset, len) in fields {
            for byte in [0x01, 0x7f, 0x80, 0xff] {
                let mut case = Case::<D>::new(kind, true, 3);
                let at = case.held[0].parts[0].iova;
                let chain = case.held.pop_front().unwrap();
                let mut header = [0; HEADER];
                header[10] = 1;
                header[offset..offset + len].fill(byte);
                case.device().view().write(at, &header);
                case.device().put(&chain, HEADER as u32 + FRAME);
                case.device().flush();
                assert_eq!(case.act().unwrap(), 1, "{name} {byte:#x} {kind:?}");
                case.rig.finish();
            }
        }
        for says in [0u16, 1, 2, SIZE, SIZE + 1, 0x7fff, 0x8000, 0xffff] {
            let mut case = Case::<D>::new(kind, true, 3);
            let chain = case.held.pop_front().unwrap();
            let at = chain.parts[0].iova;
            case.device().view().write(at, &[0; HEADER]);
            case.device().view().write(at.plus(10), &says.to_le_bytes());
            case.device().put(&chain, HEADER as u32 + FRAME);
            case.device().flush();
            let result = case.act();
            match says {
                _ if !kind.merge => assert_eq!(result.unwrap(), 1, "{says}"),
                1 => assert_eq!(result.unwrap(), 1),
                2..=SIZE => assert_eq!(result.unwrap(), 0, "the rest is to come"),
                _ => {
                    let error = result.unwrap_err().to_string();
                    assert!(error.contains(&format!("{says} buffers")), "{error}");
                }
            }
            case.rig.finish();
        }
    }
}

#[test]
fn every_field_of_the_packet_header() {
    header::<SplitDevice>();
    header::<PackedDevice>();
}

/// The driver writes the whole header of each frame it sends, whatever the buffer contained.
fn sent_header<D: Format>() {
    let pool = pool();
    let mut rig = Rig::<D>::new(&pool, Kind::ALL[1]);
    for round in 0..3 * usize::from(SIZE) {
        assert_eq!(rig.port.send(&mut &[[round as u8; 60]][..]).unwrap().0, 1);
        let chain = rig.tx.take().unwrap();
        let [part] = chain.parts[..] else { panic!("one part") };
        assert!(!part.writable && part.len == FRAME + HEADER as u32);
        let bytes = rig.tx.view().read(part.iova, HEADER + 1);
        assert_eq!((&bytes[..HEADER], bytes[HEADER]), (&[0; HEADER][..], round as u8));
        // The device writes to a buffer that it must only read.
        rig.tx.view().write(part.iova, &[0xff; HEADER + 60]);
        rig.tx.put(&chain, 0);
        rig.tx.flush();
    }
    rig.finish();
}

#[test]
fn a_sent_header_is_cleared_each_time() {
    sent_header::<SplitDevice>();
    sent_header::<PackedDevice>();
}
