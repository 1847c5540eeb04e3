//! What is known of each feature beyond its bit: what it means, which QEMU offers it and how,
//! what controls it here, and which tests prove that.
//!
//! `docs/features.md` is made of this and of [`TABLE`](super::features::TABLE), `make docs` writes
//! it. What is said of QEMU is compared with a QEMU by `tests/device/test_features.py`; `make matrix` runs
//! that on 5.2, 7.2, 10.0 and 11.1.

/// What is known of a feature.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its number.
    pub bit: u8,
    /// What a device with it does, in words.
    pub about: &'static str,
    /// The oldest of those four QEMUs that offers it; `None` where none does.
    pub since: Option<&'static str>,
    /// The netdev that it was seen with: `user`, or `tap` where `user` has it not.
    pub netdev: &'static str,
    /// The properties of QEMU's `virtio-net-pci` that it takes.
    pub properties: &'static str,
    /// What controls it, in Markdown, beside `features={…}`, which controls all.
    pub argument: &'static str,
    /// Tests that prove it, as `file::name`.
    pub tests: &'static [&'static str],
}

/// What is known of a bit.
#[must_use]
pub fn entry(bit: u8) -> Option<&'static Entry> {
    CATALOGUE.iter().find(|entry| entry.bit == bit)
}

macro_rules! catalogue {
    ($($bit:literal $about:literal, $since:expr, $netdev:ident $properties:literal, $argument:literal,
       [$($test:literal),*];)*) => {
        /// Everything, by number.
        pub const CATALOGUE: &[Entry] = &[$(Entry {
            bit: $bit,
            about: $about,
            since: $since,
            netdev: stringify!($netdev),
            properties: $properties,
            argument: $argument,
            tests: &[$($test),*],
        },)*];
    };
}

