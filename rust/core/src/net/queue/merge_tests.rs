#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use crate::memory::{Holder, JUMBO_SIZE, PageRequest, PageSize, Placement, Region, RegionOptions};
use crate::net::packet::header::HEADER_LEN;
use crate::net::queue::claim::{Reclaim, Slot};
use crate::net::queue::{AnyRing, RxQueue, TxQueue};
use crate::notify::{Doorbell, EventFd};
use crate::virtio::ring::RingOptions;
use crate::virtio::ring::testing::{Chain, Device, PackedDevice, SplitDevice};
use proptest::prelude::*;
use std::sync::Arc;

const SIZE: u16 = 64;
/// What a posted buffer takes, the header among it.
const POSTED: usize = 2048 + HEADER_LEN;

fn pool_with(jumbos: usize) -> Arc<Pool> {
    let options = RegionOptions {
        size: 4 << 20,
        pages: PageRequest::Exactly(PageSize::Base),
        placement: Placement::Virtual,
        node: None,
        directory: None,
        buffer_size: 2048,
        jumbo_buffers: Some(jumbos),
        jumbo_size: None,
    };
    Region::new(&options).unwrap().pool()
}

/// One side of a queue, and the device on the other.
fn queue<D: Device>(pool: &Arc<Pool>, packed: bool, index: u16) -> (Common, D) {
    let options = RingOptions::new(SIZE);
    let ring = AnyRing::new(packed, pool.region(), &options).unwrap();
    let common = Common::new(index, ring, pool.clone(), Doorbell::Silent, Arc::default());
    let at = common.addresses(0);
    let device = D::new(pool.region(), (at.descriptors, at.driver, at.device), &options);
    (common, device)
}

/// A receive queue that merges, and a device that fills it.
struct Rig<D> {
    rx: RxQueue,
    device: D,
    pool: Arc<Pool>,
    burst: Burst,
}

impl<D: Device> Rig<D> {
    fn new(packed: bool, jumbos: usize) -> Self {
        let pool = pool_with(jumbos);
        let (common, device) = queue(&pool, packed, 0);
        let mut rx = RxQueue::new(common, true);
        rx.refill();
        Self { rx, device, burst: Burst::new(pool.clone()), pool }
    }

    fn recv(&mut self, max: usize) -> Result<usize> {
        self.rx.recv(max, &mut self.burst)
    }

    fn stats(&self) -> crate::net::QueueStats {
        self.rx.common.stats.snapshot()
    }

    /// Writes a frame as a device does, with this `num_buffers` or the right one; not visible
    /// before a flush. Says how many buffers it took.
    fn write(&mut self, frame: &[u8], says: Option<u16>) -> usize {
        let count = (HEADER_LEN + frame.len()).div_ceil(POSTED);
        let mut bytes = vec![0; HEADER_LEN];
        bytes[10..12].copy_from_slice(&says.unwrap_or(count as u16).to_le_bytes());
        bytes.extend_from_slice(frame);
        for piece in bytes.chunks(POSTED) {
            let chain = self.take();
            self.device.view().write(chain.parts[0].iova, piece);
            self.device.put(&chain, piece.len() as u32);
        }
        count
    }

    fn take(&mut self) -> Chain {
        let chain = self.device.take().expect("the driver posted a buffer");
        assert_eq!(chain.capacity() as usize, POSTED);
        chain
    }

    fn frames(&mut self) -> Vec<Vec<u8>> {
        let frames = (0..self.burst.len()).map(|i| self.burst.copy_out(i).unwrap()).collect();
        self.burst.clear();
        frames
    }

    /// Every buffer is somebody's, and in the end the pool's.
    fn finish(mut self) {
        self.burst.clear();
        self.rx.reclaim_all();
        assert_eq!(self.pool.free(), self.pool.count());
        assert_eq!(self.pool.jumbo_free(), self.pool.jumbo_count());
        assert!(!self.pool.any_jumbo(&[u32::MAX]), "counted as taken, but none is");
    }
}

/// A frame whose bytes tell of it.
fn frame(number: usize, length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 + i / 251 + number) as u8).collect()
}

