//! The split ring with an independent device side: rust-vmm's `virtio-queue`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod ring_model;

use proptest::prelude::*;
use ring_model::{Behaviour, run, steps};
use std::sync::Arc;
use virtio_queue::{Queue, QueueT};
use virtnic::memory::{Iova, Region};
use virtnic::virtio::ring::testing::{Chain, Device, Field, Part, SplitDevice, View};
use virtnic::virtio::ring::{RingOptions, SplitRing};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

/// Adapts `virtio-queue` to the interface of our own devices.
struct RustVmm {
    memory: GuestMemoryMmap,
    queue: Queue,
    view: View,
    avail: Iova,
    used: Iova,
    size: u16,
    event_idx: bool,
    unflushed: Vec<(u16, u32)>,
    /// Used only to advance the indices before a test; a thousand times faster.
    echo: SplitDevice,
    echoed: u16,
    /// Must be the last field, because the memory above borrows from it.
    _region: Arc<Region>,
}

fn halves(address: Iova) -> (Option<u32>, Option<u32>) {
    (Some(address.0 as u32), Some((address.0 >> 32) as u32))
}

impl Device for RustVmm {
    fn new(region: &Arc<Region>, addresses: (Iova, Iova, Iova), options: &RingOptions) -> Self {
        const READ_WRITE: i32 = 3;
        const SHARED: i32 = 1;
        let base = std::ptr::with_exposed_provenance_mut(region.address());
        // SAFETY: the region is mapped there, readable and writable, and `_region` keeps it
        // mapped as long as this device exists.
        let mapping = unsafe { MmapRegion::build_raw(base, region.size(), READ_WRITE, SHARED) };
        let guest = GuestRegionMmap::new(mapping.unwrap(), GuestAddress(region.iova().0)).unwrap();
        let memory = GuestMemoryMmap::from_regions(vec![guest]).unwrap();
        let mut queue = Queue::new(32_768).unwrap();
        queue.set_size(options.size);
        let (low, high) = halves(addresses.0);
        queue.set_desc_table_address(low, high);
        let (low, high) = halves(addresses.1);
        queue.set_avail_ring_address(low, high);
        let (low, high) = halves(addresses.2);
        queue.set_used_ring_address(low, high);
        queue.set_event_idx(options.event_idx);
        queue.set_ready(true);
        assert!(queue.is_valid(&memory));
        Self {
            memory,
            queue,
            view: View::new(region),
            avail: addresses.1,
            used: addresses.2,
            size: options.size,
            event_idx: options.event_idx,
            unflushed: Vec::new(),
            echo: SplitDevice::new(region, addresses, options),
            echoed: 0,
            _region: Arc::clone(region),
        }
    }

    fn take(&mut self) -> Option<Chain> {
        let chain = self.queue.pop_descriptor_chain(&self.memory)?;
        let id = chain.head_index();
        let parts: Vec<Part> = chain
            .map(|part| Part {
                iova: Iova(part.addr().0),
                len: part.len(),
                writable: part.is_write_only(),
            })
            .collect();
        Some(Chain { id, descriptors: parts.len() as u16, parts })
    }

    fn put_batch(&mut self, chains: &[Chain], written: u32) {
        for (i, chain) in chains.iter().enumerate() {
            let last = i + 1 == chains.len();
            self.put(chain, if last { written } else { chain.capacity() });
        }
    }

    fn put_raw(&mut self, id: u32, len: u32, _: u16) {
        self.unflushed.push((id as u16, len));
    }

    fn flush(&mut self) -> bool {
        if self.unflushed.is_empty() {
            return false;
        }
        for (id, len) in self.unflushed.drain(..) {
            self.queue.add_used(&self.memory, id, len).unwrap();
        }
        let due = self.queue.needs_notification(&self.memory).unwrap();
        // `virtio-queue` ignores VIRTQ_AVAIL_F_NO_INTERRUPT.
        due && (self.event_idx || self.view.read(self.avail, 2) == [0, 0])
    }

    fn echo(&mut self, max: usize) -> usize {
        let count = self.echo.echo(max);
        self.echoed = self.echoed.wrapping_add(count as u16);
        self.queue.set_next_avail(self.echoed);
        self.queue.set_next_used(self.echoed);
        count
    }

    fn enable_kicks(&mut self) -> bool {
        self.queue.enable_notification(&self.memory).unwrap()
    }

    fn disable_kicks(&mut self) {
        self.queue.disable_notification(&self.memory).unwrap();
        if self.event_idx {
            // `virtio-queue` keeps the last avail_event; the model expects no more kicks.
            let event = self.queue.next_avail().wrapping_add(0x8000);
            let at = self.used.plus(4 + 8 * u64::from(self.size));
            self.view.write(at, &event.to_le_bytes());
        }
    }

    fn view(&self) -> &View {
        &self.view
    }

    fn fields(&self) -> Vec<Field> {
        Vec::new()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn nothing_is_lost_or_doubled(
        bits in 0u32..8,
        (event_idx, indirect) in any::<(bool, bool)>(),
        in_order in any::<bool>(),
        start in prop_oneof![Just(0usize), 65_000usize..66_000],
        steps in steps(150),
    ) {
        let options = RingOptions { size: 1 << bits, event_idx, indirect, in_order };
        let behaviour = Behaviour { in_order, exact: true, start };
        run::<SplitRing, RustVmm>(options, behaviour, &steps);
    }

    #[test]
    fn order_is_kept_when_the_device_keeps_it(
        bits in 3u32..7,
        steps in steps(150),
    ) {
        // Without IN_ORDER, with a device that uses buffers in order anyway.
        let behaviour = Behaviour { in_order: true, exact: true, start: 0 };
        run::<SplitRing, RustVmm>(RingOptions::new(1 << bits), behaviour, &steps);
    }
}
