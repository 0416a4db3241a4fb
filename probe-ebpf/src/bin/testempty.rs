//! Not shipped. What programs cost that do nothing, on the hooks of ours: the floor that `cargo xtask bench` compares with.
#![no_std]
#![no_main]

use aya_ebpf::macros::{cgroup_skb, cgroup_sock_addr, raw_tracepoint};
use aya_ebpf::programs::{RawTracePointContext, SkBuffContext, SockAddrContext};
use probe_ebpf as _;

#[raw_tracepoint(tracepoint = "sys_enter")]
pub fn empty_enter(_ctx: RawTracePointContext) -> i32 {
    0
}

#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn empty_exit(_ctx: RawTracePointContext) -> i32 {
    0
}

#[raw_tracepoint(tracepoint = "sched_switch")]
pub fn empty_switch(_ctx: RawTracePointContext) -> i32 {
    0
}

/// What lets a packet or a call pass.
const NEUTRAL: i32 = 1;

#[cgroup_skb(egress)]
pub fn empty_egress(_ctx: SkBuffContext) -> i32 {
    NEUTRAL
}

#[cgroup_skb(ingress)]
pub fn empty_ingress(_ctx: SkBuffContext) -> i32 {
    NEUTRAL
}

#[cgroup_sock_addr(connect4)]
pub fn empty_connect4(_ctx: SockAddrContext) -> i32 {
    NEUTRAL
}

#[cgroup_sock_addr(sendmsg4)]
pub fn empty_sendmsg4(_ctx: SockAddrContext) -> i32 {
    NEUTRAL
}
