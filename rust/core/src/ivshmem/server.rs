//! Accepts QEMUs and introduces ourselves as a peer.

use super::protocol::introduction;
use crate::memory::Region;
use crate::notify::{EventFd, timespec};
use crate::process::Home;
use crate::unix::{FileId, listen_at, remove};
use crate::{Error, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SocketFlags, accept_with, recv};
use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Our peer number. Not 0, so that a stray write of zero to a doorbell is no interrupt.
const OUR_PEER: u16 = 1;
/// The most vectors a device can have: QEMU's limit is 2,048, a doorbell's 65,536.
const MAX_VECTORS: u16 = 1024;
/// Clients at a time; each costs a descriptor and some socket buffer.
const MAX_CLIENTS: usize = 256;
/// How long no client is accepted after the process ran out of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// A listening ivshmem server. Any number of QEMUs may connect, now and again.
///
/// We are one peer with `vectors` eventfds; a QEMU's doorbell write of
/// [`Server::doorbell_value`]`(v)` to BAR0 + 12 signals [`Server::vector`]`(v)`.
/// The socket file is made with mode 0600, in a directory that others may write to with
/// 0660 or 0666; put it where only those may enter who may have the memory. Closed on drop.
#[derive(Debug)]
pub struct Server {
    home: Home,
    shared: Arc<Shared>,
    path: PathBuf,
    file: FileId,
    taken: Mutex<BTreeSet<u16>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the thread has.
#[derive(Debug)]
struct Shared {
    memory: OwnedFd,
    vectors: Vec<Arc<EventFd>>,
    stop: EventFd,
}

impl Server {
    /// Listens at `path` (made here, removed on drop).
    ///
    /// # Errors
    /// [`crate::Error::Os`], [`crate::Error::Invalid`] (no vectors, or more than 1,024).
    pub fn bind(path: &Path, memory: Arc<Region>, vectors: u16) -> Result<Self> {
        let memory = memory
            .fd()
            .try_clone_to_owned()
            .map_err(|e| Error::os("duplicating the memory's descriptor", e))?;
        Self::serve(path, memory, vectors)
    }

    fn serve(path: &Path, memory: OwnedFd, vectors: u16) -> Result<Self> {
        if vectors == 0 || vectors > MAX_VECTORS {
            return Err(Error::Invalid(format!(
                "an ivshmem device has 1 to {MAX_VECTORS} vectors, not {vectors}"
            )));
        }
        let vectors = (0..vectors).map(|_| EventFd::new().map(Arc::new)).collect::<Result<_>>()?;
        let shared = Arc::new(Shared { memory, vectors, stop: EventFd::new()? });
        let owner = Mode::RUSR | Mode::WUSR;
        let (listener, file) = listen_at(path, "ivshmem", Some(owner))?;
        let mut server = Self {
            home: Home::here(),
            shared: Arc::clone(&shared),
            path: path.to_owned(),
            file,
            taken: Mutex::default(),
            thread: Mutex::default(),
        };
        // From here on, dropping the server removes the file.
        let thread = std::thread::Builder::new()
            .name("virtnic-ivshmem".into())
            .spawn(move || shared.run(&listener))
            .map_err(|e| Error::os("starting the ivshmem server's thread", e))?;
        server.thread = Mutex::new(Some(thread));
        Ok(server)
    }

    /// How many vectors there are; what QEMU's `vectors=` property must be.
    pub fn vectors(&self) -> u16 {
        // At most MAX_VECTORS.
        self.shared.vectors.len() as u16
    }

    /// Our peer number.
    pub fn peer(&self) -> u16 {
        OUR_PEER
    }

    /// What QEMU writes to the doorbell register for this vector.
    pub fn doorbell_value(&self, vector: u16) -> u32 {
        (u32::from(self.peer()) << 16) | u32::from(vector)
    }

    /// The eventfd of a vector.
    pub fn vector(&self, vector: u16) -> Option<Arc<EventFd>> {
        self.shared.vectors.get(usize::from(vector)).cloned()
    }

    /// Reserves a free vector: its number and its eventfd.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] when all are in use; [`crate::Error::Closed`] in a forked child.
    pub fn take_vector(&self) -> Result<(u16, Arc<EventFd>)> {
        self.home.check("the ivshmem server")?;
        let mut taken = lock(&self.taken);
        let free = (0..self.vectors()).find(|v| !taken.contains(v));
        match free.and_then(|v| Some((v, self.vector(v)?))) {
            Some((vector, event)) => {
                taken.insert(vector);
                event.drain();
                Ok((vector, event))
            }
            None => Err(Error::Invalid(format!(
                "all {} interrupt vectors are in use: two for each queue pair and one for each port; \
                 start QEMU with more (Qemu(vectors=…))",
                self.vectors()
            ))),
        }
    }

    /// Gives a vector back; its eventfd is drained.
    pub fn give_vector(&self, vector: u16) {
        if !self.home.is_here() {
            return;
        }
        if lock(&self.taken).remove(&vector)
            && let Some(event) = self.vector(vector)
        {
            event.drain();
        }
    }