// Bit, what a device with it does, since when QEMU offers it, netdev and properties; what controls
// it here, tests.
catalogue! {
    0 "finishes the checksums of frames that are sent",
        Some("5.2"), tap "", "`port.send(…, offload=…)`",
        ["tests/device/test_offload_send.py::test_checksums_are_calculated_by_the_device", "tests/device/test_offload_forward.py::test_forward_calculates_what_the_other_port_cannot"];
    1 "hands over frames whose checksum is not finished",
        Some("5.2"), tap "", "`offload=True`, `burst.offload`",
        ["tests/device/test_offload_receive.py::test_offloads_are_turned_off_and_on_at_run_time"];
    2 "turns offloads of received frames on and off at run time",
        Some("5.2"), user "", "`port.set_guest_offloads()`",
        ["rust/core/src/net/control/command_tests.rs::guest_offloads_and_hashes_are_told"];
    3 "says its MTU",
        Some("5.2"), user "host_mtu=2000", "`port.mtu`; `properties={\"host_mtu\": 2000}`",
        [
            "tests/device/test_features.py::test_mtu_speed_and_duplex_are_read",
            "tests/device/test_port_jumbo.py::test_frames_of_every_length_both_ways"
        ];
    5 "says its MAC address",
        Some("5.2"), user "", "`mac=`, `port.mac`",
        ["tests/device/test_port_user.py::test_chosen_mac_and_queue_size"];
    6 "stood for all segmentation of frames that are sent, before 1.0",
        Some("5.2"), user "disable-modern=on", "", [];
    7 "hands over TCP/IPv4 segments in one piece",
        Some("5.2"), tap "", "`offload=True`, `burst.offload`",
        ["tests/device/test_offload_receive.py::test_the_kernel_sends_long_tcp_frames", "tests/device/test_offload_forward.py::test_forward_keeps_segmentation"];
    8 "hands over TCP/IPv6 segments in one piece",
        Some("5.2"), tap "", "`offload=True`, `burst.offload`",
        ["tests/unit/test_offload.py::test_what_is_offered_is_accepted"];
    9 "and such with congestion marks",
        Some("5.2"), tap "", "`offload=True`, `burst.offload`",
        ["tests/unit/test_offload.py::test_what_is_offered_is_accepted"];
    10 "hands over UDP fragments in one piece",
        Some("5.2"), tap "", "`offload=True`, `burst.offload`",
        ["tests/unit/test_offload.py::test_what_is_offered_is_accepted"];
    11 "segments TCP/IPv4",
        Some("5.2"), tap "", "`port.send(…, offload=…)`",
        ["tests/device/test_offload_send.py::test_one_long_frame_becomes_segments"];
    12 "segments TCP/IPv6",
        Some("5.2"), tap "", "`port.send(…, offload=…)`",
        ["tests/device/test_offload_send.py::test_one_long_frame_becomes_segments"];
    13 "and such with congestion marks",
        Some("5.2"), tap "", "`port.send(…, offload=…)`",
        ["tests/device/test_offload_send.py::test_one_long_frame_becomes_segments"];
    14 "fragments UDP",
        Some("5.2"), tap "", "`port.send(…, offload=…)`",
        ["tests/device/test_offload_send.py::test_a_datagram_in_fragments"];
    15 "spreads a received frame over several buffers",
        Some("5.2"), user "", "`features={\"MRG_RXBUF\": …}`",
        ["tests/device/test_port_jumbo.py::test_frames_of_every_length_both_ways",
         "tests/device/test_port_jumbo.py::test_frames_that_no_buffer_holds_are_counted_and_told_of_once"];
    16 "says whether the link is up",
        Some("5.2"), user "", "`port.link`, `port.on_link()`",
        ["tests/device/test_port_user.py::test_link_changes_are_reported"];
    17 "takes commands",
        Some("5.2"), user "", "",
        ["tests/device/test_control_queue.py::test_commands_with_either_ring"];
    18 "receives everything, or all multicast, or what passes its filter",
        Some("5.2"), user "", "`port.set_promiscuous()`, `port.set_allmulticast()`, `port.set_mac_filter()`",
        ["tests/device/test_control_queue.py::test_filters_decide_what_arrives"];
    19 "receives the VLANs that it is told",
        Some("5.2"), user "", "`port.add_vlan()`, `port.remove_vlan()`",
        ["tests/device/test_control_queue.py::test_vlans_are_filtered"];
    20 "has more receive modes",
        Some("5.2"), user "", "`port.set_receive_mode()`",
        ["tests/device/test_control_queue.py::test_filters_decide_what_arrives"];
    21 "asks the driver to announce itself, as after a migration",
        Some("5.2"), user "", "by itself",
        ["tests/device/test_control_queue.py::test_the_port_announces_itself_when_asked"];
    22 "has several queue pairs",
        Some("5.2"), tap "mq=on", "`queues=`, `port.set_queues()`",
        [
            "tests/device/test_multiqueue.py::test_frames_of_all_queues_arrive_once",
            "tests/device/test_multiqueue.py::test_the_number_changes_while_running"
        ];
    23 "takes another MAC address",
        Some("5.2"), user "", "`port.set_mac()`",
        ["tests/device/test_control_queue.py::test_a_new_mac_address_is_received_and_sent"];
    24 "interrupts when it runs out of buffers, even where that is suppressed",
        Some("5.2"), user "disable-modern=on", "", [];
    27 "takes the header in front of the packet in one descriptor; modern devices always do",
        Some("5.2"), user "disable-modern=on", "`legacy=True`",
        ["tests/device/test_legacy.py::test_generated_frames_arrive_as_they_are"];
    28 "takes a table of descriptors for one; commands use it",
        Some("5.2"), user "", "",
        ["rust/core/tests/ring_device.rs::chains_without_a_free_table_go_direct"];
    29 "is told at which position to interrupt, and tells at which to kick",
        Some("5.2"), user "", "",
        ["tests/device/test_wakeups.py::test_no_wake_up_is_lost"];
    30 "finds out drivers that accept whatever is offered",
        Some("5.2"), user "disable-modern=on", "", [];
    32 "is a device of VIRTIO 1.0 or later; others are driven by the legacy interface",
        Some("5.2"), user "", "`legacy=`",
        [
            "rust/core/src/virtio/features.rs::version_1_is_required",
            "tests/device/test_legacy.py::test_the_modern_interface_is_chosen_where_there_is_one"
        ];
    33 "reaches memory through the platform, such as an IOMMU",
        Some("5.2"), user "iommu_platform=on,disable-legacy=on",
        "`properties={\"iommu_platform\": True, \"disable-legacy\": \"on\"}`",
        ["tests/device/test_features.py::test_offered_as_the_catalogue_says"];
    34 "has packed rings",
        Some("5.2"), user "packed=on", "`ring=\"packed\"`",
        [
            "tests/device/test_control_queue.py::test_commands_with_either_ring",
            "tests/device/test_vhost_user.py::test_echo"
        ];
    35 "finishes buffers in the order in which it got them",
        Some("10.0"), user "in_order=on", "`properties={\"in_order\": True}`",
        [
            "tests/device/test_features.py::test_offered_as_the_catalogue_says",
            "rust/core/tests/ring_hostile.rs::an_in_order_batch_that_ends_outside_itself"
        ];
    36 "needs memory barriers that hold for hardware; ours do",
        None, user "", "",
        ["rust/core/src/virtio/catalogue.rs::what_no_qemu_offers_is_accepted_where_it_is_offered"];
    37 "has virtual functions",
        None, user "", "", [];
    38 "is told by a kick how far the ring has come",
        None, user "", "",
        [
            "rust/core/src/virtio/transport/modern_tests.rs::notification_data_of_a_split_ring_is_the_available_index",
            "rust/core/src/virtio/transport/modern_tests.rs::notification_data_of_a_packed_ring_is_the_next_descriptor_and_the_wrap_counter"
        ];
    39 "says what a kick has to name instead of the queue",
        None, user "", "",
        ["rust/core/src/virtio/transport/modern_tests.rs::the_device_may_say_what_stands_for_the_queue"];
    40 "resets one queue and leaves the others alone",
        Some("7.2"), user "", "`port.queue(i).stop()`, `port.queue(i).start()`",
        ["tests/device/test_multiqueue.py::test_a_queue_stops_and_starts_without_the_others"];
    41 "has a queue for administration",
        None, user "", "", [];
    50 "tells its own counters",
        None, user "", "", [];
    51 "hashes what is inside tunnels",
        None, user "", "", [];
    52 "holds back the interrupts of one queue",
        None, user "", "`port.queue(i).set_coalescing()`",
        ["rust/core/src/net/control/command_tests.rs::coalescing_is_told_as_the_specification_says"];
    53 "holds back the interrupts of all receive or transmit queues",
        None, user "", "`port.set_coalescing()`",
        ["rust/core/src/net/control/command_tests.rs::coalescing_is_told_as_the_specification_says"];
    54 "hands over UDP/IPv4 segments in one piece",
        Some("10.0"), tap "", "`offload=True`, `burst.offload`",
        ["tests/device/test_offload_receive.py::test_udp_segments_arrive_as_one_frame"];
    55 "hands over UDP/IPv6 segments in one piece",
        Some("10.0"), tap "", "`offload=True`, `burst.offload`",
        ["tests/unit/test_offload.py::test_what_is_offered_is_accepted"];
    56 "segments UDP",
        Some("10.0"), tap "", "`port.send(…, offload=…)`",
        ["tests/device/test_offload_send.py::test_many_datagrams_in_one_frame"];
    57 "says the hash of each received frame",
        Some("5.2"), tap "hash=on", "`properties={\"hash\": True}`; `burst.hashes`",
        ["tests/device/test_rss.py::test_hashes_come_with_the_frames"];
    59 "can rely on the header length that the driver gives",
        None, user "", "`header_length` of an `Offload`, read from the frame",
        ["rust/core/src/net/packet/offload_tests.rs::what_is_right_gets_the_exact_header_length"];
    60 "steers received frames by a hash",
        Some("5.2"), user "rss=on", "`properties={\"rss\": True}`; `port.set_rss()`",
        ["tests/device/test_rss.py::test_flows_land_where_toeplitz_says"];
    61 "coalesces received TCP segments, and says how many",
        Some("5.2"), user "guest_rsc_ext=on", "`features={\"RSC_EXT\": True}`",
        ["tests/device/test_offload_receive.py::test_the_device_coalesces_segments"];
    62 "stands by for another device with the same MAC address",
        Some("5.2"), user "failover=on", "`port.standby`; `features={\"STANDBY\": True}`",
        ["tests/device/test_features.py::test_a_standby_device_says_so"];
    63 "says the speed and the duplex mode of its line",
        Some("5.2"), user "speed=10000,duplex=full", "`port.speed`, `port.duplex`; `properties={\"speed\": 10000}`",
        ["tests/device/test_features.py::test_mtu_speed_and_duplex_are_read"];
    65 "hands over segments inside a UDP tunnel in one piece",
        Some("11.1"), tap "", "", ["tests/unit/test_offload.py::test_tunnels_are_seen"];
    66 "and leaves the outer checksum to the driver",
        Some("11.1"), tap "", "", ["tests/unit/test_offload.py::test_tunnels_are_seen"];
    67 "segments what is inside a UDP tunnel",
        Some("11.1"), tap "", "", ["tests/unit/test_offload.py::test_tunnels_are_seen"];
    68 "and calculates the outer checksum",
        Some("11.1"), tap "", "", ["tests/unit/test_offload.py::test_tunnels_are_seen"];
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::Features;
    use crate::virtio::features::{Preferences, TABLE, negotiate};

    #[test]
    fn every_feature_has_one_entry() {
        for feature in TABLE {
            let entries = CATALOGUE.iter().filter(|entry| entry.bit == feature.bit).count();
            assert_eq!(entries, 1, "{}", feature.name);
        }
        assert!(CATALOGUE.is_sorted_by(|a, b| a.bit < b.bit));
    }

    #[test]
    fn what_no_qemu_offers_is_accepted_where_it_is_offered() {
        let wanted = Features::VERSION_1
            | Features::CTRL_VQ
            | Features::ORDER_PLATFORM
            | Features::NOTIFICATION_DATA
            | Features::NOTIF_CONFIG_DATA
            | Features::NOTF_COAL
            | Features::VQ_NOTF_COAL;
        let (accepted, _) = negotiate(wanted, &Preferences::default()).unwrap_or_default();
        assert_eq!(accepted, wanted);
    }
}
