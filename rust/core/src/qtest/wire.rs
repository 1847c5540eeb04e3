//! Formatting of requests and parsing of replies. Pure functions.

use std::fmt;

/// The longest accepted line: `OK 0x` and two digits for each byte of [`READ_CHUNK`], with room for an
/// error message.
pub(super) const MAX_LINE: usize = 2 * READ_CHUNK + 64;
/// The most bytes of one `read` command.
pub(super) const READ_CHUNK: usize = 4096;
/// The most bytes of one `write` command.
pub(super) const WRITE_CHUNK: usize = 2048;
/// The number of interrupt lines; QEMU's own limit is 256.
pub(super) const MAX_IRQ: u32 = 1024;

/// A request. Small and `Copy`: it is kept until its reply arrives, so that an error can quote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    In { port: u16, width: u8 },
    Out { port: u16, width: u8, value: u32 },
    Read { address: u64, width: u8 },
    Write { address: u64, width: u8, value: u64 },
    ReadBytes { address: u64, len: usize },
    WriteBytes { address: u64, len: usize },
    Intercept,
    ClockStep { ns: Option<u64> },
    Endianness,
}

/// QEMU's letter for a width.
fn letter(width: u8) -> u8 {
    match width {
        1 => b'b',
        2 => b'w',
        4 => b'l',
        _ => b'q',
    }
}

impl Command {
    /// The line with its newline. For [`Command::WriteBytes`] and [`Command::Intercept`] only its start:
    /// the caller appends the rest.
    pub(super) fn line(&self) -> Line {
        let mut line = Line::default();
        match *self {
            Self::In { port, width } => {
                line.word(b"in").push(letter(width));
                line.hex(u64::from(port)).push(b'\n');
            }
            Self::Out { port, width, value } => {
                line.word(b"out").push(letter(width));
                line.hex(u64::from(port)).hex(u64::from(value)).push(b'\n');
            }
            Self::Read { address, width } => {
                line.word(b"read").push(letter(width));
                line.hex(address).push(b'\n');
            }
            Self::Write { address, width, value } => {
                line.word(b"write").push(letter(width));
                line.hex(address).hex(value).push(b'\n');
            }
            Self::ReadBytes { address, len } => {
                line.word(b"read").hex(address).hex(len as u64).push(b'\n');
            }
            Self::WriteBytes { address, len } => {
                line.word(b"write").hex(address).hex(len as u64).word(b" 0x");
            }
            Self::Intercept => {
                line.word(b"irq_intercept_in ");
            }
            Self::ClockStep { ns } => {
                line.word(b"clock_step");
                if let Some(ns) = ns {
                    line.hex(ns);
                }
                line.push(b'\n');
            }
            Self::Endianness => {
                line.word(b"endianness\n");
            }
        }
        line
    }

    /// Whether both are kicks of the same queue (VIRTIO 1.3, section 4.1.5.2: its number is in the low 16
    /// bits), so that the later one replaces the earlier one.
    pub(super) fn kicks_the_queue_of(&self, other: &Self) -> bool {
        match (*self, *other) {
            (Self::Write { address, value, .. }, Self::Write { address: at, value: other, .. }) => {
                address == at && value as u16 == other as u16
            }
            _ => self == other,
        }
    }

    /// Parses an `OK` reply, or returns why it cannot be the reply to this command.
    pub(super) fn answer(&self, rest: &str) -> Result<Answer, String> {
        let bits = match *self {
            Self::In { width, .. } | Self::Read { width, .. } => u32::from(width) * 8,
            Self::ClockStep { .. } => 63,
            Self::ReadBytes { len, .. } => {
                return bytes(rest, len).map(Answer::Bytes).ok_or_else(|| self.mismatch(rest));
            }
            Self::Endianness => {
                return match rest {
                    "little" => Ok(Answer::Number(0)),
                    "big" => Ok(Answer::Number(1)),
                    _ => Err(self.mismatch(rest)),
                };
            }
            _ if rest.is_empty() => return Ok(Answer::Done),
            _ => return Err(self.mismatch(rest)),
        };
        match number(rest) {
            Some(value) if bits == 64 || value >> bits == 0 => Ok(Answer::Number(value)),
            _ => Err(self.mismatch(rest)),
        }
    }

    fn mismatch(&self, rest: &str) -> String {
        format!(
            "`OK{}{}` cannot be the reply to `{self}`",
            if rest.is_empty() { "" } else { " " },
            quote(rest.as_bytes())
        )
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = self.line();
        let text = String::from_utf8_lossy(line.bytes());
        match self {
            Self::WriteBytes { .. } => write!(f, "{text}…"),
            _ => f.write_str(text.trim_end()),
        }
    }
}

