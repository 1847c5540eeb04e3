//! A ring whose device writes anything anywhere, between honest work.
//!
//! | byte | then | what happens |
//! |---|---|---|
//! | 0 | flags, size | the ring is made anew with these features |
//! | 1 | count, writable | single buffers are added |
//! | 2 | readable, writable | a chain is added |
//! | 3, 4 | | published, with or without the question for a kick |
//! | 5 | count | the device uses what is available, as it should |
//! | 6 | id (4), length (4), descriptors (2) | the device puts a used entry |
//! | 7 | | and shows what it put |
//! | 8 | field (2), value (8) | a field of the device's |
//! | 9 | offset (2), count, bytes | any bytes of the ring, the driver's own too |
//! | 10 | count | used buffers are taken |
//! | 11 | count (2) | interrupts are wanted |
//! | 12 | | no interrupts are wanted |
//! | 13 | | reset |

use crate::Input;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use virtnic::memory::{Iova, PageRequest, PageSize, Placement, Region, RegionOptions};
use virtnic::virtio::ring::testing::{Device, PackedDevice, SplitDevice};
use virtnic::virtio::ring::{PackedRing, Ring, RingOptions, SplitRing};

/// The target of the split ring.
pub fn split(data: &[u8]) {
    run::<SplitRing, SplitDevice>(data, true);
}

/// The target of the packed ring.
pub fn packed(data: &[u8]) {
    run::<PackedRing, PackedDevice>(data, false);
}

const BUFFER: Iova = Iova(1 << 36);
const LENGTH: u32 = 100;
const OPERATIONS: usize = 256;

fn region() -> Arc<Region> {
    static REGION: OnceLock<Arc<Region>> = OnceLock::new();
    let make = || {
        Region::new(&RegionOptions {
            // A sixteenth is for rings: two at a time, each with its indirect tables.
            size: 16 << 20,
            pages: PageRequest::Exactly(PageSize::Base),
            placement: Placement::At(Iova(1 << 36)),
            node: None,
            directory: None,
            buffer_size: 2048,
            jumbo_buffers: None,
            jumbo_size: None,
        })
        .unwrap()
    };
    Arc::clone(REGION.get_or_init(make))
}

/// A ring, a device, and which tokens are out, with the bytes that each may be said to have.
struct Rig<R, D> {
    options: RingOptions,
    ring: R,
    device: D,
    out: HashMap<u32, u32>,
    next: u32,
}

impl<R: Ring, D: Device> Rig<R, D> {
    fn new(options: RingOptions) -> Self {
        let region = region();
        let ring = R::new(&region, &options).unwrap();
        let device = D::new(&region, ring.addresses(), &options);
        Self { options, ring, device, out: HashMap::new(), next: 0 }
    }

    fn token(&mut self, capacity: u32) -> u32 {
        self.next = self.next.wrapping_add(1);
        assert_eq!(self.out.insert(self.next, capacity), None);
        self.next
    }

    fn add(&mut self, count: usize, writable: bool) {
        let free = self.ring.free();
        let capacity = if writable { LENGTH } else { 0 };
        let tokens: Vec<u32> = (0..count).map(|_| self.token(capacity)).collect();
        let added = self.ring.add(writable, count, |i| (tokens[i], BUFFER, LENGTH));
        assert_eq!(added, count.min(free));
        tokens[added..].iter().for_each(|token| assert!(self.out.remove(token).is_some()));
    }

    fn add_chain(&mut self, readable: usize, writable: usize) {
        let token = self.token(writable as u32 * LENGTH);
        let part = [(BUFFER, LENGTH)];
        let (readable, writable) = (part.repeat(readable), part.repeat(writable));
        if !self.ring.add_chain(token, &readable, &writable) {
            self.out.remove(&token);
        }
    }

