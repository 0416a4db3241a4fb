//! What a packet says, as far as DNS needs it: protocol, ports, header and question of a message.

use core::hint::black_box;
use core::mem::MaybeUninit;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{__sk_buff, bpf_sock};
use aya_ebpf::helpers::generated::{bpf_sk_fullsock, bpf_skb_load_bytes};
use aya_ebpf::programs::SkBuffContext;
use probe_common::dns::{HEADER, NAME_ROOM};
use probe_common::loss::Counter;
use probe_common::question::{self, NO_QUESTION, Octets};
use probe_common::wire::{Address, FAMILY_IPV4, FAMILY_IPV6};
use probe_ebpf::{Error, Result, emit, kread, socket};

/// EtherTypes, network byte order as in `__sk_buff.protocol`.
const ETH_P_IP: u32 = 0x0800u16.to_be() as u32;
const ETH_P_IPV6: u32 = 0x86ddu16.to_be() as u32;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;

/// Version 4 and a header of five words, as nearly every IPv4 packet has it.
const IPV4_PLAIN: u8 = 0x45;
const IPV4_HEADER: u32 = 20;
const IPV6_HEADER: u32 = 40;
const UDP_HEADER: u32 = 8;
/// QR bit of the flags (RFC 1035, 4.1.1).
pub(crate) const RESPONSE: u16 = 0x8000;
pub(crate) const OPCODE: u16 = 0x7800;

/// A packet of a socket.
pub(crate) struct Packet {
    pub(crate) is_tcp: bool,
    /// Where the header of UDP or TCP begins.
    pub(crate) transport: u32,
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
}

impl Packet {
    /// Refuses everything else as soon as it can tell: every packet of the host passes here.
    #[inline(always)]
    pub(crate) fn of(ctx: &SkBuffContext) -> Result<Self> {
        let protocol = protocol(ctx);
        if protocol != ETH_P_IP && protocol != ETH_P_IPV6 {
            return Err(Error::NotOurs);
        }
        match Self::in_place(skb(ctx), protocol) {
            Some(packet) => packet,
            None => Self::copied(ctx, protocol),
        }
    }

    /// Where both headers are in the packet's linear part, so nearly always, without a helper's copy. `None`: they are not.
    #[inline(always)]
    fn in_place(skb: *mut __sk_buff, protocol: u32) -> Option<Result<Self>> {
        // SAFETY: the context of this hook. The kernel gives pointers as 32 bits, and makes 64 of them as they are read.
        let (data, end) = unsafe { ((*skb).data as usize, (*skb).data_end as usize) };
        let (next, transport) = if protocol == ETH_P_IP {
            if data + (IPV4_HEADER + 4) as usize > end || octet(data) != IPV4_PLAIN {
                return None;
            }
            (octet(data + 9), IPV4_HEADER)
        } else {
            if data + (IPV6_HEADER + 4) as usize > end {
                return None;
            }
            (octet(data + 6), IPV6_HEADER)
        };
        if next != IPPROTO_UDP && next != IPPROTO_TCP {
            return Some(Err(Error::NotOurs));
        }
        let ports = data + transport as usize;
        Some(Ok(Self {
            is_tcp: next == IPPROTO_TCP,
            transport,
            source_port: port(ports),
            destination_port: port(ports + 2),
        }))
    }

    #[inline(always)]
    fn copied(ctx: &SkBuffContext, protocol: u32) -> Result<Self> {
        let (next, transport) = if protocol == ETH_P_IP {
            let mut header = [0u8; 10];
            load(ctx, 0, &mut header)?;
            (header[9], u32::from(header[0] & 0xf) * 4)
        } else {
            let mut next = [0u8; 1];
            load(ctx, 6, &mut next)?;
            // Extension headers before UDP or TCP do not occur between a resolver and its server.
            (next[0], IPV6_HEADER)
        };
        if next != IPPROTO_UDP && next != IPPROTO_TCP {
            return Err(Error::NotOurs);
        }
        let mut ports = [0u8; 4];
        load(ctx, transport, &mut ports)?;
        Ok(Self {
            is_tcp: next == IPPROTO_TCP,
            transport,
            source_port: u16::from_be_bytes([ports[0], ports[1]]),
            destination_port: u16::from_be_bytes([ports[2], ports[3]]),
        })
    }

    /// Where the payload of UDP begins.
    #[inline(always)]
    pub(crate) fn message(&self) -> u32 {
        self.transport + UDP_HEADER
    }

    /// Octets of the message in a UDP packet.
    #[inline(always)]
    pub(crate) fn message_len(&self, ctx: &SkBuffContext) -> u32 {
        len(ctx).saturating_sub(self.message())
    }