/// A parsed reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Done,
    Number(u64),
    Bytes(Vec<u8>),
}

/// A short line, built without a heap allocation.
#[derive(Clone, Copy)]
pub(super) struct Line {
    bytes: [u8; Self::CAPACITY],
    len: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self { bytes: [0; Self::CAPACITY], len: 0 }
    }
}

impl Line {
    /// Longer than any line: `write` with two 64-bit numbers has 47 bytes.
    const CAPACITY: usize = 64;

    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    fn push(&mut self, byte: u8) -> &mut Self {
        if let Some(place) = self.bytes.get_mut(self.len) {
            *place = byte;
            self.len += 1;
        }
        self
    }

    fn word(&mut self, word: &[u8]) -> &mut Self {
        for byte in word {
            self.push(*byte);
        }
        self
    }

    /// Appends a blank and the number with the prefix 0x.
    fn hex(&mut self, value: u64) -> &mut Self {
        self.word(b" 0x");
        let digits = (64 - (value | 1).leading_zeros()).div_ceil(4);
        for place in (0..digits).rev() {
            self.push(hex_digit((value >> (place * 4)) as u8 & 0xf));
        }
        self
    }
}

fn hex_digit(nibble: u8) -> u8 {
    if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 }
}

/// The lines of several commands.
pub(super) fn lines_of(commands: &[Command]) -> Vec<u8> {
    let mut lines = Vec::with_capacity(commands.len() * 32);
    for command in commands {
        lines.extend_from_slice(command.line().bytes());
    }
    lines
}

/// Appends bytes as hexadecimal digits.
pub(super) fn push_hex(out: &mut Vec<u8>, data: &[u8]) {
    for byte in data {
        out.extend([hex_digit(byte >> 4), hex_digit(byte & 0xf)]);
    }
}

/// A parsed line from QEMU.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming<'a> {
    /// An interrupt line changed.
    Irq { line: u32, raised: bool },
    /// A command succeeded; with the text after `OK`.
    Ok(&'a str),
    /// A command was refused; with the whole line.
    Refused(&'a str),
}

/// Parses a line (without its newline).
pub(super) fn parse(line: &[u8]) -> Result<Incoming<'_>, String> {
    let malformed = || format!("QEMU sent a line that is not a QTest reply: `{}`", quote(line));
    let text = std::str::from_utf8(line).map_err(|_| malformed())?;
    if text == "OK" {
        return Ok(Incoming::Ok(""));
    }
    let (verb, rest) = text.split_once(' ').unwrap_or((text, ""));
    match verb {
        "OK" => Ok(Incoming::Ok(rest)),
        "FAIL" | "ERR" => Ok(Incoming::Refused(text)),
        "IRQ" => {
            let (what, line) = rest.split_once(' ').ok_or_else(malformed)?;
            let raised = match what {
                "raise" => true,
                "lower" => false,
                _ => return Err(malformed()),
            };
            match decimal(line) {
                Some(n) if n < u64::from(MAX_IRQ) => Ok(Incoming::Irq { line: n as u32, raised }),
                _ => Err(malformed()),
            }
        }
        _ => Err(malformed()),
    }
}

fn decimal(text: &str) -> Option<u64> {
    // `parse` alone would accept a sign.
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) if hex.bytes().all(|b| b.is_ascii_hexdigit()) => {
            u64::from_str_radix(hex, 16).ok()
        }
        Some(_) => None,
        None => decimal(text),
    }
}

fn bytes(text: &str, len: usize) -> Option<Vec<u8>> {
    let hex = text.strip_prefix("0x")?.as_bytes();
    if hex.len() != len.checked_mul(2)? {
        return None;
    }
    let nibble = |b: &u8| char::from(*b).to_digit(16);
    hex.chunks_exact(2)
        .map(|pair| match pair {
            [high, low] => Some((nibble(high)? << 4 | nibble(low)?) as u8),
            _ => None,
        })
        .collect()
}

/// Printable, shortened text from a peer, for messages.
pub(super) fn quote(bytes: &[u8]) -> String {
    const SHOWN: usize = 100;
    let mut text = String::new();
    for byte in bytes.iter().take(SHOWN) {
        match byte {
            b' ' | b'!'..=b'~' => text.push(char::from(*byte)),
            _ => text.extend(byte.escape_ascii().map(char::from)),
        }
    }
    if bytes.len() > SHOWN {
        text.push('…');
    }
    text
}

