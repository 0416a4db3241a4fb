//! dns: lookups over UDP, paired in the kernel. cgroup programs at the root of cgroup v2: they see the packets of every
//! socket of the host, in every network namespace, once a socket.
//!
//! Egress sees a packet after NAT rewrote its destination, ingress after NAT has been undone. So question and answer are
//! paired by socket, transaction id, question, and the server *as the process addressed it*: of a connected socket the
//! socket knows it, else the connect and sendmsg hooks (in the asking process) noted it just before.
#![no_std]
#![no_main]

use core::hint::black_box;
use core::mem::MaybeUninit;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{__sk_buff, bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::{
    bpf_get_socket_cookie, bpf_sk_fullsock, bpf_skb_ancestor_cgroup_id, bpf_skb_cgroup_id, bpf_skb_load_bytes,
};
use aya_ebpf::macros::{cgroup_skb, cgroup_sock_addr, map};
use aya_ebpf::maps::{Array, HashMap, LruHashMap};
use aya_ebpf::programs::{SkBuffContext, SockAddrContext};
use aya_log_ebpf::debug;
use probe_common::dns::{
    Asker, KIND_ANSWERED, KIND_ORPHAN, KIND_RESENT, LookupRecord, NAME_ROOM, Pending, PendingKey,
};
use probe_common::loss::Counter;
use probe_common::question::{self, NO_QUESTION, Octets};
use probe_common::settings::{FILTER_CGROUP, FILTER_COMM, FILTER_TGID, Settings};
use probe_common::wire::{Address, FAMILY_IPV4, FAMILY_IPV6, Owner, RecordHeader};
use probe_ebpf::{Error, Result, emit, filter, kread, socket, task};

#[path = "dns/names.rs"]
mod names;

/// **1**: let it pass. 0 from a cgroup program drops the user's packet or refuses the user's call.
const NEUTRAL: i32 = 1;

const BPF_ANY: u64 = 0;

/// EtherTypes, network byte order as in `__sk_buff.protocol`.
const ETH_P_IP: u32 = 0x0800u16.to_be() as u32;
const ETH_P_IPV6: u32 = 0x86ddu16.to_be() as u32;
const IPPROTO_UDP: u8 = 17;

const IPV6_HEADER: u32 = 40;
const UDP_HEADER: u32 = 8;
/// RFC 1035, 4.1.1.
const DNS_HEADER: u32 = 12;
/// QR bit of the flags.
const RESPONSE: u16 = 0x8000;
const OPCODE: u16 = 0x7800;

/// Questions that wait for their answer. User space takes out those that waited too long.
#[map]
static PENDING: HashMap<PendingKey, Pending> = HashMap::with_max_entries(8_192, 0);

/// Who asks, by socket cookie. It forgets the longest unused: then an owner is absent.
#[map]
static ASKERS: LruHashMap<u64, Asker> = LruHashMap::with_max_entries(8_192, 0);

/// Zeros to insert, then filled in place: a whole value is too large for the stack, and per-CPU memory is not safe to
/// work in, because egress may be preempted.
#[map]
static NOTHING: Array<Pending> = Array::with_max_entries(1, 0);

/// Packets that leave a socket.
#[cgroup_skb(egress)]
pub fn dns_egress(ctx: SkBuffContext) -> i32 {
    if let Err(error) = try_egress(&ctx) {
        emit::give_up(&ctx, error);
    }
    NEUTRAL
}

/// Packets that reach a socket.
#[cgroup_skb(ingress)]
pub fn dns_ingress(ctx: SkBuffContext) -> i32 {
    if let Err(error) = try_ingress(&ctx) {
        emit::give_up(&ctx, error);
    }
    NEUTRAL
}

/// `connect(2)` to IPv4, in the process that calls it.
#[cgroup_sock_addr(connect4)]
pub fn dns_connect4(ctx: SockAddrContext) -> i32 {
    note_asker(&ctx, FAMILY_IPV4);
    NEUTRAL
}

/// `connect(2)` to IPv6, in the process that calls it.
#[cgroup_sock_addr(connect6)]
pub fn dns_connect6(ctx: SockAddrContext) -> i32 {
    note_asker(&ctx, FAMILY_IPV6);
    NEUTRAL
}

/// `sendto(2)` and kin with an IPv4 address, UDP, in the process that calls it.
#[cgroup_sock_addr(sendmsg4)]
pub fn dns_sendmsg4(ctx: SockAddrContext) -> i32 {
    note_asker(&ctx, FAMILY_IPV4);
    NEUTRAL
}

/// `sendto(2)` and kin with an IPv6 address, UDP, in the process that calls it.
#[cgroup_sock_addr(sendmsg6)]
pub fn dns_sendmsg6(ctx: SockAddrContext) -> i32 {
    note_asker(&ctx, FAMILY_IPV6);
    NEUTRAL
}

#[inline(always)]
fn note_asker(ctx: &SockAddrContext, family: u8) {
    if let Err(error) = try_note_asker(ctx.sock_addr, family) {
        emit::give_up(ctx, error);
    }
}

#[inline(always)]
fn try_note_asker(addr: *mut bpf_sock_addr, family: u8) -> Result<()> {
    let port = watched_port(addr)?;
    let mut asker = Asker { owner: task::owner_of_socket()?, server: [0; 16], port, family, _pad: [0; 5] };
    let cookie = addressed(addr, family, &mut asker.server);
    // An LRU map makes room for itself.
    let _full = ASKERS.insert(cookie, asker, BPF_ANY);
    Ok(())
}

/// The port that a process addresses, if DNS is looked for there.
#[inline(always)]
fn watched_port(addr: *mut bpf_sock_addr) -> Result<u16> {
    let settings = emit::settings().ok_or(Error::NotOurs)?;
    // SAFETY: the context of this hook; this member may be read.
    let port = u16::from_be(unsafe { (*addr).user_port } as u16);
    if watched(settings, port) { Ok(port) } else { Err(Error::NotOurs) }
}

/// Fills in the address that a process addresses. Returns the cookie of its socket.
#[inline(always)]
fn addressed(addr: *mut bpf_sock_addr, family: u8, server: &mut Address) -> u64 {
    if family == FAMILY_IPV4 {
        // SAFETY: the context of this hook; this member may be read.
        let ip = unsafe { (*addr).user_ip4 };
        socket::set_ipv4(server, ip.to_ne_bytes());
    } else {
        // SAFETY: as above; word by word, because the verifier allows no other access.
        let ip = unsafe {
            [
                (&raw const (*addr).user_ip6[0]).read_volatile(),
                (&raw const (*addr).user_ip6[1]).read_volatile(),
                (&raw const (*addr).user_ip6[2]).read_volatile(),
                (&raw const (*addr).user_ip6[3]).read_volatile(),
            ]
        };
        set_ipv6(server, ip);
    }
    // SAFETY: the context is a socket address, from which the helper finds the socket.
    unsafe { bpf_get_socket_cookie(addr.cast()) }
}

fn try_egress(ctx: &SkBuffContext) -> Result<()> {
    let settings = emit::settings().ok_or(Error::NotOurs)?;
    let packet = Packet::udp(ctx)?;
    if !watched(settings, packet.destination_port) {
        return Err(Error::NotOurs);
    }
    let header = packet.dns_header(ctx)?;
    if header.flags() & (RESPONSE | OPCODE) != 0 {
        return Err(Error::NotOurs);
    }
    let now_ns = now();
    let question = question(ctx, &packet)?;
    let mut key = PendingKey {
        // SAFETY: the context of this hook.
        cookie: unsafe { bpf_get_socket_cookie(ctx.as_ptr()) },
        server: [0; 16],
        port: 0,
        id: header.id(),
        question: question.hash,
    };
    let asker = ASKERS.get_ptr(key.cookie);
    key.port = addressed_server(ctx, asker, &mut key.server);
    if !passes(ctx, settings, asker) {
        return Ok(());
    }
    if let Some(before) = PENDING.get_ptr_mut(key) {
        // SAFETY: a value of the map; the process that would send this question again is here.
        let before = unsafe { &mut *before };
        // The same question under the same id again: the try before stays unanswered.
        if let Some(record) = emit::reserve::<LookupRecord>() {
            record.header = RecordHeader::of::<LookupRecord>(KIND_RESENT, now_ns);
            kread::copy(&key, &mut record.key);
            kread::copy(before, &mut record.pending);
            emit::submit(record);
        }
        before.attempt = before.attempt.saturating_add(1);
        before.sent_ns = now_ns;
        return Ok(());
    }
    let nothing = NOTHING.get_ptr(0).ok_or(Error::NotOurs)?;
    // SAFETY: never written.
    if PENDING.insert(key, unsafe { &*nothing }, BPF_ANY).is_err() {
        if emit::count_first(Counter::PendingFull) {
            debug!(ctx, "no room for waiting questions; further ones are only counted");
        }
        return Ok(());
    }
    let pending = PENDING.get_ptr_mut(key).ok_or(Error::NotOurs)?;
    // SAFETY: just inserted; user space leaves it alone until `sent_ns` is set.
    let pending = unsafe { &mut *pending };
    copy_name(ctx, &packet, &question, &mut pending.name);
    pending.name_len = question.name_len;
    pending.qtype = question.qtype;
    pending.family = family(ctx);
    pending.attempt = 1;
    pending.netns = netns(ctx);
    // SAFETY: the context of this hook.
    pending.cgroup_id = unsafe { bpf_skb_cgroup_id(skb(ctx)) };
    set_owner(&mut pending.owner, asker);
    pending.sent_ns = now_ns;
    Ok(())
}

fn try_ingress(ctx: &SkBuffContext) -> Result<()> {
    let settings = emit::settings().ok_or(Error::NotOurs)?;
    let packet = Packet::udp(ctx)?;
    if !watched(settings, packet.source_port) {
        return Err(Error::NotOurs);
    }
    let header = packet.dns_header(ctx)?;
    if header.flags() & (RESPONSE | OPCODE) != RESPONSE {
        return Err(Error::NotOurs);
    }
    let now_ns = now();
    let question = question(ctx, &packet)?;
    let mut key = PendingKey {
        // SAFETY: the context of this hook.
        cookie: unsafe { bpf_get_socket_cookie(ctx.as_ptr()) },
        server: [0; 16],
        port: packet.source_port,
        id: header.id(),
        question: question.hash,
    };
    source(ctx, &mut key.server);
    let mut pending = PENDING.get_ptr(key);
    if pending.is_none() {
        // A question whose addressed server was not known waits under no server.
        blank(&mut key.server);
        key.port = 0;
        pending = PENDING.get_ptr(key);
    }
    let asker = ASKERS.get_ptr(key.cookie);
    if pending.is_none() {
        emit::count(Counter::DnsOrphans, 1);
        if !passes(ctx, settings, asker) {
            return Ok(());
        }
    }
    let Some(record) = emit::reserve::<LookupRecord>() else {
        // Answered all the same: it must not be reported as unanswered later.
        let _gone = PENDING.remove(key);
        return Ok(());
    };
    record.header = RecordHeader::of::<LookupRecord>(KIND_ORPHAN, now_ns);
    kread::copy(&key, &mut record.key);
    source(ctx, &mut record.key.server);
    record.key.port = packet.source_port;
    record.flags = header.flags();
    record.answers = header.answers();
    if let Some(pending) = pending {
        // Before it is removed.
        kread::copy(pending, &mut record.pending);
        // Who removes it, reports it: user space may have given it up this very moment.
        if PENDING.remove(key).is_ok() {
            record.header.kind = KIND_ANSWERED;
        }
    } else {
        // User space knows whether it gave the question up lately.
        copy_name(ctx, &packet, &question, &mut record.pending.name);
        record.pending.name_len = question.name_len;
        record.pending.qtype = question.qtype;
        record.pending.family = family(ctx);
        record.pending.netns = netns(ctx);
        // SAFETY: the context of this hook.
        record.pending.cgroup_id = unsafe { bpf_skb_cgroup_id(skb(ctx)) };
        set_owner(&mut record.pending.owner, asker);
    }
    emit::submit(record);
    Ok(())
}

#[inline(always)]
fn set_owner(owner: &mut Owner, asker: Option<*const Asker>) {
    if let Some(asker) = asker {
        // SAFETY: a value of the map, copied at once.
        kread::copy(unsafe { &raw const (*asker).owner }, owner);
    }
}

/// Whether the filter lets a packet of this owner through.
#[inline(always)]
fn passes(ctx: &SkBuffContext, settings: &Settings, asker: Option<*const Asker>) -> bool {
    if settings.filters & (FILTER_TGID | FILTER_COMM | FILTER_CGROUP) == 0 {
        return true;
    }
    if settings.filters & FILTER_CGROUP != 0 {
        // SAFETY: the context of this hook; 0 where the level does not exist.
        let ancestor = unsafe { bpf_skb_ancestor_cgroup_id(skb(ctx), settings.cgroup_level as i32) };
        if ancestor != settings.cgroup_id {
            return false;
        }
    }
    match asker {
        // SAFETY: a value of the map.
        Some(asker) => filter::owner(settings, unsafe { &(*asker).owner }),
        None => settings.filters & (FILTER_TGID | FILTER_COMM) == 0,
    }
}

/// Whether DNS is looked for on a port.
#[inline(always)]
fn watched(settings: &Settings, port: u16) -> bool {
    let [a, b, c, d] = settings.dns_ports;
    port != 0 && (port == a || port == b || port == c || port == d)
}

/// The server as the process addressed it: a connected socket knows it; else the send that this packet comes from has
/// just noted it; else it stays zero. Returns the port.
#[inline(always)]
fn addressed_server(ctx: &SkBuffContext, asker: Option<*const Asker>, server: &mut Address) -> u16 {
    // SAFETY: `sk` of this hook's context, made a full socket by the helper, which may return null.
    let sk = unsafe {
        let sk = (*skb(ctx)).__bindgen_anon_2.sk;
        if sk.is_null() { core::ptr::null_mut() } else { bpf_sk_fullsock(sk) }
    };
    if !sk.is_null() {
        let port = destination_port(sk);
        if port != 0 {
            if family(ctx) == FAMILY_IPV4 {
                // SAFETY: a full socket.
                let ip = unsafe { (*sk).dst_ip4 };
                socket::set_ipv4(server, ip.to_ne_bytes());
            } else {
                // SAFETY: a full socket; word by word, because the verifier allows no other access.
                let ip = unsafe {
                    [
                        (&raw const (*sk).dst_ip6[0]).read_volatile(),
                        (&raw const (*sk).dst_ip6[1]).read_volatile(),
                        (&raw const (*sk).dst_ip6[2]).read_volatile(),
                        (&raw const (*sk).dst_ip6[3]).read_volatile(),
                    ]
                };
                set_ipv6(server, ip);
            }
            return port;
        }
    }
    if let Some(asker) = asker {
        // SAFETY: a value of the map, copied at once.
        let (addressed, port, family) = unsafe { ((*asker).server, (*asker).port, (*asker).family) };
        if family == self::family(ctx) {
            *server = addressed;
            return port;
        }
    }
    0
}

/// `bpf_sock.dst_port` is two bytes in network byte order (include/uapi/linux/bpf.h), wherever they lie in its word.
#[inline(always)]
fn destination_port(sk: *const bpf_sock) -> u16 {
    // SAFETY: a full socket; the verifier allows a two-byte load there.
    u16::from_be(unsafe { (&raw const (*sk).dst_port).cast::<u16>().read_volatile() })
}

/// Network namespace of the packet's socket, 0 where this kernel does not let us look.
#[inline(always)]
fn netns(ctx: &SkBuffContext) -> u32 {
    // SAFETY: as in `addressed_server`; the pointer is used as an address only.
    let sk = unsafe {
        let sk = (*skb(ctx)).__bindgen_anon_2.sk;
        if sk.is_null() { core::ptr::null_mut() } else { bpf_sk_fullsock(sk) }
    };
    if sk.is_null() {
        return 0;
    }
    kread::address_of(sk).and_then(socket::netns).unwrap_or(0)
}

/// `wire::FAMILY_*` of an IP packet. Read anew wherever it matters: what the verifier had learned of it before the name was
/// parsed, it would follow the parser for twice.
#[inline(always)]
fn family(ctx: &SkBuffContext) -> u8 {
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
fn source(ctx: &SkBuffContext, address: &mut Address) {
    blank(address);
    let (offset, len) = if protocol(ctx) == ETH_P_IP { (12, 4) } else { (8, 16) };
    // It cannot fail: the headers were read before.
    // SAFETY: the context of this hook, and 16 bytes at most.
    let _read = unsafe { bpf_skb_load_bytes(ctx.as_ptr(), offset, address.as_mut_ptr().cast(), len) };
}

#[inline(always)]
fn blank(address: &mut Address) {
    // SAFETY: an address is plain bytes.
    kread::blank(unsafe { &mut *(&raw mut *address).cast::<MaybeUninit<Address>>() });
}

/// A UDP packet of a socket, as far as DNS needs it.
struct Packet {
    /// Where the UDP payload begins.
    payload: u32,
    source_port: u16,
    destination_port: u16,
}

impl Packet {
    /// Refuses everything else as soon as it can tell: every packet of the host passes here.
    #[inline(always)]
    fn udp(ctx: &SkBuffContext) -> Result<Self> {
        let protocol = protocol(ctx);
        if is_seen_not_to_be_udp(skb(ctx), protocol) {
            return Err(Error::NotOurs);
        }
        let udp = if protocol == ETH_P_IP {
            let mut header = [0u8; 10];
            load(ctx, 0, &mut header)?;
            if header[9] != IPPROTO_UDP {
                return Err(Error::NotOurs);
            }
            u32::from(header[0] & 0xf) * 4
        } else if protocol == ETH_P_IPV6 {
            let mut next = [0u8; 1];
            load(ctx, 6, &mut next)?;
            // Extension headers before UDP do not occur between a resolver and its server.
            if next[0] != IPPROTO_UDP {
                return Err(Error::NotOurs);
            }
            IPV6_HEADER
        } else {
            return Err(Error::NotOurs);
        };
        let mut ports = [0u8; 4];
        load(ctx, udp, &mut ports)?;
        Ok(Self {
            payload: udp + UDP_HEADER,
            source_port: u16::from_be_bytes([ports[0], ports[1]]),
            destination_port: u16::from_be_bytes([ports[2], ports[3]]),
        })
    }

    #[inline(always)]
    fn dns_header(&self, ctx: &SkBuffContext) -> Result<DnsHeader> {
        let mut header = DnsHeader([0; DNS_HEADER as usize]);
        if load(ctx, self.payload, &mut header.0).is_err() || header.questions() != 1 {
            emit::count(Counter::DnsMalformed, 1);
            return Err(Error::NotOurs);
        }
        Ok(header)
    }
}

/// Whether a packet is of another protocol than UDP, where that can be told without a helper's copy: wherever the beginning of the
/// IP header is in the packet's linear part, so nearly always. Most packets end here.
#[inline(always)]
fn is_seen_not_to_be_udp(skb: *mut __sk_buff, ethertype: u32) -> bool {
    // SAFETY: the context of this hook. The kernel gives pointers as 32 bits, and makes 64 of them as they are read.
    let (data, end) = unsafe { ((*skb).data as usize, (*skb).data_end as usize) };
    if data + 10 > end {
        return false;
    }
    let at = if ethertype == ETH_P_IP { data + 9 } else { data + 6 };
    // SAFETY: inside the packet, as the verifier has seen too.
    let protocol = unsafe { (at as *const u8).read_volatile() };
    protocol != IPPROTO_UDP
}

/// RFC 1035, 4.1.1.
struct DnsHeader([u8; DNS_HEADER as usize]);

impl DnsHeader {
    fn id(&self) -> u16 {
        u16::from_be_bytes([self.0[0], self.0[1]])
    }
    fn flags(&self) -> u16 {
        u16::from_be_bytes([self.0[2], self.0[3]])
    }
    fn questions(&self) -> u16 {
        u16::from_be_bytes([self.0[4], self.0[5]])
    }
    fn answers(&self) -> u16 {
        u16::from_be_bytes([self.0[6], self.0[7]])
    }
}

/// The question of a message (RFC 1035, 4.1.2).
struct Question {
    /// Over name in lower case, type and class.
    hash: u32,
    qtype: u16,
    /// The closing zero included.
    name_len: u8,
}

/// Finds the question, without its name ([`copy_name`]).
#[inline(always)]
fn question(ctx: &SkBuffContext, packet: &Packet) -> Result<Question> {
    let packed = parse_question(skb(ctx), packet.payload + DNS_HEADER);
    if packed == NO_QUESTION {
        emit::count(Counter::DnsMalformed, 1);
        return Err(Error::NotOurs);
    }
    Ok(Question { hash: (packed >> 32) as u32, qtype: (packed >> 16) as u16, name_len: packed as u8 })
}

/// Copies the name of the question to where it is wanted.
#[inline(always)]
fn copy_name(ctx: &SkBuffContext, packet: &Packet, question: &Question, name: &mut [u8; NAME_ROOM]) {
    let start = packet.payload + DNS_HEADER;
    let len = provably_1_to::<NAME_ROOM>(u32::from(question.name_len));
    // It cannot fail: the same bytes were read a moment ago.
    // SAFETY: the context of this hook, and a name's room.
    let _read = unsafe { bpf_skb_load_bytes(ctx.as_ptr(), start, name.as_mut_ptr().cast(), len) };
}

/// A length in a form whose bounds, 1 to `MOST` (a power of two), the verifier sees; behind `black_box`, or LLVM proves them itself
/// and drops them.
#[inline(always)]
fn provably_1_to<const MOST: usize>(len: u32) -> u32 {
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

#[inline(always)]
fn set_ipv6(address: &mut Address, words: [u32; 4]) {
    let target = (&raw mut *address).cast::<u32>();
    // SAFETY: 16 bytes.
    unsafe {
        target.write_unaligned(words[0]);
        target.add(1).write_unaligned(words[1]);
        target.add(2).write_unaligned(words[2]);
        target.add(3).write_unaligned(words[3]);
    }
}

/// Copies packet bytes, from the network header on.
#[inline(always)]
fn load<const N: usize>(ctx: &SkBuffContext, offset: u32, bytes: &mut [u8; N]) -> Result<()> {
    // SAFETY: the context of this hook, and `N` bytes of our own.
    let failed = unsafe { bpf_skb_load_bytes(ctx.as_ptr(), offset, bytes.as_mut_ptr().cast(), N as u32) };
    if failed == 0 { Ok(()) } else { Err(Error::NotOurs) }
}

#[inline(always)]
fn skb(ctx: &SkBuffContext) -> *mut __sk_buff {
    ctx.skb.skb
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper has no requirement.
    unsafe { bpf_ktime_get_ns() }
}
