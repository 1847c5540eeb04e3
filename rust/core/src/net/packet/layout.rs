//! Finds the headers of a frame.

/// EtherTypes.
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const TAGS: [u16; 2] = [0x8100, 0x88a8];
/// IP protocol numbers.
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Offsets of the headers that a frame has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Layout {
    /// The tag control information of the outermost VLAN tag.
    pub vlan: Option<usize>,
    /// The start of the IPv4 header, and its end including options.
    pub ip4: Option<(usize, usize)>,
    pub ip6: Option<usize>,
    pub transport: Option<Transport>,
    /// The first byte after all headers.
    pub payload: usize,
}

/// A TCP or UDP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Transport {
    pub is_udp: bool,
    pub at: usize,
    /// The end of the segment or datagram; padding may follow.
    pub end: usize,
}

impl Transport {
    /// The offset of its checksum.
    pub(crate) fn checksum(&self) -> usize {
        self.at + if self.is_udp { 6 } else { 16 }
    }
}

impl Layout {
    pub(crate) fn of(frame: &[u8]) -> Self {
        let mut found = Self { payload: frame.len().min(14), ..Self::default() };
        let mut at = 12;
        while number(frame, at).is_some_and(|kind| TAGS.contains(&kind)) && at + 6 <= frame.len() {
            found.vlan.get_or_insert(at + 2);
            at += 4;
            found.payload = at + 2;
        }
        match number(frame, at) {
            Some(IPV4) => found.ipv4(frame, at + 2),
            Some(IPV6) => found.ipv6(frame, at + 2),
            _ => {}
        }
        found
    }

    fn ipv4(&mut self, frame: &[u8], at: usize) {
        let Some(header) = frame.get(at..at + 20) else { return };
        let length = usize::from(header[0] & 15) * 4;
        if header[0] >> 4 != 4 || length < 20 || at + length > frame.len() {
            return;
        }
        self.ip4 = Some((at, at + length));
        self.payload = at + length;
        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let is_later_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0;
        if !is_later_fragment && total >= length {
            self.transport(frame, header[9], at + length, (at + total).min(frame.len()));
        }
    }

    fn ipv6(&mut self, frame: &[u8], at: usize) {
        let Some(header) = frame.get(at..at + 40) else { return };
        if header[0] >> 4 != 6 {
            return;
        }
        self.ip6 = Some(at);
        self.payload = at + 40;
        let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
        self.transport(frame, header[6], at + 40, (at + 40 + length).min(frame.len()));
    }

    fn transport(&mut self, frame: &[u8], protocol: u8, at: usize, end: usize) {
        let length = match protocol {
            UDP => 8,
            TCP => frame.get(at + 12).map_or(0, |byte| usize::from(byte >> 4) * 4).max(20),
            _ => return,
        };
        if at + length <= end {
            self.transport = Some(Transport { is_udp: protocol == UDP, at, end });
            self.payload = at + length;
        }
    }
}

fn number(frame: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]))
}
