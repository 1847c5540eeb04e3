//! Clients that do anything to the ivshmem server, and then one that behaves.
//!
//! | byte | then | what happens |
//! |---|---|---|
//! | 0 | which | a client connects |
//! | 1 | which, count | it reads up to so many messages, where there are some |
//! | 2 | which, descriptors, count, bytes | it sends, which no client does |
//! | 3 | which | it shuts down its sending side |
//! | 4 | which | it goes |

use crate::Input;
use rustix::fs::{fstat, ftruncate};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;
use virtnic::ivshmem::Server;
use virtnic::memory::{PageRequest, PageSize, Placement, Region, RegionOptions};
use virtnic::notify::EventFd;

const VECTORS: u16 = 3;
const CLIENTS: usize = 6;
const OPERATIONS: usize = 32;
const SIZE: u64 = 1 << 20;

/// One server for all inputs: what one leaves behind, the next one meets.
fn server() -> &'static (Server, PathBuf) {
    static SERVER: OnceLock<(Server, PathBuf)> = OnceLock::new();
    SERVER.get_or_init(|| {
        let region = Region::new(&RegionOptions {
            size: SIZE as usize,
            pages: PageRequest::Exactly(PageSize::Base),
            placement: Placement::Virtual,
            node: None,
            directory: None,
            buffer_size: 2048,
            jumbo_buffers: None,
            jumbo_size: None,
        });
        let path = std::env::temp_dir().join(format!("virtnic-fuzz-{}", std::process::id()));
        let server = Server::new(&path, region.unwrap());
        server.listen().unwrap();
        for _ in 0..VECTORS {
            server.take_vector().unwrap();
        }
        (server, path)
    })
}

fn connect() -> UnixStream {
    // libFuzzer's clock is a signal.
    let socket = loop {
        match UnixStream::connect(&server().1) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            other => break other.unwrap(),
        }
    };
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket
}

/// One message of up to eight bytes, as QEMU reads it; `None` at the end.
fn message(socket: &UnixStream, flags: RecvFlags) -> Result<Option<(i64, Option<OwnedFd>)>, Errno> {
    let mut bytes = [0; 8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let into = &mut [IoSliceMut::new(&mut bytes)];
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let got = retry_on_intr(|| recvmsg(socket, into, &mut control, flags))?;
    if got.bytes == 0 {
        return Ok(None);
    }
    assert_eq!(got.bytes, 8);
    let mut fds: Vec<OwnedFd> = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = part {
            fds.extend(received);
        }
    }
    assert!(fds.len() <= 1, "{} descriptors in one message", fds.len());
    Ok(Some((i64::from_le_bytes(bytes), fds.pop())))
}

fn send(socket: &UnixStream, bytes: &[u8], fds: usize) {
    let mine = [socket.as_fd(); 16];
    let fds: &[BorrowedFd<'_>] = &mine[..fds % 17];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    // Who was thrown out cannot send.
    let _ = sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags);
}

/// The target.
pub fn target(data: &[u8]) {
    let mut input = Input::new(data);
    let mut clients: [Option<UnixStream>; CLIENTS] = Default::default();
    for _ in 0..OPERATIONS {
        if input.is_empty() {
            break;
        }
        let (kind, which) = (input.byte() % 5, usize::from(input.byte()) % CLIENTS);
        if kind == 0 {
            clients[which] = Some(connect());
            continue;
        }
        let Some(client) = &clients[which] else { continue };
        match kind {
            1 => {
                for _ in 0..input.byte() {
                    match message(client, RecvFlags::DONTWAIT) {
                        Ok(Some((value, _))) => {
                            assert!((-1..=VECTORS.into()).contains(&value), "{value}")
                        }
                        _ => break,
                    }
                }
            }
            2 => {
                let (fds, count) = (input.byte(), input.byte());
                send(client, input.bytes(count.into()), fds.into());
            }
            3 => {
                let _ = client.shutdown(std::net::Shutdown::Write);
            }
            _ => clients[which] = None,
        }
    }
    introduced(&connect());
}

/// A client that behaves gets all of it, whatever the others do.
fn introduced(socket: &UnixStream) {
    let (server, _) = server();
    let next = || message(socket, RecvFlags::empty()).unwrap().expect("a message, not the end");
    assert!(matches!(next(), (0, None)));
    let (id, none) = next();
    assert!(none.is_none() && id == 0);
    for vector in 0..VECTORS {
        let (peer, fd) = next();
        assert_eq!(peer << 16, i64::from(Server::doorbell_value(vector)));
        EventFd::from_fd(fd.expect("an eventfd")).unwrap().signal();
        assert!(server.vector(vector).unwrap().drain() >= 1);
    }
    let (end, memory) = next();
    let memory = memory.expect("the memory");
    assert_eq!((end, fstat(&memory).unwrap().st_size), (-1, SIZE as i64));
    assert_eq!(ftruncate(&memory, 4096), Err(Errno::PERM));
}
