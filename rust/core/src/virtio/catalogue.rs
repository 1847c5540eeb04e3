//! The catalogue of features: the meaning of each, which QEMU offers it and how, what controls it, and
//! which tests cover it.
//!
//! `make docs` generates `docs/features.md` from it and from [`TABLE`](super::features::TABLE).
//! `tests/device/test_features.py` compares it with a QEMU; `make matrix` runs that test on QEMU 5.2,
//! 7.2, 10.0 and 11.1.

/// The catalogue entry of a feature.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its number.
    pub bit: u8,
    /// What a device with it does.
    pub about: &'static str,
    /// The oldest of those four QEMUs that offers it; `None`: none of them.
    pub since: Option<&'static str>,
    /// The netdev that it was tested with: `user`, or `tap` if `user` does not offer it.
    pub netdev: &'static str,
    /// The required properties of QEMU's `virtio-net-pci`.
    pub properties: &'static str,
    /// What controls it besides `features={…}`, in Markdown.
    pub argument: &'static str,
    /// Tests that cover it, as `file::name`.
    pub tests: &'static [&'static str],
}

/// The entry of a bit.
#[must_use]
pub fn entry(bit: u8) -> Option<&'static Entry> {
    CATALOGUE.iter().find(|entry| entry.bit == bit)
}