    fn pop(&mut self, max: usize) {
        let (in_flight, poisoned) = (self.ring.in_flight(), self.ring.poisoned());
        let mut popped = 0;
        let out = &mut self.out;
        let result = self.ring.pop(max, |token, written| {
            let capacity = out.remove(&token).expect("a token that is out");
            assert!(written <= capacity, "{written} bytes in a buffer of {capacity}");
            popped += 1;
        });
        assert!(popped <= max.min(in_flight));
        match result {
            Ok(count) => assert_eq!((count, poisoned), (popped, None)),
            Err(violation) => {
                assert_eq!(self.ring.poisoned(), Some(violation));
                assert!(poisoned.is_none() || poisoned == Some(violation) && popped == 0);
                assert!(!violation.to_string().is_empty());
                assert_eq!(self.ring.free(), 0);
                assert_eq!(self.ring.add(true, 1, |_| panic!("it is poisoned")), 0);
                assert!(!self.ring.add_chain(0, &[(BUFFER, 1)], &[]));
            }
        }
    }

    /// Nothing that went in is lost, and the ring is as good as new.
    fn reset(&mut self) {
        let out = &mut self.out;
        self.ring.reset(|token| assert!(out.remove(&token).is_some(), "{token} was not out"));
        assert!(out.is_empty(), "lost: {out:?}");
        assert_eq!(self.ring.free(), usize::from(self.options.size));
        assert_eq!((self.ring.in_flight(), self.ring.poisoned()), (0, None));
        self.device = D::new(&region(), self.ring.addresses(), &self.options);
    }

    fn honest(&mut self) {
        for lap in 0..3 {
            self.add(usize::from(self.options.size), lap != 1);
            self.ring.publish();
            let wanted = self.device.echo(usize::MAX);
            assert_eq!(wanted, usize::from(self.options.size));
            self.pop(usize::MAX);
            assert!(self.out.is_empty(), "an honest device was not believed");
        }
    }
}

fn options(input: &mut Input<'_>, power_of_two: bool) -> RingOptions {
    let (flags, size) = (input.byte(), input.byte());
    RingOptions {
        size: if power_of_two { 1 << (size % 8) } else { u16::from(size % 128) + 1 },
        event_idx: flags & 1 != 0,
        indirect: flags & 2 != 0,
        in_order: flags & 4 != 0,
    }
}

fn run<R: Ring, D: Device>(data: &[u8], power_of_two: bool) {
    let mut input = Input::new(data);
    let mut rig = Rig::<R, D>::new(options(&mut input, power_of_two));
    for _ in 0..OPERATIONS {
        if input.is_empty() {
            break;
        }
        match input.byte() % 14 {
            0 => {
                rig.reset();
                rig = Rig::new(options(&mut input, power_of_two));
            }
            1 => {
                let (count, writable) = (input.byte(), input.byte() & 1 != 0);
                rig.add(count.into(), writable);
            }
            2 => {
                let (readable, writable) = (input.byte() % 70, input.byte() % 70);
                rig.add_chain(readable.into(), writable.into());
            }
            3 => {
                let _ = rig.ring.publish();
            }
            4 => rig.ring.publish_quiet(),
            5 => {
                let _ = rig.device.echo(usize::from(input.byte()));
            }
            6 => {
                let (id, len, descriptors) = (input.word(), input.word(), input.short());
                rig.device.put_raw(id, len, descriptors);
            }
            7 => {
                let _ = rig.device.flush();
            }
            8 => {
                let (fields, which) = (rig.device.fields(), usize::from(input.short()));
                let value = u64::from(input.word()) | u64::from(input.word()) << 32;
                rig.device.view().set(fields[which % fields.len()], value);
            }
            9 => {
                let (first, _, last) = rig.ring.addresses();
                let offset = u64::from(input.short());
                let bytes = input.bytes(8);
                // Up to the end of the device's area, which is the last of the three.
                let room = last.0 - first.0 + 6;
                rig.device.view().write(first.plus(offset % room), bytes);
            }
            10 => rig.pop(input.byte().into()),
            11 => {
                let _ = rig.ring.enable_interrupts_after(input.short());
            }
            12 => rig.ring.disable_interrupts(),
            _ => rig.reset(),
        }
        let _ = (rig.ring.has_used(), rig.ring.wants_kick());
        if let Some(position) = rig.ring.follower().close_gaps() {
            assert!(position & 0x7fff < rig.options.size);
        }
    }
    rig.pop(usize::MAX);
    rig.reset();
    rig.honest();
    rig.reset();
}
