//! Loom models: `RUSTFLAGS="--cfg loom" cargo test -p virtnic --release --lib loom`.
//!
//! The socket holds one line; the pipeline is the real one. If a kick is lost, QEMU waits for it
//! forever, which loom reports as a deadlock.

#![allow(clippy::unwrap_used)]

use crate::Result;
use crate::qtest::pipeline::{Pipeline, Signal, Ticket};
use crate::qtest::sync::{Condvar, Mutex, lock, wait};
use crate::qtest::wire::{Answer, Command, parse};
use loom::thread;
use std::sync::Arc;

#[derive(Debug)]
struct Nobody;
impl Signal for Nobody {
    fn signal(&self) {}
}

/// A socket with room for one line, and the QEMU that reads it.
#[derive(Default)]
struct Socket {
    line: Mutex<Option<Vec<u8>>>,
    changed: Condvar,
}

impl Socket {
    fn write_now(&self, bytes: &[u8]) -> usize {
        let mut line = lock(&self.line);
        if line.is_some() {
            return 0;
        }
        *line = Some(bytes.to_vec());
        self.changed.notify_all();
        bytes.len()
    }
    /// Writes, waiting if necessary.
    fn write(&self, bytes: &[u8]) {
        let mut line = lock(&self.line);
        while line.is_some() {
            line = wait(&self.changed, line, None);
        }
        *line = Some(bytes.to_vec());
        self.changed.notify_all();
    }
    fn read(&self) -> String {
        let mut line = lock(&self.line);
        loop {
            if let Some(bytes) = line.take() {
                self.changed.notify_all();
                return String::from_utf8(bytes).unwrap();
            }
            line = wait(&self.changed, line, None);
        }
    }
}

struct World {
    pipeline: Pipeline<Nobody>,
    socket: Socket,
}

fn kick_of(queue: u64, next: u64) -> Command {
    Command::Write { address: 0x3000, width: 4, value: next << 16 | queue }
}

fn line_of(command: Command) -> String {
    String::from_utf8(command.line().bytes().to_vec()).unwrap()
}

impl World {
    fn new() -> Arc<Self> {
        Arc::new(Self { pipeline: Pipeline::new(), socket: Socket::default() })
    }

    fn kick(&self, kick: Command) {
        self.pipeline.kick(kick, |line| self.socket.write_now(line)).unwrap();
    }

    /// Like `Connection::submit`, and waits for the reply.
    fn ask(&self) -> Result<Vec<Answer>> {
        let ticket = Ticket::new(1);
        let command = Command::In { port: 7, width: 2 };
        let mut turn = self.pipeline.begin(&[command], Some(&ticket), None, None)?;
        // In whole lines.
        let before = String::from_utf8(turn.before().to_vec()).unwrap();
        before.split_inclusive('\n').for_each(|line| self.socket.write(line.as_bytes()));
        turn.wrote_before();
        self.socket.write(command.line().bytes());
        drop(turn);
        self.pipeline.go_on(|line| self.socket.write_now(line));
        self.pipeline.finish(&ticket, command, None, None)
    }

    /// QEMU and the reading thread: answers until each of these lines has arrived.
    fn serve(&self, wanted: &[String]) {
        let mut seen: Vec<String> = Vec::new();
        while !wanted.iter().all(|line| seen.contains(line)) {
            let line = self.socket.read();
            let reply = if line.starts_with("in") { "OK 0x0007" } else { "OK" };
            self.pipeline.deliver(&parse(reply.as_bytes()).unwrap()).unwrap();
            self.pipeline.go_on(|line| self.socket.write_now(line));
            seen.push(line);
        }
    }
}

fn model(body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(body);
}

fn spawn(world: &Arc<World>, body: impl FnOnce(&World) + 'static) -> thread::JoinHandle<()> {
    let world = Arc::clone(world);
    thread::spawn(move || body(&world))
}

/// The last kick of each queue arrives, without another request.
#[test]
fn loom_a_full_socket_loses_no_kick() {
    model(|| {
        let world = World::new();
        let last = [line_of(kick_of(0, 2)), line_of(kick_of(1, 1))];
        let qemu = spawn(&world, move |world| world.serve(&last));
        let other = spawn(&world, |world| world.kick(kick_of(1, 1)));
        world.kick(kick_of(0, 1));
        world.kick(kick_of(0, 2));
        other.join().unwrap();
        qemu.join().unwrap();
    });
}

/// A kick during another thread's turn or wait arrives, and the request gets its own reply.
#[test]
fn loom_a_kick_beside_a_request() {
    model(|| {
        let world = World::new();
        let last = [line_of(kick_of(0, 2)), line_of(Command::In { port: 7, width: 2 })];
        let qemu = spawn(&world, move |world| world.serve(&last));
        let asking = spawn(&world, |world| {
            assert_eq!(world.ask().unwrap(), [Answer::Number(7)]);
        });
        world.kick(kick_of(0, 1));
        world.kick(kick_of(0, 2));
        asking.join().unwrap();
        qemu.join().unwrap();
    });
}