/// Splits received bytes into lines, with bounded memory.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    partial: Vec<u8>,
}

impl Splitter {
    /// Calls `each` with each complete line.
    ///
    /// # Errors
    /// The error of `each`, or that a line is too long.
    pub(super) fn feed(
        &mut self,
        mut input: &[u8],
        mut each: impl FnMut(&[u8]) -> Result<(), String>,
    ) -> Result<(), String> {
        while let Some(end) = input.iter().position(|b| *b == b'\n') {
            let (head, tail) = input.split_at(end);
            if self.partial.is_empty() {
                Self::check(head.len(), head)?;
                each(head)?;
            } else {
                self.hold(head)?;
                each(&self.partial)?;
                self.partial.clear();
            }
            input = tail.get(1..).unwrap_or_default();
        }
        self.hold(input)
    }

    /// The number of bytes of an incomplete line.
    #[cfg(all(any(test, feature = "testing"), not(loom)))]
    pub(super) fn held(&self) -> usize {
        self.partial.len()
    }

    fn hold(&mut self, bytes: &[u8]) -> Result<(), String> {
        Self::check(self.partial.len() + bytes.len(), &self.partial)?;
        self.partial.extend_from_slice(bytes);
        Ok(())
    }

    fn check(len: usize, start: &[u8]) -> Result<(), String> {
        if len <= MAX_LINE {
            return Ok(());
        }
        Err(format!(
            "QEMU sent a line of more than {MAX_LINE} bytes that starts `{}`",
            quote(start)
        ))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn text(command: Command) -> String {
        String::from_utf8(command.line().bytes().to_vec()).unwrap()
    }

    #[test]
    fn lines_are_what_qemu_reads() {
        assert_eq!(text(Command::In { port: 0xcfc, width: 4 }), "inl 0xcfc\n");
        assert_eq!(text(Command::Out { port: 0, width: 1, value: 0 }), "outb 0x0 0x0\n");
        assert_eq!(
            text(Command::Out { port: 0xffff, width: 2, value: 0xffff }),
            "outw 0xffff 0xffff\n"
        );
        assert_eq!(
            text(Command::Read { address: u64::MAX, width: 8 }),
            "readq 0xffffffffffffffff\n"
        );
        assert_eq!(
            text(Command::Write { address: u64::MAX, width: 8, value: u64::MAX }),
            "writeq 0xffffffffffffffff 0xffffffffffffffff\n"
        );
        assert_eq!(text(Command::ReadBytes { address: 0x10, len: 3 }), "read 0x10 0x3\n");
        assert_eq!(text(Command::WriteBytes { address: 0x10, len: 3 }), "write 0x10 0x3 0x");
        assert_eq!(text(Command::ClockStep { ns: None }), "clock_step\n");
        assert_eq!(text(Command::ClockStep { ns: Some(1000) }), "clock_step 0x3e8\n");
    }

    #[test]
    fn no_line_outgrows_its_buffer() {
        let longest = [
            Command::WriteBytes { address: u64::MAX, len: usize::MAX },
            Command::Write { address: u64::MAX, width: 8, value: u64::MAX },
        ];
        for command in longest {
            assert!(command.line().bytes().len() < Line::CAPACITY);
        }
    }

    #[test]
    fn replies_parse() {
        assert_eq!(parse(b"OK"), Ok(Incoming::Ok("")));
        assert_eq!(parse(b"OK 0x0012"), Ok(Incoming::Ok("0x0012")));
        assert_eq!(parse(b"FAIL Unknown device"), Ok(Incoming::Refused("FAIL Unknown device")));
        assert_eq!(parse(b"FAIL"), Ok(Incoming::Refused("FAIL")));
        assert_eq!(
            parse(b"ERR invalid argument size"),
            Ok(Incoming::Refused("ERR invalid argument size"))
        );
        assert_eq!(parse(b"IRQ raise 11"), Ok(Incoming::Irq { line: 11, raised: true }));
        assert_eq!(parse(b"IRQ lower 0"), Ok(Incoming::Irq { line: 0, raised: false }));
    }

    #[test]
    fn other_lines_are_rejected() {
        let bad: [&[u8]; 10] = [
            b"",
            b"ok",
            b"OKAY",
            b"IRQ",
            b"IRQ raise",
            b"IRQ raise -1",
            b"IRQ raise 1024",
            b"IRQ toggle 3",
            b"IRQ raise 99999999999999999999",
            b"\xff\xfe",
        ];
        for line in bad {
            assert!(parse(line).is_err(), "{line:?}");
        }
    }

    #[test]
    fn answers_must_fit_the_command() {
        let inb = Command::In { port: 0x60, width: 1 };
        assert_eq!(inb.answer("0x00ff"), Ok(Answer::Number(0xff)));
        for rest in ["0x0100", "", "0x", "0xzz", "ff", "-1", "0x+1"] {
            assert!(inb.answer(rest).is_err(), "{rest}");
        }
        let readq = Command::Read { address: 0, width: 8 };
        assert_eq!(readq.answer("0xffffffffffffffff"), Ok(Answer::Number(u64::MAX)));
        assert!(readq.answer("0x1ffffffffffffffff").is_err());
        let out = Command::Out { port: 0x60, width: 1, value: 0 };
        assert_eq!(out.answer(""), Ok(Answer::Done));
        assert!(out.answer("0x0").is_err());
        let read = Command::ReadBytes { address: 0, len: 2 };
        assert_eq!(read.answer("0x0aFf"), Ok(Answer::Bytes(vec![0x0a, 0xff])));
        for rest in ["0x0a", "0x0aff00", "0aff", "0x0ag0", ""] {
            assert!(read.answer(rest).is_err(), "{rest}");
        }
        assert_eq!(Command::ClockStep { ns: None }.answer("123"), Ok(Answer::Number(123)));
        assert!(Command::ClockStep { ns: None }.answer("-5").is_err());
    }

    #[test]
    fn lines_are_found_however_the_input_is_split() {
        let input = b"OK\nIRQ raise 5\nOK 0x12\nFAIL x\n";
        for cut in 0..=input.len() {
            for again in cut..=input.len() {
                let mut splitter = Splitter::default();
                let mut lines = Vec::new();
                for part in [&input[..cut], &input[cut..again], &input[again..]] {
                    splitter
                        .feed(part, |l| {
                            lines.push(l.to_vec());
                            Ok(())
                        })
                        .unwrap();
                }
                assert_eq!(lines, [&b"OK"[..], b"IRQ raise 5", b"OK 0x12", b"FAIL x"]);
            }
        }
    }

    proptest! {
        /// Random input in random pieces: no panic, and the pieces do not matter.
        #[test]
        fn the_pieces_do_not_matter(
            input in vec(prop_oneof![any::<u8>(), Just(b'\n'), Just(b' '), Just(b'0')], 0..400),
            cuts in vec(1..50usize, 1..10),
        ) {
            let mut whole = Vec::new();
            for line in input.split(|b| *b == b'\n') {
                whole.push(line.to_vec());
                let _ = parse(line);
            }
            whole.pop();
            let mut splitter = Splitter::default();
            let mut lines = Vec::new();
            let (mut rest, mut cuts) = (&input[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (part, tail) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                splitter
                    .feed(part, |line| {
                        lines.push(line.to_vec());
                        Ok(())
                    })
                    .unwrap();
                rest = tail;
            }
            prop_assert_eq!(lines, whole);
        }

        /// Random answers are accepted or rejected.
        #[test]
        fn any_answer_is_accepted_or_rejected(rest in "(0x)?[0-9a-fx+ -]{0,20}", width in 0..4u32) {
            let width = 1u8 << width;
            if let Ok(answer) = (Command::Read { address: 0, width }).answer(&rest) {
                let Answer::Number(value) = answer else { panic!("{answer:?}") };
                prop_assert!(width == 8 || value >> (u32::from(width) * 8) == 0);
            }
            let _ = Command::ReadBytes { address: 0, len: 4 }.answer(&rest);
        }
    }

    #[test]
    fn quotes_are_short_and_printable() {
        assert_eq!(quote(b"it's \"so\"\n\xff"), "it's \"so\"\\n\\xff");
        assert_eq!(quote(&[b'x'; 1000]).chars().count(), 101);
    }

    #[test]
    fn an_endless_line_is_rejected() {
        let mut splitter = Splitter::default();
        let mut fed = 0;
        let error = loop {
            match splitter.feed(&[b'x'; 1000], |_| Ok(())) {
                Ok(()) => fed += 1000,
                Err(error) => break error,
            }
        };
        assert!(fed <= MAX_LINE && splitter.partial.len() <= MAX_LINE);
        assert!(error.contains("more than"), "{error}");
        let mut whole = vec![b'y'; MAX_LINE + 1];
        whole.push(b'\n');
        assert!(Splitter::default().feed(&whole, |_| Ok(())).is_err());
    }
}
