//! Frames that are no answers.

use super::leases::{OFFER, serve};
use super::peer::*;
use proptest::prelude::*;
use smoltcp::wire::{ArpOperation, EthernetAddress, Icmpv4Repr};

/// Answers to a frame, of each kind that the stack parses.
fn answers(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut answers = vec![
        arp(ArpOperation::Reply, PEER, OUR_MAC, OURS),
        arp(ArpOperation::Request, PEER, EthernetAddress::BROADCAST, OURS),
        icmp(PEER, OURS, &Icmpv4Repr::EchoRequest { ident: 1, seq_no: 2, data: &[7; 40] }),
    ];
    answers.extend(echo(bytes, false).map(|(ident, seq, data)| reply(ident, seq, &data)));
    answers.extend(serve(bytes, OFFER));
    answers
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Corrupt frames during ARP, ping and DHCP have no effect.
    #[test]
    fn no_frame_breaks_the_stack(
        changes in prop::collection::vec((0usize..400, any::<u8>()), 0..12),
        cut in prop::option::of(0usize..400),
        noise in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        // Each answer is answered: some hundred are enough.
        let mut left = 100;
        let wire = Line::with_peer(move |bytes, inbox| {
            left -= 1.min(left);
            if left == 0 {
                return;
            }
            for mut answer in answers(bytes) {
                // The valid answer first, to reach every state.
                if cut.is_some_and(|cut| cut % 2 == 0) {
                    inbox.push(answer.clone());
                }
                answer.truncate(cut.unwrap_or(usize::MAX));
                for &(at, value) in &changes {
                    if let Some(byte) = answer.get_mut(at) {
                        *byte = value;
                    }
                }
                inbox.push(answer);
            }
            inbox.push(noise.clone());
        });
        let stack = stack(&wire);
        let _ = stack.arp(PEER, ms(1), &mut go_on);
        let _ = stack.ping(PEER.into(), 0, 56, ms(1), &mut go_on);
        let _ = stack.dhcp(ms(1), &mut go_on);
        prop_assert!(stack.check().is_ok());
    }
}
