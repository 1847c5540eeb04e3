//! A QEMU and a backend that say anything to the interposer between them.
//!
//! | byte | then | what happens |
//! |---|---|---|
//! | 0, 1 | request, flags, descriptors, length, payload | QEMU, the backend send a message |
//! | 2, 3 | descriptors, count, bytes | QEMU, the backend send bytes |
//! | 4 | tenths of a second | time passes |
//! | 5 | which | QEMU or the backend hangs up |
//! | 6 | | all queues are kicked |

use crate::Input;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::time::Duration;
use virtnic::vhost_user::testing::{Joint, MAX_FDS, MAX_PAYLOAD};

const HEADER: usize = 12;
const OPERATIONS: usize = 64;
/// Requests whose payload is changed in passing: SET_VRING_BASE, SET_VRING_CALL and the two
/// about protocol features.
const REWRITTEN: [u32; 4] = [10, 13, 15, 16];
const SET_VRING_CALL: u32 = 13;

/// One of each kind of descriptor that may come.
fn descriptors() -> &'static [OwnedFd; 5] {
    static DESCRIPTORS: OnceLock<[OwnedFd; 5]> = OnceLock::new();
    DESCRIPTORS.get_or_init(|| {
        let event = || eventfd(0, EventfdFlags::empty()).unwrap();
        let file = memfd_create("fuzz", MemfdFlags::CLOEXEC).unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let (socket, other) = UnixStream::pair().unwrap();
        drop(other);
        [event(), event(), file, writer.into(), socket.into()]
    })
}

/// One side: what it has said, and what has come from the other.
struct End {
    socket: UnixStream,
    said: Vec<u8>,
    gave: usize,
    heard: Vec<u8>,
    got: usize,
}

impl End {
    fn new(socket: UnixStream) -> Self {
        Self { socket, said: Vec::new(), gave: 0, heard: Vec::new(), got: 0 }
    }

    /// Sends all of it with the descriptors, as far as the socket takes it.
    fn say(&mut self, bytes: &[u8], fds: u8) {
        if bytes.is_empty() {
            return;
        }
        let all = descriptors();
        let count = usize::from(fds % 48);
        let fds: Vec<BorrowedFd<'_>> =
            (0..count).map(|i| all[(i + usize::from(fds)) % all.len()].as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(48))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if count > 0 {
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        if let Ok(sent) = sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, flags) {
            self.said.extend_from_slice(&bytes[..sent]);
            self.gave += count;
        }
    }

    /// Takes what there is.
    fn hear(&mut self) {
        let mut bytes = [0; 4096];
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let into = &mut [IoSliceMut::new(&mut bytes)];
            let Ok(got) = recvmsg(&self.socket, into, &mut control, flags) else { return };
            assert!(!got.flags.contains(ReturnFlags::CTRUNC));
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(fds) = message {
                    let count = fds.count();
                    assert!(count <= MAX_FDS, "{count} descriptors in one message");
                    self.got += count;
                }
            }
            if got.bytes == 0 {
                return;
            }
            self.heard.extend_from_slice(&bytes[..got.bytes]);
        }
    }
}

/// The next message: request, flags, payload; and what is behind it.
fn message(bytes: &[u8]) -> Option<(u32, u32, &[u8], &[u8])> {
    let field = |i: usize| Some(u32::from_ne_bytes(*bytes.get(4 * i..)?.first_chunk()?));
    let (request, flags, size) = (field(0)?, field(1)?, field(2)? as usize);
    let rest = &bytes[HEADER..];
    (size <= rest.len() && size <= MAX_PAYLOAD)
        .then(|| (request, flags, &rest[..size], &rest[size..]))
}

/// What was heard is what was said, from the start, but for what is changed on purpose.
fn check(from: &End, to: &End) {
    let (mut said, mut heard) = (&from.said[..], &to.heard[..]);
    let mut replaced = 0;
    while let Some((request, flags, payload, rest)) = message(heard) {
        let original = message(said).expect("a message that was sent");
        assert_eq!((request, flags), (original.0, original.1));
        if REWRITTEN.contains(&request) {
            assert_eq!(payload.len(), original.2.len());
            replaced += usize::from(request == SET_VRING_CALL);
        } else {
            assert_eq!(payload, original.2);
        }
        (said, heard) = (original.3, rest);
    }
    assert!(heard.is_empty() || heard.len() < said.len(), "half a message that nobody sent");
    assert!(to.got <= from.gave + replaced, "{} descriptors of {}", to.got, from.gave);
}

fn open() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// The target.
pub fn target(data: &[u8]) {
    descriptors();
    let before = open();
    talk(Input::new(data));
    assert_eq!(open(), before, "descriptors were left open");
}

fn talk(mut input: Input<'_>) {
    let ((qemu, one), (backend, two)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
    for ours in [&one, &two] {
        ours.set_nonblocking(true).unwrap();
    }
    let mut joint = Joint::new(one, two, usize::from(input.byte() % 4)).unwrap();
    let (mut qemu, mut backend) = (End::new(qemu), End::new(backend));
    let (mut after, mut ended) = (Duration::ZERO, false);
    for _ in 0..OPERATIONS {
        if input.is_empty() {
            break;
        }
        let kind = input.byte() % 7;
        let side = if kind.is_multiple_of(2) { &mut qemu } else { &mut backend };
        match kind {
            0 | 1 => {
                let (request, flags) = (u32::from(input.byte()), u32::from(input.byte()));
                let (fds, length) = (input.byte(), input.byte());
                let payload = input.bytes(length.into());
                let mut bytes = Vec::with_capacity(HEADER + payload.len());
                for field in [request, flags, payload.len() as u32] {
                    bytes.extend_from_slice(&field.to_ne_bytes());
                }
                bytes.extend_from_slice(payload);
                side.say(&bytes, fds);
            }
            2 | 3 => {
                let (fds, count) = (input.byte(), input.byte());
                let bytes = input.bytes(count.into());
                side.say(bytes, fds);
            }
            4 => after += Duration::from_millis(100) * u32::from(input.byte()),
            5 => {
                let which = if input.byte() & 1 == 0 { &qemu } else { &backend };
                let _ = which.socket.shutdown(std::net::Shutdown::Write);
            }
            _ => joint.ring(),
        }
        for _ in 0..4 {
            if let Err(why) = joint.serve(after) {
                assert!(!why.is_empty() && why.len() < 500, "{why}");
                assert_eq!(joint.connected(), 0);
                ended = true;
            }
            qemu.hear();
            backend.hear();
        }
        check(&qemu, &backend);
        check(&backend, &qemu);
        if ended {
            return;
        }
    }
}