    /// The header of the message in a UDP packet.
    #[inline(always)]
    pub(crate) fn dns_header(&self, ctx: &SkBuffContext) -> Result<DnsHeader> {
        let mut header = DnsHeader([0; HEADER]);
        if load(ctx, self.message(), &mut header.0).is_err() || header.questions() != 1 {
            emit::count(Counter::DnsMalformed, 1);
            return Err(Error::NotOurs);
        }
        Ok(header)
    }

    /// The question of the message in a UDP packet.
    #[inline(always)]
    pub(crate) fn question(&self, ctx: &SkBuffContext) -> Result<Question> {
        let packed = parse_question(skb(ctx), self.message() + HEADER as u32);
        if packed == NO_QUESTION {
            emit::count(Counter::DnsMalformed, 1);
            return Err(Error::NotOurs);
        }
        Ok(Question { hash: (packed >> 32) as u32, qtype: (packed >> 16) as u16, name_len: packed as u8 })
    }

    /// Copies the name of the question to where it is wanted.
    #[inline(always)]
    pub(crate) fn copy_name(&self, ctx: &SkBuffContext, question: &Question, name: &mut [u8; NAME_ROOM]) {
        let start = self.message() + HEADER as u32;
        let len = provably_1_to::<NAME_ROOM>(u32::from(question.name_len));
        // It cannot fail: the same bytes were read a moment ago.
        // SAFETY: the context of this hook, and a name's room.
        let _read = unsafe { bpf_skb_load_bytes(ctx.as_ptr(), start, name.as_mut_ptr().cast(), len) };
    }

    /// Copies the message of a UDP packet, or as much of it as there is room for. Returns how much there is and how much was copied.
    #[inline(always)]
    pub(crate) fn copy_message<const ROOM: usize>(
        &self,
        ctx: &SkBuffContext,
        octets: &mut [u8; ROOM],
    ) -> (u32, u16) {
        let whole = self.message_len(ctx);
        let len = provably_1_to::<ROOM>(whole.min(ROOM as u32));
        // SAFETY: the context of this hook, and a message's room.
        let failed =
            unsafe { bpf_skb_load_bytes(ctx.as_ptr(), self.message(), octets.as_mut_ptr().cast(), len) };
        (whole, if failed == 0 { len as u16 } else { 0 })
    }
}

/// An octet of the packet.
#[inline(always)]
fn octet(at: usize) -> u8 {
    // SAFETY: inside the packet: the caller has compared, and the verifier has seen it.
    unsafe { (at as *const u8).read_volatile() }
}

/// A port in the packet.
#[inline(always)]
fn port(at: usize) -> u16 {
    // SAFETY: as above.
    u16::from_be(unsafe { (at as *const u16).read_volatile() })
}

/// RFC 1035, 4.1.1.
pub(crate) struct DnsHeader(pub(crate) [u8; HEADER]);

impl DnsHeader {
    pub(crate) fn id(&self) -> u16 {
        u16::from_be_bytes([self.0[0], self.0[1]])
    }
    pub(crate) fn flags(&self) -> u16 {
        u16::from_be_bytes([self.0[2], self.0[3]])
    }
    fn questions(&self) -> u16 {
        u16::from_be_bytes([self.0[4], self.0[5]])
    }
    pub(crate) fn answers(&self) -> u16 {
        u16::from_be_bytes([self.0[6], self.0[7]])
    }
}

/// The question of a message (RFC 1035, 4.1.2).
pub(crate) struct Question {
    /// Over name in lower case, type and class.
    pub(crate) hash: u32,
    pub(crate) qtype: u16,
    /// The closing zero included.
    pub(crate) name_len: u8,
}

/// A length in a form whose bounds, 1 to `MOST` (a power of two), the verifier sees; behind `black_box`, or LLVM proves them itself
/// and drops them.
#[inline(always)]
pub(crate) fn provably_1_to<const MOST: usize>(len: u32) -> u32 {
    (black_box(len.wrapping_sub(1)) & (MOST as u32 - 1)) + 1
}

/// The question at `start`, packed as by [`question::parse`]. A function of its own for its stack, which returns one plain
/// number.
#[inline(never)]
fn parse_question(skb: *mut __sk_buff, start: u32) -> u64 {
    let found = question::parse(&Payload(skb), start);
    // Each way out of its loops has told the verifier another bound of the length, which the caller's code would be followed
    // for apart.
    kread::read_at((&raw const found) as u64).unwrap_or(NO_QUESTION)
}

/// The octets of a packet, from the network header on.
struct Payload(*mut __sk_buff);

