#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::super::testing::{BASE, State, legacy};
use super::*;
use crate::memory::Iova;

/// A queue in the layout of section 2.7.2.
fn laid_out(descriptors: u64, size: u16, vector: u16) -> QueueAddresses {
    let available = 16 * u64::from(size);
    let used = (available + 6 + 2 * u64::from(size)).next_multiple_of(4096);
    QueueAddresses {
        size,
        descriptors: Iova(descriptors),
        driver: Iova(descriptors + available),
        device: Iova(descriptors + used),
        vector,
    }
}

#[test]
fn features_are_32_bits() {
    let (device, state) = legacy(State::new(false, 0xffff_ffff));
    assert_eq!(device.device_features().unwrap(), Features(0xffff_ffff));
    device.set_driver_features(Features::MAC | Features::ANY_LAYOUT).unwrap();
    device.device_features().unwrap();
    assert_eq!(state.lock().unwrap().accepted, 1 << 5 | 1 << 27);
    let error = device.set_driver_features(Features::MAC | Features::VERSION_1).unwrap_err();
    assert!(matches!(error, Error::Invalid(_)));
    assert!(error.to_string().ends_with("there is no VERSION_1"), "{error}");
}

#[test]
fn a_reset_is_read_back() {
    let (device, state) = legacy(State::new(false, 0));
    device.set_status(Status::empty()).unwrap();
    assert_eq!(device.status().unwrap(), Status::empty());
    device.set_status(Status::ACKNOWLEDGE).unwrap();
    assert_eq!(device.status().unwrap(), Status::ACKNOWLEDGE);
    assert_eq!(state.lock().unwrap().written, [(18, 1, 0), (18, 1, 1)]);
}

#[test]
fn the_isr_clears_when_read() {
    let mut state = State::new(false, 0);
    state.isr = 3;
    let (device, _state) = legacy(state);
    assert_eq!((device.take_isr().unwrap(), device.take_isr().unwrap()), (3, 0));
}

#[test]
fn the_configuration_follows_the_vectors() {
    for msix in [false, true] {
        let (device, state) = legacy(State::new(msix, 0));
        let mut mac = [0; 6];
        device.read_config(0, &mut mac).unwrap();
        assert_eq!(mac, [0x52, 0x54, 0, 1, 2, 3]);
        let mut mtu = [0; 2];
        device.read_config(10, &mut mtu).unwrap();
        assert_eq!(u16::from_le_bytes(mtu), 1500);
        let reads = [(0, 4), (4, 2), (0, 4), (4, 2), (10, 2), (10, 2)];
        assert_eq!(state.lock().unwrap().config_reads, reads, "each field by its width, and twice");
        device.write_config(0, &[1, 2, 3, 4, 5, 6]).unwrap();
        device.write_config(7, &[9]).unwrap();
        device.status().unwrap();
        assert_eq!(state.lock().unwrap().config[..8], [1, 2, 3, 4, 5, 6, 1, 9]);
        let room = if msix { 40 } else { 44 };
        device.read_config(room - 1, &mut [0]).unwrap();
        for (offset, len) in [(room - 1, 2), (room, 1), (usize::MAX, 2)] {
            let error = device.read_config(offset, &mut vec![0; len]).unwrap_err();
            assert!(error.to_string().contains(&format!("room for {room}")), "{error}");
            assert!(device.write_config(offset, &vec![0; len]).is_err());
        }
    }
}

#[test]
fn a_configuration_that_changes_is_read_again() {
    let mut state = State::new(true, 0);
    state.changes = 5;
    let (device, state) = legacy(state);
    let mut mac = [0; 6];
    device.read_config(0, &mut mac).unwrap();
    assert_eq!(mac[0], 0x52 + 5);
    state.lock().unwrap().changes = usize::MAX;
    let error = device.read_config(0, &mut mac).unwrap_err();
    assert!(matches!(error, Error::Device(_)), "{error}");
}

