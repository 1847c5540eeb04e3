//! What QEMU may send over the QTest socket.
//!
//! The first byte says how many requests wait (at most 16), the next ones which; the rest is
//! what comes from the socket. It is fed once as a whole and once in pieces.

use crate::Input;
use virtnic::Error;
use virtnic::qtest::testing::{Inbox, MOST_HELD, Reply, Request};

/// The target.
pub fn target(data: &[u8]) {
    let mut input = Input::new(data);
    let count = input.byte() % 17;
    let requests: Vec<Request> = (0..count)
        .map(|_| match input.byte() {
            kind @ 0..4 => Request::Read(1 << kind),
            4 => Request::Posted,
            5 => Request::Clock,
            length => Request::Bytes(usize::from(length)),
        })
        .collect();
    let size = usize::from(input.byte()).max(1);
    let stream = input.bytes(usize::MAX);
    let whole = deliver(&requests, [stream].into_iter());
    let pieces = deliver(&requests, stream.chunks(size));
    assert_eq!(whole, pieces, "the pieces matter");
}

/// What the callers have got, whether the protocol was broken, and which lines are raised.
type Outcome = (Vec<Option<Reply>>, bool, bool, Vec<u32>);

fn deliver<'a>(requests: &[Request], mut pieces: impl Iterator<Item = &'a [u8]>) -> Outcome {
    let mut inbox = Inbox::default();
    for &request in requests {
        inbox.ask(request).unwrap();
    }
    let broken = pieces.any(|piece| {
        let fed = inbox.feed(piece);
        assert!(inbox.held() <= MOST_HELD);
        fed.is_err_and(|why| {
            assert!(!why.is_empty() && why.len() < 1000 && !why.contains('\n'), "{why}");
            true
        })
    });
    let refused = inbox.refusals().is_err();
    let raised = (0..1100).filter(|&line| inbox.level(line)).collect();
    let answers = inbox.answers().into_iter().map(|(request, answer)| {
        match (&answer, request) {
            (Ok(Reply::Number(number)), Request::Read(width)) => {
                assert!(width == 8 || number >> (8 * width) == 0);
            }
            (Ok(Reply::Number(number)), Request::Clock) => assert!(number >> 63 == 0),
            (Ok(Reply::Bytes(bytes)), Request::Bytes(length)) => assert_eq!(bytes.len(), length),
            // Broken: nobody waits any longer. Else who has no answer waits on.
            (Err(Error::Qemu(why)), _) => assert!(why.starts_with("QEMU refused"), "{why}"),
            (Err(Error::QemuDied(_)), _) => assert!(broken),
            (Err(Error::Timeout(_)), _) => assert!(!broken),
            other => panic!("{other:?}"),
        }
        answer.ok()
    });
    (answers.collect(), broken, refused, raised)
}