impl Octets for Payload {
    #[inline(always)]
    fn load<const N: usize>(&self, at: u32, room: &mut [u8; N], len: u32) -> bool {
        // SAFETY: the context of the hook, and `len` bytes of the parser's, which asks for `N` at most.
        unsafe { bpf_skb_load_bytes(self.0.cast(), at, room.as_mut_ptr().cast(), len) == 0 }
    }

    #[inline(always)]
    fn forget(number: &u32) -> Option<u32> {
        kread::read_at((&raw const *number) as u64).ok()
    }
}

/// Octets of the packet, from the network header on.
#[inline(always)]
pub(crate) fn len(ctx: &SkBuffContext) -> u32 {
    // SAFETY: the context of this hook. Volatile, or the compiler remembers what it read first.
    unsafe { (&raw const (*skb(ctx)).len).read_volatile() }
}

/// `wire::FAMILY_*` of an IP packet. Read anew wherever it matters: what the verifier had learned of it before the name was
/// parsed, it would follow the parser for twice.
#[inline(always)]
pub(crate) fn family(ctx: &SkBuffContext) -> u8 {
    if protocol(ctx) == ETH_P_IP { FAMILY_IPV4 } else { FAMILY_IPV6 }
}

/// EtherType, network byte order.
#[inline(always)]
fn protocol(ctx: &SkBuffContext) -> u32 {
    // SAFETY: the context of this hook. Volatile, or the compiler remembers what it read first.
    unsafe { (&raw const (*skb(ctx)).protocol).read_volatile() }
}

/// Where an IP packet comes from.
#[inline(always)]
pub(crate) fn source(ctx: &SkBuffContext, address: &mut Address) {
    end(ctx, address, (12, 8));
}

/// Where an IP packet goes to.
#[inline(always)]
pub(crate) fn destination(ctx: &SkBuffContext, address: &mut Address) {
    end(ctx, address, (16, 24));
}

/// One end of an IP packet, by its offset in the header of IPv4 and of IPv6.
#[inline(always)]
fn end(ctx: &SkBuffContext, address: &mut Address, (ipv4, ipv6): (u32, u32)) {
    blank(address);
    let (offset, len) = if protocol(ctx) == ETH_P_IP { (ipv4, 4) } else { (ipv6, 16) };
    // It cannot fail: the headers were read before.
    // SAFETY: the context of this hook, and 16 bytes at most.
    let _read = unsafe { bpf_skb_load_bytes(ctx.as_ptr(), offset, address.as_mut_ptr().cast(), len) };
}

#[inline(always)]
pub(crate) fn blank(address: &mut Address) {
    // SAFETY: an address is plain bytes.
    kread::blank(unsafe { &mut *(&raw mut *address).cast::<MaybeUninit<Address>>() });
}

/// The socket of a packet, of which family, addresses and ports may be read without a helper's leave; null where there is none.
#[inline(always)]
pub(crate) fn socket_ends(ctx: &SkBuffContext) -> *mut bpf_sock {
    // SAFETY: `sk` of this hook's context.
    unsafe { (*skb(ctx)).__bindgen_anon_2.sk }
}

/// The full socket of a packet; null where there is none.
#[inline(always)]
pub(crate) fn full_socket(ctx: &SkBuffContext) -> *mut bpf_sock {
    let sk = socket_ends(ctx);
    // SAFETY: `sk` of this hook's context, made a full socket by the helper, which may return null.
    if sk.is_null() { core::ptr::null_mut() } else { unsafe { bpf_sk_fullsock(sk) } }
}

/// Network namespace of the packet's socket, 0 where this kernel does not let us look.
#[inline(always)]
pub(crate) fn netns(ctx: &SkBuffContext) -> u32 {
    let sk = full_socket(ctx);
    if sk.is_null() {
        return 0;
    }
    // The pointer is used as an address only.
    kread::address_of(sk).and_then(socket::netns).unwrap_or(0)
}

/// Copies packet bytes, from the network header on.
#[inline(always)]
pub(crate) fn load<const N: usize>(ctx: &SkBuffContext, offset: u32, bytes: &mut [u8; N]) -> Result<()> {
    // SAFETY: the context of this hook, and `N` bytes of our own.
    let failed = unsafe { bpf_skb_load_bytes(ctx.as_ptr(), offset, bytes.as_mut_ptr().cast(), N as u32) };
    if failed == 0 { Ok(()) } else { Err(Error::NotOurs) }
}

#[inline(always)]
pub(crate) fn skb(ctx: &SkBuffContext) -> *mut __sk_buff {
    ctx.skb.skb
}
