//! Each field that a device can write, each way to lie in it, and what becomes of the port.
//!
//! A lie is either none of the driver's business (the field is not its to read, or says
//! nothing that could be wrong) or breaks the port with words that name the rule. In both
//! cases every buffer is back after the port has stopped.

use super::device::{Format, HEADER, Kind, Rig, SIZE, areas, pool};
use virtnic::Error;
use virtnic::net::Burst;
use virtnic::virtio::ring::testing::{Chain, PackedDevice, SplitDevice, Width};

const POSTED: u32 = 2048 + HEADER as u32;
const FRAME: u32 = 60;

/// What a lie does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// Nothing: traffic goes on.
    None,
    /// The port is broken, and says this.
    Breaks(&'static str),
}

use Effect::{Breaks, None as Nothing};

/// One way to lie. `Used` is an entry for the oldest buffer of which id and length are
/// changed; the others set a field or an area as it is.
#[derive(Clone, Copy, Debug)]
enum Lie {
    /// All fields of this name get the value.
    Field(&'static str, u64),
    /// `used.idx` is moved by so much.
    Index(u16),
    /// Of the three areas this one gets this byte everywhere, up to so many bytes from an offset.
    Area(usize, usize, usize, u8),
    /// Id and length of a used entry, from what would be right.
    Used(fn(u32) -> u32, fn(u32) -> u32),
    /// An entry twice.
    Twice,
    /// The next used descriptor's flags are those of a used one of this lap, but for these bits.
    Flags(u16),
}

const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;

const SAME: fn(u32) -> u32 = |value| value;

/// What is true of both directions of a split ring.
const SPLIT: &[(Lie, Effect)] = &[
    // used.flags and avail_event: only ever a kick more or less.
    (Lie::Field("used.flags", 0), Nothing),
    (Lie::Field("used.flags", 1), Nothing),
    (Lie::Field("used.flags", 0xffff), Nothing),
    (Lie::Field("used.avail_event", 0), Nothing),
    (Lie::Field("used.avail_event", 0x7fff), Nothing),
    (Lie::Field("used.avail_event", 0xffff), Nothing),
    // used.idx: past what the device has, or backwards.
    (Lie::Index(SIZE + 1), Breaks("used.idx went from")),
    (Lie::Index(0x8000), Breaks("used.idx went from")),
    (Lie::Index(0xffff), Breaks("used.idx went from")),
    (Lie::Index(0), Nothing),
    // used.ring: entries behind used.idx are not looked at.
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
    // Device event suppression: only ever a kick more or less. Driver's: we never read it.
    (Lie::Field("device_event.desc", 0xffff), Nothing),
    (Lie::Field("device_event.desc", 0x7fff), Nothing),
    (Lie::Field("device_event.flags", 0), Nothing),
    (Lie::Field("device_event.flags", 1), Nothing),
    (Lie::Field("device_event.flags", 2), Nothing),
    (Lie::Field("device_event.flags", 3), Nothing),
    (Lie::Field("device_event.flags", 0xffff), Nothing),
    (Lie::Area(1, 0, 4, 0xff), Nothing),
    // A descriptor that is not used: its address, length and id say nothing.
    (Lie::Field("desc.addr", u64::MAX), Nothing),
    (Lie::Field("desc.addr", 0), Nothing),
    (Lie::Field("desc.len", 0xffff_ffff), Nothing),
    (Lie::Field("desc.id", 0xffff), Nothing),
    // Flags that are not AVAIL = USED = wrap counter: not used.
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

/// Only where the device writes into buffers.
const RECEIVE: &[(Lie, Effect)] = &[
    (Lie::Used(SAME, |_| POSTED), Nothing),
    (Lie::Used(SAME, |_| POSTED + 1), Breaks("takes only 2060")),
    (Lie::Used(SAME, |_| 0x8000_0000), Breaks("takes only 2060")),
    (Lie::Used(SAME, |_| u32::MAX), Breaks("takes only 2060")),
    (Lie::Used(SAME, |_| 0), Breaks("less than the 12 of the header")),
    (Lie::Used(SAME, |_| 11), Breaks("less than the 12 of the header")),
    (Lie::Used(SAME, |_| 12), Nothing),
];

/// Where it only reads, some devices report what they read (section 2.7.8.2).
const TRANSMIT: &[(Lie, Effect)] =
    &[(Lie::Used(SAME, |_| 1), Nothing), (Lie::Used(SAME, |_| u32::MAX), Nothing)];

struct Case<D> {
    rig: Rig<D>,
    burst: Burst,
    receive: bool,
    /// Buffers used before.
    used: usize,
    /// What the device has, oldest first.
    held: std::collections::VecDeque<Chain>,
}

impl<D: Format> Case<D> {
    /// A port whose rings have been round `used` buffers, with all that it posts at the device.
    fn new(kind: Kind, receive: bool, used: usize) -> Self {
        let pool = pool();
        let (burst, rig) = (Burst::new(pool.clone()), Rig::new(&pool, kind));
        let mut case = Self { rig, burst, receive, used, held: Default::default() };
        for _ in 0..used {
            case.offer();
            case.honest();
            case.act().unwrap();
        }
        // Nothing of what is to come may depend on what is in the ring then.
        case.offer();
        case
    }

    fn device(&mut self) -> &mut D {
        if self.receive { &mut self.rig.rx } else { &mut self.rig.tx }
    }

    /// Gives the device something, and has it take all there is.
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

    /// Uses the oldest buffer as a device should.
    fn honest(&mut self) {
        let chain = self.held.pop_front().unwrap();
        let written = if self.receive {
            // A header that says one buffer.
            let header = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
            self.device().view().write(chain.parts[0].iova, &header);
            HEADER as u32 + FRAME
        } else {
            0
        };
        self.device().put(&chain, written);
        self.device().flush();
    }

    /// What a program does next; the frames it got.
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

    /// What AVAIL and USED are in a descriptor that is used in this lap.
    fn used_flags(&self) -> u16 {
        if (self.used / usize::from(SIZE)).is_multiple_of(2) { AVAIL | USED } else { 0 }
    }

    /// Sets the flags of the packed descriptor that is to be used next.
    fn set_flags(&mut self, flags: u16) {
        let next = (self.used % usize::from(SIZE)) as u16;
        let fields = self.device().fields();
        let field = fields.into_iter().find(|f| f.name == "desc.flags" && f.index == next).unwrap();
        self.device().view().set(field, flags.into());
    }
}

/// Tells one lie and looks at what becomes of the port.
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
            // Kicks and interrupts are asked about without harm.
            for _ in 0..4 {
                let _ = case.rig.port.send(&mut &[[0u8; 60]][..]).unwrap();
            }
        }
        Breaks(words) => {
            let error = result.expect_err(&what);
            assert!(matches!(error, Error::Device(_)), "{what}: {error:?}");
            assert!(error.to_string().contains(words), "{what}: {error}");
            // For good, in both directions, with the reason.
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

/// At the start, within the second lap, and where a lap ends.
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

/// A packed device may use any descriptor at any time: flags that say so are believed, for the
/// id and length that stand there, which are those of a buffer that it has.
#[test]
fn a_packed_descriptor_of_which_only_the_flags_change() {
    for used in LAPS {
        let mut case = Case::<PackedDevice>::new(Kind::ALL[0], true, used);
        case.set_flags(case.used_flags());
        assert_eq!(case.act().unwrap(), 1, "after {used}");
        case.rig.finish();
    }
}

/// The header of a received frame (section 5.1.6): only `num_buffers` is read, and only where
/// buffers are merged. Hash and offload fields are not negotiated, so they mean nothing.
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

/// The header of a sent frame is the driver's at each send, whatever was in the buffer.
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
        // The device must only read it, and does not keep to that.
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
