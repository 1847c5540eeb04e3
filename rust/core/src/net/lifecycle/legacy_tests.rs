#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use crate::memory::{PageRequest, PageSize, Placement, Pool, Region, RegionOptions};
use crate::net::{Port, PortOptions, Vectors};
use crate::virtio::transport::testing::{State, legacy};
use std::sync::{Arc, Mutex};

const OFFERED: Features = Features(
    Features::MAC.0
        | Features::STATUS.0
        | Features::ANY_LAYOUT.0
        | Features::MRG_RXBUF.0
        | Features::EVENT_IDX.0
        | 1 << 30,
);

fn pool() -> Arc<Pool> {
    let options = RegionOptions {
        size: 4 << 20,
        pages: PageRequest::Exactly(PageSize::Base),
        placement: Placement::At(crate::memory::Iova(1 << 30)),
        node: None,
        directory: None,
        buffer_size: 2048,
        jumbo_buffers: Some(0),
        jumbo_size: None,
    };
    Region::new(&options).unwrap().pool()
}

fn start(
    offered: Features,
    preferences: Preferences,
    msix: bool,
) -> (Result<Port>, Arc<Mutex<State>>) {
    let (device, state) = legacy(State::new(msix, offered.word(0)));
    let vectors = msix.then(|| Vectors { pairs: vec![(0, 1)], config: 2 });
    let options = PortOptions { preferences, vectors, ..PortOptions::default() };
    (Port::start(Arc::new(device), pool(), options), state)
}

#[test]
fn a_port_is_brought_up_without_features_ok() {
    for msix in [false, true] {
        let (port, state) = start(OFFERED, Preferences::default(), msix);
        let port = port.unwrap();
        assert!(port.is_legacy() && port.link());
        assert_eq!(port.config().mac.to_string(), "52:54:00:01:02:03");
        let accepted =
            Features::MAC | Features::STATUS | Features::ANY_LAYOUT | Features::EVENT_IDX;
        assert_eq!(port.accepted(), accepted);
        let version = port.outcomes().into_iter().find(|o| o.name == "VERSION_1").unwrap();
        assert!(!version.offered && !version.accepted && version.why.contains("legacy"));
        let [rx, tx] = port.queues();
        assert_eq!((rx.size, tx.size), (256, 128));
        port.refresh_link().unwrap();
        let state = state.lock().unwrap();
        let statuses: Vec<u32> =
            state.written.iter().filter(|write| write.0 == 18).map(|write| write.2).collect();
        assert_eq!(statuses, [0, 3, 7]);
        assert_eq!(state.accepted, accepted.word(0));
        let pages = [rx, tx].map(|queue| (queue.descriptors.0 >> 12) as u32);
        assert_eq!(state.pages, [pages[0], pages[1], 0]);
        if msix {
            assert_eq!((state.config_vector, &state.vectors[..2]), (2, &[0, 1][..]));
        }
        assert_eq!(state.written.last(), Some(&(16, 2, 0)), "receive buffers were posted");
        drop(state);
        port.stop();
    }
}

#[test]
fn the_header_must_be_allowed_beside_the_packet() {
    let refuse = Preferences { refuse: Features::ANY_LAYOUT, ..Preferences::default() };
    for (offered, preferences, why) in [
        (OFFERED - Features::ANY_LAYOUT, Preferences::default(), "is not offered"),
        (OFFERED, refuse, "is refused"),
    ] {
        let (port, state) = start(offered, preferences, true);
        let error = port.unwrap_err();
        assert!(matches!(error, Error::Device(_)), "{error}");
        assert!(error.to_string().contains(why), "{error}");
        assert_eq!(state.lock().unwrap().written.last(), Some(&(18, 1, 0)), "it was reset");
    }
}

#[test]
fn version_1_cannot_be_had_nor_refused() {
    let insist = Preferences { insist: Features::VERSION_1, ..Preferences::default() };
    let error = start(OFFERED, insist, false).0.unwrap_err();
    assert!(error.to_string().contains("VERSION_1 is insisted on"), "{error}");
    let refuse = Preferences { refuse: Features::VERSION_1, ..Preferences::default() };
    start(OFFERED, refuse, false).0.unwrap();
}

#[test]
fn the_header_is_short_without_merging() {
    let base = Features::MAC | Features::ANY_LAYOUT;
    assert_eq!(header_len(true, base), 10);
    assert_eq!(header_len(true, base | Features::MRG_RXBUF), 12);
    assert_eq!(header_len(false, base | Features::VERSION_1), 12);
}

#[test]
fn only_the_devices_own_queue_size_is_right() {
    assert_eq!(queue_size(0, 0, 4096).unwrap(), 4096);
    assert_eq!(queue_size(0, 256, 256).unwrap(), 256);
    assert!(matches!(queue_size(0, 64, 256), Err(Error::Invalid(_))));
    assert!(matches!(queue_size(7, 0, 0), Err(Error::Device(_))));
}