macro_rules! catalogue {
    ($($bit:literal $about:literal, $since:expr, $netdev:ident $properties:literal, $argument:literal,
       [$($test:literal),*];)*) => {
        /// All entries, by number.
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

// Bit, what a device with it does, the oldest QEMU that offers it, netdev and properties, what controls
// it, tests.
catalogue! {
    0 "completes the checksums of transmitted frames",
        Some("5.2"), tap "", "`port.send(…, offload=…)`",
        ["tests/device/test_offload_send.py::test_checksums_are_calculated_by_the_device", "tests/device/test_offload_forward.py::test_forward_calculates_what_the_other_port_cannot"];
    1 "may deliver frames with incomplete checksums",
        Some("5.2"), tap "", "`offload=True`, `burst.offload`",
        ["tests/device/test_offload_receive.py::test_offloads_are_turned_off_and_on_at_run_time"];
    2 "turns offloads of received frames on and off at run time",
        Some("5.2"), user "", "`port.set_guest_offloads()`",
        ["rust/core/src/net/control/command_tests.rs::guest_offloads_and_hashes_are_told"];
    3 "reports its MTU",
        Some("5.2"), user "host_mtu=2000", "`port.mtu`; `properties={\"host_mtu\": 2000}`",
        [
            "tests/device/test_features.py::test_mtu_speed_and_duplex_are_read",
            "tests/device/test_port_jumbo.py::test_frames_of_every_length_both_ways"
        ];
    5 "reports its MAC address",
        Some("5.2"), user "", "`mac=`, `port.mac`",
        ["tests/device/test_port_user.py::test_chosen_mac_and_queue_size"];
    6 "segments transmitted frames of all kinds (before VIRTIO 1.0)",
        Some("5.2"), user "disable-modern=on", "", [];
    7 "may deliver several TCP/IPv4 segments as one frame",
        Some("5.2"), tap "", "`offload=True`, `burst.offload`",
        ["tests/device/test_offload_receive.py::test_the_kernel_sends_long_tcp_frames", "tests/device/test_offload_forward.py::test_forward_keeps_segmentation"];
    8 "may deliver several TCP/IPv6 segments as one frame",
        Some("5.2"), tap "", "`offload=True`, `burst.offload`",
        ["tests/unit/test_offload.py::test_what_is_offered_is_accepted"];
    9 "may deliver such frames with congestion marks (ECN)",
        Some("5.2"), tap "", "`offload=True`, `burst.offload`",
        ["tests/unit/test_offload.py::test_what_is_offered_is_accepted"];
    10 "may deliver the fragments of a UDP datagram as one frame",
        Some("5.2"), tap "", "`offload=True`, `burst.offload`",
        ["tests/unit/test_offload.py::test_what_is_offered_is_accepted"];
    11 "segments TCP/IPv4",
        Some("5.2"), tap "", "`port.send(…, offload=…)`",
        ["tests/device/test_offload_send.py::test_one_long_frame_becomes_segments"];
    12 "segments TCP/IPv6",
        Some("5.2"), tap "", "`port.send(…, offload=…)`",
        ["tests/device/test_offload_send.py::test_one_long_frame_becomes_segments"];
    13 "segments TCP with congestion marks (ECN)",
        Some("5.2"), tap "", "`port.send(…, offload=…)`",
        ["tests/device/test_offload_send.py::test_one_long_frame_becomes_segments"];
    14 "fragments UDP",
        Some("5.2"), tap "", "`port.send(…, offload=…)`",
        ["tests/device/test_offload_send.py::test_a_datagram_in_fragments"];
    15 "spreads a received frame over several buffers",
        Some("5.2"), user "", "`features={\"MRG_RXBUF\": …}`",
        ["tests/device/test_port_jumbo.py::test_frames_of_every_length_both_ways",
         "tests/device/test_port_jumbo.py::test_frames_that_no_buffer_holds_are_counted_and_told_of_once"];
    16 "reports whether the link is up",
        Some("5.2"), user "", "`port.link`, `port.on_link()`",
        ["tests/device/test_port_user.py::test_link_changes_are_reported"];
    17 "has a control queue",
        Some("5.2"), user "", "",
        ["tests/device/test_control_queue.py::test_commands_with_either_ring"];
    18 "has receive modes: promiscuous, all-multicast, or filtered by address",
        Some("5.2"), user "", "`port.set_promiscuous()`, `port.set_allmulticast()`, `port.set_mac_filter()`",
        ["tests/device/test_control_queue.py::test_filters_decide_what_arrives"];
    19 "filters received frames by VLAN",
        Some("5.2"), user "", "`port.add_vlan()`, `port.remove_vlan()`",
        ["tests/device/test_control_queue.py::test_vlans_are_filtered"];
    20 "has more receive modes",
        Some("5.2"), user "", "`port.set_receive_mode()`",
        ["tests/device/test_control_queue.py::test_filters_decide_what_arrives"];
    21 "asks the driver to announce itself, as after a migration",
        Some("5.2"), user "", "automatic",
        ["tests/device/test_control_queue.py::test_the_port_announces_itself_when_asked"];
    22 "has several queue pairs",
        Some("5.2"), tap "mq=on", "`queues=`, `port.set_queues()`",
        [
            "tests/device/test_multiqueue.py::test_frames_of_all_queues_arrive_once",
            "tests/device/test_multiqueue.py::test_the_number_changes_while_running"
        ];
    23 "lets the driver change the MAC address",
        Some("5.2"), user "", "`port.set_mac()`",
        ["tests/device/test_control_queue.py::test_a_new_mac_address_is_received_and_sent"];
    24 "interrupts when it runs out of buffers, even if interrupts are suppressed",
        Some("5.2"), user "disable-modern=on", "", [];
    27 "accepts header and packet in one descriptor, as modern devices always do",
        Some("5.2"), user "disable-modern=on", "`legacy=True`",
        ["tests/device/test_legacy.py::test_generated_frames_arrive_as_they_are"];
    28 "accepts indirect descriptors, which commands use",
        Some("5.2"), user "", "",
        ["rust/core/tests/ring_device.rs::chains_without_a_free_table_go_direct"];
    29 "suppresses interrupts and kicks by ring position",
        Some("5.2"), user "", "",
        ["tests/device/test_wakeups.py::test_no_wake_up_is_lost"];
    30 "detects drivers that accept every offered bit",
        Some("5.2"), user "disable-modern=on", "", [];
    32 "complies with VIRTIO 1.0 or later; others use the legacy interface",
        Some("5.2"), user "", "`legacy=`",
        [
            "rust/core/src/virtio/negotiation.rs::version_1_is_required",
            "tests/device/test_legacy.py::test_the_modern_interface_is_chosen_where_there_is_one"
        ];
    33 "accesses memory through the platform, such as an IOMMU",
        Some("5.2"), user "iommu_platform=on,disable-legacy=on",
        "`properties={\"iommu_platform\": True, \"disable-legacy\": \"on\"}`",
        ["tests/device/test_features.py::test_offered_as_the_catalogue_says"];
    34 "has packed rings",
        Some("5.2"), user "packed=on", "`ring=\"packed\"`",
        [
            "tests/device/test_control_queue.py::test_commands_with_either_ring",
            "tests/device/test_vhost_user.py::test_echo"
        ];
    35 "uses buffers in the order in which they were made available",
        Some("10.0"), user "in_order=on", "`properties={\"in_order\": True}`",
        [
            "tests/device/test_features.py::test_offered_as_the_catalogue_says",
            "rust/core/tests/ring_hostile.rs::an_in_order_batch_that_ends_outside_itself"
        ];
    36 "needs memory barriers that are valid for hardware, as ours are",
        None, user "", "",
        ["rust/core/src/virtio/catalogue.rs::features_that_no_qemu_offers_are_accepted"];
    37 "has virtual functions",
        None, user "", "", [];
    38 "gets the ring position with each kick",
        None, user "", "",
        [
            "rust/core/src/virtio/transport/modern_tests.rs::notification_data_of_a_split_ring_is_the_available_index",
            "rust/core/src/virtio/transport/modern_tests.rs::notification_data_of_a_packed_ring_is_the_next_descriptor_and_the_wrap_counter"
        ];
    39 "chooses the value that identifies the queue in a kick",
        None, user "", "",
        ["rust/core/src/virtio/transport/modern_tests.rs::the_device_chooses_the_value_of_a_queue"];
    40 "can reset a single queue",
        Some("7.2"), user "", "`port.queue(i).stop()`, `port.queue(i).start()`",
        ["tests/device/test_multiqueue.py::test_a_queue_stops_and_starts_without_the_others"];
    41 "has an administration queue",
        None, user "", "", [];
    50 "reports its own counters",
        None, user "", "", [];
    51 "hashes the packet inside a tunnel",
        None, user "", "", [];
    52 "coalesces the interrupts of one queue",
        None, user "", "`port.queue(i).set_coalescing()`",
        ["rust/core/src/net/control/command_tests.rs::coalescing_is_told_as_the_specification_says"];
    53 "coalesces the interrupts of all receive or all transmit queues",
        None, user "", "`port.set_coalescing()`",
        ["rust/core/src/net/control/command_tests.rs::coalescing_is_told_as_the_specification_says"];
    54 "may deliver several UDP/IPv4 datagrams as one frame",
        Some("10.0"), tap "", "`offload=True`, `burst.offload`",
        ["tests/device/test_offload_receive.py::test_udp_segments_arrive_as_one_frame"];
    55 "may deliver several UDP/IPv6 datagrams as one frame",
        Some("10.0"), tap "", "`offload=True`, `burst.offload`",
        ["tests/unit/test_offload.py::test_what_is_offered_is_accepted"];
    56 "segments UDP",
        Some("10.0"), tap "", "`port.send(…, offload=…)`",
        ["tests/device/test_offload_send.py::test_many_datagrams_in_one_frame"];
    57 "reports a hash of each received frame",
        Some("5.2"), tap "hash=on", "`properties={\"hash\": True}`; `burst.hashes`",
        ["tests/device/test_rss.py::test_hashes_come_with_the_frames"];
    59 "can rely on the header length that the driver gives",
        None, user "", "`header_length` of an `Offload`, read from the frame",
        ["rust/core/src/net/packet/offload_tests.rs::what_is_right_gets_the_exact_header_length"];
    60 "steers received frames by a hash",
        Some("5.2"), user "rss=on", "`properties={\"rss\": True}`; `port.set_rss()`",
        ["tests/device/test_rss.py::test_flows_land_where_toeplitz_says"];
    61 "coalesces received TCP segments and reports how many",
        Some("5.2"), user "guest_rsc_ext=on", "`features={\"RSC_EXT\": True}`",
        ["tests/device/test_offload_receive.py::test_the_device_coalesces_segments"];
    62 "is the standby of another device with the same MAC address",
        Some("5.2"), user "failover=on", "`port.standby`; `features={\"STANDBY\": True}`",
        ["tests/device/test_features.py::test_a_standby_device_says_so"];
    63 "reports the speed and the duplex mode of its link",
        Some("5.2"), user "speed=10000,duplex=full", "`port.speed`, `port.duplex`; `properties={\"speed\": 10000}`",
        ["tests/device/test_features.py::test_mtu_speed_and_duplex_are_read"];
    65 "may deliver several segments inside a UDP tunnel as one frame",
        Some("11.1"), tap "", "", ["tests/unit/test_offload.py::test_tunnels_are_seen"];
    66 "may deliver such frames with an incomplete outer checksum",
        Some("11.1"), tap "", "", ["tests/unit/test_offload.py::test_tunnels_are_seen"];
    67 "segments packets inside a UDP tunnel",
        Some("11.1"), tap "", "", ["tests/unit/test_offload.py::test_tunnels_are_seen"];
    68 "completes the outer checksum of such packets",
        Some("11.1"), tap "", "", ["tests/unit/test_offload.py::test_tunnels_are_seen"];
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::Features;
    use crate::virtio::features::TABLE;
    use crate::virtio::negotiation::{Preferences, negotiate};

    #[test]
    fn every_feature_has_one_entry() {
        for feature in TABLE {
            let entries = CATALOGUE.iter().filter(|entry| entry.bit == feature.bit).count();
            assert_eq!(entries, 1, "{}", feature.name);
        }
        assert!(CATALOGUE.is_sorted_by(|a, b| a.bit < b.bit));
    }

    #[test]
    fn features_that_no_qemu_offers_are_accepted() {
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