/// Each test is for both ring formats.
macro_rules! on_both_rings {
    ($($name:ident($rig:ident, $jumbos:expr) $body:block)*) => {
        $(fn $name<D: Device>($rig: Rig<D>) { $body })*
        mod split {
            $(#[test] fn $name() { super::$name(super::Rig::<super::SplitDevice>::new(false, $jumbos)); })*
        }
        mod packed {
            $(#[test] fn $name() { super::$name(super::Rig::<super::PackedDevice>::new(true, $jumbos)); })*
        }
    };
}

on_both_rings! {
    frames_of_every_kind_of_length_are_one_piece(rig, 2) {
        let mut rig = rig;
        let largest = rig.pool.largest_frame();
        assert!(largest >= JUMBO_SIZE);
        let edges = (1..33).flat_map(|n| [n * POSTED - 13, n * POSTED - 12, n * POSTED - 11]);
        let lengths = [1, 60, 1514, 2047, 9014, 9018, 65_535, JUMBO_SIZE, largest];
        let (mut expected, mut bytes) = (0, 0);
        for (number, length) in lengths.into_iter().chain(edges).enumerate() {
            if length > largest {
                continue;
            }
            let sent = frame(number, length);
            let buffers = rig.write(&sent, None);
            rig.device.flush();
            assert_eq!(rig.recv(256).unwrap(), 1, "{length} bytes in {buffers} buffers");
            assert_eq!(rig.pool.is_jumbo(rig.burst.ids()[0]), buffers > 1);
            assert!(rig.frames() == [sent], "{length} bytes in {buffers} buffers");
            expected += 1;
            bytes += length as u64;
        }
        assert_eq!((rig.stats().packets, rig.stats().bytes), (expected, bytes));
        rig.finish();
    }

    pieces_may_come_one_by_one(rig, 1) {
        let mut rig = rig;
        for round in 0..100 {
            let sent = frame(round, 9014);
            let mut bytes = vec![0; HEADER_LEN];
            bytes[10] = 5;
            bytes.extend_from_slice(&sent);
            for (i, piece) in bytes.chunks(POSTED).enumerate() {
                assert_eq!(rig.recv(256).unwrap(), 0, "after {i} pieces");
                let chain = rig.take();
                rig.device.view().write(chain.parts[0].iova, piece);
                rig.device.put(&chain, piece.len() as u32);
                rig.device.flush();
            }
            assert_eq!(rig.recv(256).unwrap(), 1);
            assert!(rig.frames() == [sent]);
        }
        rig.finish();
    }

    one_call_takes_half_of_the_jumbo_buffers_and_the_other_frames_wait(rig, 4) {
        let mut rig = rig;
        let sent: Vec<_> = [3000, 60, 3001, 61, 3002, 3003, 62, 3004].map(|length| frame(length, length)).into();
        sent.iter().for_each(|frame| { rig.write(frame, None); });
        rig.device.flush();
        assert_eq!(rig.recv(256).unwrap(), 4);
        assert!(rig.rx.has_used() && rig.rx.enable_interrupts());
        // As in a Python loop: the burst before is there until the next is.
        let mut before = std::mem::replace(&mut rig.burst, Burst::new(rig.pool.clone()));
        assert_eq!(rig.recv(256).unwrap(), 3);
        let mut got: Vec<_> = (0..4).map(|i| before.copy_out(i).unwrap()).collect();
        before.clear();
        got.extend(rig.frames());
        assert_eq!(rig.recv(256).unwrap(), 1);
        got.extend(rig.frames());
        assert!(got == sent);
        assert!(!rig.rx.has_used());
        assert_eq!(rig.stats().no_buffer, 0);
        // What waits is not lost when the queue ends.
        sent.iter().for_each(|frame| { rig.write(frame, None); });
        rig.device.flush();
        assert_eq!(rig.recv(256).unwrap(), 4);
        rig.finish();
    }

    no_more_frames_than_asked_for(rig, 8) {
        let mut rig = rig;
        let sent: Vec<_> = [9014, 60, 5000, 2048, 2049, 70].map(|length| frame(length, length)).into();
        sent.iter().for_each(|frame| { rig.write(frame, None); });
        rig.device.flush();
        for max in [1, 2, 1] {
            assert_eq!(rig.recv(max).unwrap(), max);
        }
        assert_eq!(rig.recv(256).unwrap(), 2);
        assert_eq!(rig.recv(256).unwrap(), 0);
        assert!(rig.frames() == sent);
        rig.finish();
    }

    without_a_jumbo_buffer_a_long_frame_is_dropped_and_counted(rig, 2) {
        let mut rig = rig;
        let taken = [rig.pool.take_jumbo().unwrap(), rig.pool.take_jumbo().unwrap()];
        assert_eq!(rig.pool.take_jumbo(), None);
        let short = frame(1, 100);
        rig.write(&frame(0, 9014), None);
        rig.write(&short, None);
        rig.write(&frame(0, 3000), None);
        rig.device.flush();
        assert_eq!(rig.recv(256).unwrap(), 1);
        assert!(rig.frames() == [short]);
        assert_eq!(rig.stats().no_buffer, 1, "that behind a good frame waits");
        assert!(rig.rx.has_used());
        assert_eq!(rig.recv(256).unwrap(), 0);
        assert!(!rig.rx.has_used());
        assert_eq!((rig.stats().no_buffer, rig.stats().bad_chain), (2, 0));
        rig.pool.give(&taken);
        let long = frame(2, 9014);
        rig.write(&long, None);
        rig.device.flush();
        assert_eq!(rig.recv(256).unwrap(), 1);
        assert!(rig.frames() == [long]);
        rig.finish();
    }

    a_frame_beyond_every_buffer_is_dropped_and_counted(rig, 2) {
        let mut rig = rig;
        let (too_long, good) = (rig.pool.largest_frame() + 1, frame(3, 5000));
        for length in [too_long, 60 * POSTED] {
            rig.write(&frame(0, length), None);
            rig.device.flush();
            assert_eq!(rig.recv(256).unwrap(), 0);
            assert_eq!(rig.pool.jumbo_free(), 2);
        }
        assert_eq!((rig.stats().bad_length, rig.stats().bad_chain), (2, 0));
        rig.write(&good, None);
        rig.device.flush();
        assert_eq!(rig.recv(256).unwrap(), 1);
        assert!(rig.frames() == [good]);
        rig.finish();
    }

    where_there_are_no_jumbo_buffers_a_long_frame_is_dropped_and_told_of_once(rig, 0) {
        let mut rig = rig;
        let bell = Arc::new(EventFd::new().unwrap());
        let too_long = Arc::new(TooLong::new(Some(bell.clone())));
        rig.rx = rig.rx.telling(too_long.clone());
        assert!(!too_long.seen());
        let short = frame(1, 100);
        for told in [1, 0] {
            rig.write(&frame(0, 9014), None);
            rig.write(&short, None);
            rig.write(&frame(0, 3000), None);
            rig.device.flush();
            assert_eq!(rig.recv(256).unwrap(), 1);
            assert!(rig.frames() == [short.clone()]);
            assert!(!rig.rx.has_used());
            assert_eq!(bell.drain(), told);
        }
        assert!(too_long.seen());
        assert_eq!((rig.stats().bad_length, rig.stats().no_buffer), (4, 0));
        rig.finish();
    }

    frames_without_a_byte_are_dropped_and_counted(rig, 2) {
        let mut rig = rig;
        rig.write(&[], None);
        rig.device.flush();
        assert_eq!(rig.recv(256).unwrap(), 0);
        rig.write(&[], Some(2));
        let chain = rig.take();
        rig.device.put(&chain, 0);
        rig.device.flush();
        assert_eq!(rig.recv(256).unwrap(), 0);
        assert_eq!((rig.stats().bad_length, rig.stats().packets), (2, 0));
        rig.finish();
    }

    a_frame_that_its_device_did_not_finish_is_not_gone_on_with(rig, 4) {
        let mut rig = rig;
        let good = frame(1, 3000);
        for seen in [true, false] {
            rig.write(&frame(0, 3000), Some(3));
            rig.device.flush();
            if seen {
                assert_eq!(rig.recv(256).unwrap(), 0);
            }
            rig.rx.reoffer();
            rig.write(&good, None);
            rig.device.flush();
            assert_eq!(rig.recv(256).unwrap(), 1);
            assert!(rig.frames() == [good.clone()]);
        }
        assert_eq!((rig.stats().bad_chain, rig.stats().bad_length), (2, 0));
        rig.finish();
    }

    what_follows_a_first_buffer_that_was_left_out_is_dropped(rig, 1) {
        let mut rig = rig;
        let good = frame(1, 3000);
        rig.write(&[], Some(3));
        for _ in 0..2 {
            let chain = rig.take();
            rig.device.view().write(chain.parts[0].iova, &[1; POSTED]);
            rig.device.put(&chain, POSTED as u32);
        }
        rig.write(&good, None);
        rig.device.flush();
        assert_eq!(rig.recv(256).unwrap(), 1);
        assert!(rig.frames() == [good]);
        assert_eq!((rig.stats().bad_chain, rig.stats().bad_length), (0, 1));
        rig.finish();
    }

    a_frame_that_never_ends_is_given_back_at_the_end(rig, 1) {
        let mut rig = rig;
        rig.write(&frame(0, 2000), Some(3));
        rig.device.flush();
        assert_eq!(rig.recv(256).unwrap(), 0);
        assert_eq!(rig.pool.jumbo_free(), 0);
        rig.finish();
    }

    a_device_that_writes_less_than_a_header_breaks_the_queue(rig, 1) {
        let mut rig = rig;
        let good = frame(0, 60);
        rig.write(&good, None);
        let chain = rig.take();
        rig.device.put(&chain, HEADER_LEN as u32 - 1);
        rig.write(&good, None);
        rig.device.flush();
        let error = rig.recv(256).unwrap_err().to_string();
        assert!(error.contains("11 bytes"), "{error}");
        assert!(rig.frames() == [good], "the frame before it is there");
        rig.finish();
    }

    recycling_keeps_no_jumbo_buffer_from_the_pool(rig, 1) {
        let mut rig = rig;
        for round in 0..3 {
            rig.write(&frame(round, 9014), None);
            rig.write(&frame(round, 60), None);
            rig.device.flush();
            assert_eq!(rig.rx.recv(256, &mut rig.burst).unwrap(), 2);
            rig.rx.recycle(&mut rig.burst);
            assert!(rig.burst.is_empty());
            assert_eq!(rig.pool.jumbo_free(), 1);
        }
        rig.finish();
    }
}

#[test]
fn numbers_of_buffers_that_cannot_be_break_the_queue() {
    fn lie<D: Device>(packed: bool, says: u16) {
        let mut rig = Rig::<D>::new(packed, 2);
        let good = frame(0, 3000);
        rig.write(&good, None);
        rig.write(&frame(1, 60), Some(says));
        rig.write(&good, None);
        rig.device.flush();
        let error = rig.recv(256).unwrap_err();
        assert!(matches!(error, Error::Device(_)));
        assert!(error.to_string().contains(&format!("{says} buffers")), "{error}");
        assert!(rig.frames() == [good], "the frame before the lie is there");
        rig.finish();
    }
    for says in [0, SIZE + 1, 1 << 15, u16::MAX] {
        lie::<SplitDevice>(false, says);
        lie::<PackedDevice>(true, says);
    }
}

/// A transmit queue keeps finished buffers until it needs the room. Jumbo buffers are too few
/// for that: they come back when somebody wants one, and with the next frame sent.
#[test]
fn jumbo_buffers_come_back_from_a_transmit_queue() {
    fn come_back<D: Device>(packed: bool) {
        let pool = pool_with(2);
        let (common, mut device) = queue::<D>(&pool, packed, 1);
        let tx = Arc::new(Slot::new(TxQueue::new(common), "transmit"));
        let holder: Arc<dyn Holder> = tx.clone();
        pool.add_holder(Arc::downgrade(&holder));

        let ids = [pool.take_jumbo().unwrap(), pool.take_jumbo().unwrap()];
        let lengths = [9014, JUMBO_SIZE as u32];
        assert_eq!(tx.lock().unwrap().send(&ids, &lengths).unwrap(), 2);
        assert_eq!(pool.take_jumbo(), None, "the device has both");
        for (id, length) in ids.into_iter().zip(lengths) {
            let chain = device.take().unwrap();
            assert_eq!(chain.parts.len(), 1, "one frame is one buffer");
            assert_eq!(chain.parts[0].iova, crate::memory::Iova(pool.data_iova(id).0 - 12));
            assert_eq!(chain.parts[0].len, length + 12);
            device.put(&chain, 0);
        }
        device.flush();
        assert_eq!(pool.jumbo_free(), 0);
        let queue = tx.lock().unwrap();
        assert_eq!(pool.take_jumbo(), None, "the queue is in use: nobody waits for it");
        drop(queue);
        let id = pool.take_jumbo().expect("the queue gives finished buffers back");
        assert_eq!(pool.jumbo_free(), 1);

        assert_eq!(tx.lock().unwrap().send(&[id], &[3000]).unwrap(), 1);
        assert_eq!(device.echo(9), 1);
        let mut common = Vec::new();
        pool.take(&mut common, 1);
        assert_eq!(tx.lock().unwrap().send(&common, &[60]).unwrap(), 1);
        assert_eq!(pool.jumbo_free(), 2);
        tx.lock().unwrap().reclaim_all();
        assert_eq!(pool.free(), pool.count());
    }
    come_back::<SplitDevice>(false);
    come_back::<PackedDevice>(true);
}

/// Frames from a memory without room for them: each is counted, no buffer is lost.
#[test]
fn long_frames_of_another_memory_are_copied_into_jumbo_buffers() {
    let (from, to) = (pool_with(3), pool_with(1));
    let mut burst = Burst::new(from.clone());
    for number in 0..3 {
        let id = from.take_jumbo().unwrap();
        let bytes = frame(number, 5000);
        // SAFETY: the buffer is ours and holds that much.
        unsafe { from.data_ptr(id).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        burst.push(id, 5000);
    }
    let (common, mut device) = queue::<SplitDevice>(&to, false, 1);
    let mut tx = TxQueue::new(common);
    assert_eq!(tx.send_copies(&mut burst).unwrap(), 1);
    assert_eq!((burst.len(), from.jumbo_free()), (0, 3));
    assert_eq!(tx.common.stats.snapshot().no_buffer, 2);
    let part = device.take().unwrap().parts[0];
    assert!(device.view().read(part.iova, 5012)[12..] == frame(0, 5000)[..]);
    tx.reclaim_all();
    assert_eq!((to.jumbo_free(), to.free()), (1, to.count()));
}

#[derive(Clone, Debug)]
enum Step {
    /// Uses a buffer: what its `num_buffers` says, and how much was written.
    Use(u16, u32),
    Flush,
    Recv(usize),
    Release,
}

fn step() -> impl Strategy<Value = Step> {
    let says = prop_oneof![20 => 1u16..6, 5 => 1..=SIZE, 1 => any::<u16>()];
    let written = prop_oneof![10 => Just(POSTED as u32), 10 => 12..=POSTED as u32, 1 => 0u32..12];
    prop_oneof![
        10 => (says, written).prop_map(|(says, written)| Step::Use(says, written)),
        2 => Just(Step::Flush),
        2 => prop_oneof![1usize..4, Just(256)].prop_map(Step::Recv),
        1 => Just(Step::Release),
    ]
}

/// Whatever a device says: frames lie in buffers that hold them, and no buffer is lost.
fn whatever_it_says<D: Device>(packed: bool, steps: &[Step]) {
    let mut rig = Rig::<D>::new(packed, 2);
    for step in steps {
        match *step {
            Step::Use(says, written) => {
                let Some(chain) = rig.device.take() else { continue };
                rig.device.view().write(chain.parts[0].iova.plus(10), &says.to_le_bytes());
                rig.device.put(&chain, written);
            }
            Step::Flush => {
                rig.device.flush();
            }
            Step::Recv(max) => {
                let before = rig.burst.len();
                match rig.recv(max) {
                    Ok(received) => {
                        assert!(received <= max);
                        assert_eq!(rig.burst.len(), before + received);
                    }
                    Err(Error::Device(_)) => break,
                    Err(other) => panic!("{other}"),
                }
            }
            Step::Release => rig.burst.clear(),
        }
        for (&id, &length) in rig.burst.ids().iter().zip(rig.burst.lengths()) {
            assert!(length > 0 && length as usize <= rig.pool.capacity_of(id));
        }
    }
    rig.finish();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn whatever_the_device_says_no_buffer_is_lost(steps in prop::collection::vec(step(), 1..300)) {
        whatever_it_says::<SplitDevice>(false, &steps);
        whatever_it_says::<PackedDevice>(true, &steps);
    }
}
