//! Not shipped: loses chosen TCP segments of a cgroup, so that tests have loss on demand.
#![no_std]
#![no_main]

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::bpf_get_prandom_u32;
use aya_ebpf::macros::{cgroup_skb, map};
use aya_ebpf::maps::{Array, PerCpuArray};
use aya_ebpf::programs::SkBuffContext;
use probe_common::testdrop::{ALWAYS, BARE, Counts, DATA, EGRESS, INGRESS, RULE_COUNT, Rule, SYN, SYN_ACK};
use probe_ebpf as _;

const PASS: i32 = 1;
const DROP: i32 = 0;

/// EtherTypes, network byte order as in `__sk_buff.protocol`.
const ETH_P_IP: u32 = 0x0800u16.to_be() as u32;
const ETH_P_IPV6: u32 = 0x86ddu16.to_be() as u32;
const IPPROTO_TCP: u8 = 6;

/// Flags in the 14th octet of the TCP header.
const FLAG_SYN: u8 = 0x02;
const FLAG_ACK: u8 = 0x10;

/// Set by the test.
#[map]
static RULES: Array<Rule> = Array::with_max_entries(RULE_COUNT, 0);

/// Packets that matched each rule since the test last set it. Not atomic: a rule that counts packets is meant for those
/// that one socket sends.
#[map]
static SEEN: Array<u64> = Array::with_max_entries(RULE_COUNT, 0);

/// Exact.
#[map]
static COUNTS: PerCpuArray<Counts> = PerCpuArray::with_max_entries(RULE_COUNT, 0);

/// Packets that a socket of the cgroup receives.
#[cgroup_skb(ingress)]
pub fn drop_ingress(ctx: SkBuffContext) -> i32 {
    verdict(&ctx, INGRESS)
}

/// Packets that a socket of the cgroup sends.
#[cgroup_skb(egress)]
pub fn drop_egress(ctx: SkBuffContext) -> i32 {
    verdict(&ctx, EGRESS)
}

#[inline(always)]
fn verdict(ctx: &SkBuffContext, hook: u16) -> i32 {
    match Segment::of(ctx) {
        Some(mut segment) => {
            segment.what |= hook;
            if (0..RULE_COUNT).any(|index| drops(index, &segment)) { DROP } else { PASS }
        }
        None => PASS,
    }
}

/// What rules look at.
struct Segment {
    what: u16,
    from_port: u16,
    to_port: u16,
    gso_segments: u64,
}

impl Segment {
    #[inline(always)]
    fn of(ctx: &SkBuffContext) -> Option<Self> {
        let skb: *const __sk_buff = ctx.skb.skb;
        // SAFETY: the context of this hook; these members may be read.
        let (protocol, len, gso_segs) = unsafe { ((*skb).protocol, (*skb).len, (*skb).gso_segs) };
        // The tests' packets have no IPv6 extension headers.
        let (transport, header_len) = match protocol {
            ETH_P_IP => (ctx.load::<u8>(9).ok()?, u32::from(ctx.load::<u8>(0).ok()? & 0x0f) * 4),
            ETH_P_IPV6 => (ctx.load::<u8>(6).ok()?, 40),
            _ => return None,
        };
        if transport != IPPROTO_TCP {
            return None;
        }
        let tcp: [u8; 14] = ctx.load(header_len as usize).ok()?;
        let headers = header_len + u32::from(tcp[12] >> 4) * 4;
        let what = match tcp[13] & (FLAG_SYN | FLAG_ACK) {
            FLAG_SYN => SYN,
            flags if flags & FLAG_SYN != 0 => SYN_ACK,
            _ if len > headers => DATA,
            _ => BARE,
        };
        Some(Self {
            what,
            from_port: u16::from_be_bytes([tcp[0], tcp[1]]),
            to_port: u16::from_be_bytes([tcp[2], tcp[3]]),
            gso_segments: u64::from(gso_segs.max(1)),
        })
    }
}

#[inline(always)]
fn drops(index: u32, segment: &Segment) -> bool {
    let (Some(rule), Some(seen), Some(counts)) =
        (RULES.get(index), SEEN.get_ptr_mut(index), COUNTS.get_ptr_mut(index))
    else {
        return false;
    };
    let differs = (segment.from_port ^ rule.from_port[0]) & rule.from_port[1]
        | (segment.to_port ^ rule.to_port[0]) & rule.to_port[1]
        | segment.what & !rule.what;
    if differs != 0 {
        return false;
    }
    // SAFETY: a value of the map.
    let before = unsafe {
        let before = *seen;
        *seen = before + 1;
        before
    };
    // What is below `skip` wraps around to what is above everything.
    let within = before.wrapping_sub(u64::from(rule.skip)) < u64::from(rule.drop);
    // SAFETY: the helper has no requirement.
    let chosen = within && unsafe { bpf_get_prandom_u32() } % ALWAYS < rule.per_million;
    // SAFETY: a per-CPU value.
    unsafe {
        (*counts).matched += 1;
        if chosen {
            (*counts).dropped += 1;
            (*counts).dropped_segments += segment.gso_segments;
        }
    }
    chosen
}