#[test]
fn queues_are_counted_and_have_fixed_sizes() {
    let (device, _state) = legacy(State::new(true, 0));
    assert_eq!(device.queue_count().unwrap(), 3);
    let sizes = [0, 1, 2, 3].map(|queue| device.queue_max_size(queue).unwrap());
    assert_eq!(sizes, [256, 128, 64, 0]);
    let error = device.setup_queue(0, &laid_out(0x1000, 64, 0)).unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error}");
    assert!(error.to_string().contains("has 256 entries, not 64"), "{error}");
}

#[test]
fn a_queue_is_set_up_by_its_page() {
    let (device, state) = legacy(State::new(true, 0));
    device.setup_queue(0, &laid_out(0x1000, 256, 0)).unwrap();
    // The last page with a 32-bit number, at 2^44 - 4096.
    device.setup_queue(1, &laid_out(0xfff_ffff_f000, 128, NO_VECTOR)).unwrap();
    let state = state.lock().unwrap();
    assert_eq!(state.pages, [1, 0xffff_ffff, 0]);
    assert_eq!(state.vectors, [0, NO_VECTOR, NO_VECTOR]);
}

#[test]
fn a_queue_must_be_below_2_44_in_the_legacy_layout() {
    let (device, state) = legacy(State::new(true, 0));
    let error = device.setup_queue(0, &laid_out(1 << 44, 256, 0)).unwrap_err();
    assert!(matches!(error, Error::Invalid(_)), "{error}");
    assert!(error.to_string().contains("2^44"), "{error}");
    let good = laid_out(0x1_0000, 256, 0);
    let wrong = [
        laid_out(0x1_0800, 256, 0),
        QueueAddresses { driver: good.driver.plus(2), ..good },
        QueueAddresses { device: good.device.plus(4096), ..good },
        QueueAddresses { descriptors: Iova(!0xfff), ..good },
    ];
    for addresses in wrong {
        let error = device.setup_queue(0, &addresses).unwrap_err();
        assert!(error.to_string().contains("2.7.2"), "{error}");
    }
    assert!(state.lock().unwrap().written.is_empty());
    state.lock().unwrap().refuses = true;
    let error = device.setup_queue(0, &good).unwrap_err();
    assert!(error.to_string().contains("did not take page 0x10"), "{error}");
}

#[test]
fn refused_vectors_are_noticed() {
    let (device, _state) = legacy(State::new(true, 0));
    device.set_config_vector(2).unwrap();
    for error in [
        device.set_config_vector(3).unwrap_err(),
        device.setup_queue(0, &laid_out(0x1000, 256, 7)).unwrap_err(),
    ] {
        assert!(matches!(error, Error::Device(_)), "{error}");
        assert!(error.to_string().contains("reads back 0xffff"), "{error}");
    }
    let (device, state) = legacy(State::new(false, 0));
    device.set_config_vector(NO_VECTOR).unwrap();
    device.setup_queue(0, &laid_out(0x1000, 256, NO_VECTOR)).unwrap();
    let error = device.set_config_vector(0).unwrap_err();
    assert!(error.to_string().contains("MSI-X is not enabled"), "{error}");
    let written = &state.lock().unwrap().written;
    assert!(written.iter().all(|(register, ..)| *register < 20), "{written:?}");
}

#[test]
fn the_doorbell_is_one_register_for_all_queues() {
    let (device, state) = legacy(State::new(false, 0));
    for queue in [0, 1] {
        device.doorbell(queue).unwrap().ring(queue, 0);
    }
    device.status().unwrap();
    assert_eq!(state.lock().unwrap().written, [(16, 2, 0), (16, 2, 1)]);
}

#[test]
fn impossible_registers_are_rejected() {
    let (device, _state) = legacy(State::new(true, 0));
    for (base, length, msix) in [(BASE, 16, false), (BASE, 20, true), (0xfff0, 32, true)] {
        let registers = LegacyRegisters { base, length, msix };
        let error = LegacyPci::new(device.qtest.clone(), registers).unwrap_err();
        assert!(matches!(error, Error::Invalid(_)), "{error}");
    }
}