    /// Stops listening, closes the connections, ends the thread. Nothing in a forked child.
    pub fn close(&self) {
        if !self.home.is_here() {
            return;
        }
        self.shared.stop.signal();
        let mut thread = lock(&self.thread);
        let Some(handle) = thread.take() else { return };
        // A thread that panicked has printed why.
        let _ = handle.join();
        remove(&self.path, self.file);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.home.is_here() {
            // There is no such thread here: the handle's end would detach somebody else's.
            let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner);
            std::mem::forget(thread.take());
        } else if lock(&self.thread).is_some() {
            self.close();
        } else {
            // Closed already, or the thread never started.
            remove(&self.path, self.file);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connected QEMU.
#[derive(Debug)]
struct Client {
    socket: OwnedFd,
    peer: u16,
    /// The next message of the introduction; `None` after the last.
    next: Option<usize>,
}

impl Client {
    /// What to wait for. POLLHUP comes unasked.
    fn interest(&self) -> PollFlags {
        match self.next {
            Some(_) => PollFlags::IN | PollFlags::OUT,
            None => PollFlags::IN,
        }
    }

    /// Goes on with the introduction as far as possible; an error ends the connection.
    fn serve(&mut self, shared: &Shared, events: PollFlags) -> Result<(), String> {
        if events.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            match recv(&self.socket, &mut [0; 8][..], RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Err("it disconnected".into()),
                Ok(_) => return Err("it sent data, which no ivshmem client does".into()),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(e) => return Err(e.to_string()),
            }
        }
        while let Some(index) = self.next {
            let vector = |v: usize| shared.vectors.get(v).map(|e| e.as_fd());
            match introduction(index, self.peer, OUR_PEER, shared.memory.as_fd(), vector) {
                None => self.next = None,
                Some(message) => match message.send(self.socket.as_fd()) {
                    Ok(()) => self.next = Some(index + 1),
                    Err(Errno::AGAIN | Errno::INTR) => break,
                    Err(e) => return Err(e.to_string()),
                },
            }
        }
        Ok(())
    }
}

impl Shared {
    /// The thread: nothing in it blocks but the one poll.
    fn run(&self, listener: &OwnedFd) {
        let mut clients: Vec<Client> = Vec::new();
        let mut accepting = true;
        loop {
            let events = {
                let mut fds = vec![PollFd::new(&self.stop, PollFlags::IN)];
                // A descriptor that is not asked for anything still reports errors,
                // which a listening socket does not have.
                let asked = if accepting { PollFlags::IN } else { PollFlags::empty() };
                fds.push(PollFd::new(listener, asked));
                fds.extend(clients.iter().map(|c| PollFd::new(&c.socket, c.interest())));
                let pause = (!accepting).then_some(PAUSE);
                match poll(&mut fds, timespec(pause).as_ref()) {
                    Ok(_) => fds.iter().map(PollFd::revents).collect::<Vec<_>>(),
                    Err(Errno::INTR) => continue,
                    Err(e) => {
                        log::warn!("the ivshmem server cannot wait for its clients: {e}");
                        std::thread::sleep(PAUSE);
                        continue;
                    }
                }
            };
            let mut events = events.into_iter();
            if !events.next().unwrap_or(PollFlags::IN).is_empty() {
                return;
            }
            let knocked = events.next().is_some_and(|e| !e.is_empty());
            clients.retain_mut(|client| {
                let events = events.next().unwrap_or(PollFlags::empty());
                match events.is_empty() {
                    true => true,
                    false => {
                        client.serve(self, events).map_err(|why| client.farewell(&why)).is_ok()
                    }
                }
            });
            accepting = !knocked || self.accept(listener, &mut clients);
        }
    }

    /// Accepts one client; `false` when there are no descriptors left.
    fn accept(&self, listener: &OwnedFd, clients: &mut Vec<Client>) -> bool {
        match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(_) if clients.len() >= MAX_CLIENTS => {
                log::warn!("an ivshmem client was refused: there are {MAX_CLIENTS} already");
            }
            Ok(socket) => {
                // A number in use is not given out again, one of the past may be.
                let used: BTreeSet<u16> = clients.iter().map(|c| c.peer).collect();
                let Some(peer) = (OUR_PEER + 1..=u16::MAX).find(|p| !used.contains(p)) else {
                    return true;
                };
                log::debug!("ivshmem peer {peer} connected");
                clients.push(Client { socket, peer, next: Some(0) });
            }
            Err(e @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                log::warn!("an ivshmem client must wait: {e}");
                return false;
            }
            // It was gone again before we looked.
            Err(_) => {}
        }
        true
    }
}

impl Client {
    fn farewell(&self, why: &str) {
        match self.next {
            Some(done) => {
                log::warn!("ivshmem peer {} left after {done} messages: {why}", self.peer)
            }
            None => log::debug!("ivshmem peer {} left: {why}", self.peer),
        }
    }
}

#[cfg(all(test, not(loom)))]
#[path = "tests.rs"]
mod tests;
