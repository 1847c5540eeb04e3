//! A closed port frees everything in its memory, even if it is in use or still referenced.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[allow(dead_code)]
#[path = "port_hostile/device.rs"]
mod device;

use device::{Format, Kind, Rig, SIZE, accounted, pool};
use virtnic::net::{FrameBuffer, FrameSource, Port};
use virtnic::virtio::ring::testing::{PackedDevice, SplitDevice};

/// A source of frames during whose last frame another thread closes the port.
struct Closing<'a> {
    port: &'a Port,
    left: usize,
}

impl FrameSource for Closing<'_> {
    fn more(&mut self) -> bool {
        self.left > 0
    }
    fn next(&mut self, buffer: &mut FrameBuffer<'_>) -> Result<usize, String> {
        self.left -= 1;
        if self.left == 0 {
            std::thread::scope(|scope| scope.spawn(|| self.port.stop()).join().unwrap());
        }
        buffer.fill(&[0x52; 60])
    }
}

fn sent_late<D: Format>(kind: Kind) {
    let pool = pool();
    let rig = Rig::<D>::new(&pool, kind);
    let (queued, _) = rig.port.send(&mut Closing { port: &rig.port, left: 8 }).unwrap();
    assert_eq!(queued, 0);
    assert!(rig.port.is_closed());
    accounted(&pool);
}

#[test]
fn frames_are_not_queued_if_the_port_is_closed_meanwhile() {
    for kind in Kind::ALL {
        sent_late::<SplitDevice>(kind);
        sent_late::<PackedDevice>(kind);
    }
}

fn kept<D: Format>(kind: Kind) {
    let pool = pool();
    // The memory has no room for the rings of all these ports at once.
    let ports: Vec<Port> = (0..200)
        .map(|_| {
            let rig = Rig::<D>::new(&pool, kind);
            rig.port.send(&mut [[0x52; 60]; 4].as_slice()).unwrap();
            rig.port.stop();
            accounted(&pool);
            rig.port
        })
        .collect();
    assert!(ports.iter().all(|port| port.is_closed() && port.queues()[0].size == SIZE));
    assert_eq!(ports[0].stats().tx.packets, 4);
}

#[test]
fn closed_ports_free_their_rings() {
    for kind in Kind::ALL {
        kept::<SplitDevice>(kind);
        kept::<PackedDevice>(kind);
    }
}
