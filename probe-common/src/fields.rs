//! The table of kernel fields: what the programs read from kernel memory, declared once.
//!
//! rustc emits no CO-RE relocations, so user space looks every row up in the running kernel's BTF before a
//! program is loaded and hands the result down as read-only data ([`FieldSlot`]); the programs read through
//! one door (`probe-ebpf/src/kread.rs`). A row that the kernel lacks has `present == 0`: reading it is an
//! error, never offset 0.

use core::marker::PhantomData;

/// Bit in [`FieldSpec::required_by`]: the tcp signal cannot run without the field.
pub const TCP: u8 = 1 << 0;
/// Bit in [`FieldSpec::required_by`]: the dns signal cannot run without the field.
pub const DNS: u8 = 1 << 1;
/// Bit in [`FieldSpec::required_by`]: the syscalls signal cannot run without the field.
pub const SYSCALLS: u8 = 1 << 2;
/// Bit in [`FieldSpec::required_by`]: names of cgroups cannot be learned as they are made without the field.
pub const CGROUPS: u8 = 1 << 3;

/// What a row asks of BTF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldKind {
    /// `struct.member[.member…]`: a member, through embedded structs, unions and anonymous ones, but never
    /// through a pointer. The slot holds its byte offset. A member that is a pointer is refused: it would have the
    /// size of a `u64`, and another meaning.
    Member,
    /// The same, of a member that must be a pointer.
    Pointer,
    /// `tracepoint:argument`: an argument of a raw tracepoint, from the prototype `btf_trace_<tracepoint>`.
    /// The slot's offset holds the argument's index, the kernel's own `__data` not counted.
    TraceArg,
}

/// One row of the table, as user space sees it.
#[derive(Clone, Copy, Debug)]
pub struct FieldSpec {
    /// Where BTF keeps it; the syntax is that of [`FieldKind`].
    pub path: &'static str,
    /// How `path` is to be read.
    pub kind: FieldKind,
    /// How many bytes the programs read at the offset. A member of another size is refused, except a
    /// bit-field, which is cut out of the integer around it.
    pub size: u8,
    /// Signals that cannot run without it (`TCP | DNS | …`); zero: detail that may be missing.
    pub required_by: u8,
}

/// One resolved row, as the programs see it. All zero: this kernel has no such field.
#[repr(C)]
#[cfg_attr(feature = "bytemuck", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FieldSlot {
    /// Bytes from the start of the outermost struct; for a trace argument its index.
    pub offset: u32,
    /// Bit-fields only: bits to shift right after a little-endian load at `offset`.
    pub shift: u8,
    /// Bit-fields only: width in bits; 0 for an ordinary member.
    pub width: u8,
    /// 1 when the kernel has the field.
    pub present: u8,
    /// Zero.
    pub _pad: u8,
}
const _: () = assert!(size_of::<FieldSlot>() == 8);

/// A typed handle to a row: `T` is what the programs read there.
#[derive(Debug)]
pub struct Field<T> {
    /// Index into [`FIELDS`] and into the resolved table.
    pub index: usize,
    kind: PhantomData<T>,
}

impl<T> Clone for Field<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Field<T> {}

/// A pointer read from kernel memory. Only `kread.rs` may follow it.
pub type KernelPointer = u64;

macro_rules! kernel_fields {
    ($($(#[doc = $doc:literal])* $name:ident: $ty:ty = $kind:ident $path:literal, $required:expr;)+) => {
        #[expect(non_camel_case_types, reason = "row names, used as indices only")]
        #[repr(usize)]
        enum Row { $($name,)+ }
        $(
            $(#[doc = $doc])*
            #[doc = concat!("BTF: `", $path, "`.")]
            pub const $name: Field<$ty> = Field { index: Row::$name as usize, kind: PhantomData };
        )+
        /// Every kernel field that any program reads.
        pub const FIELDS: &[FieldSpec] = &[
            $(FieldSpec {
                path: $path,
                kind: FieldKind::$kind,
                size: size_of::<$ty>() as u8,
                required_by: $required,
            },)+
        ];
    };
}

kernel_fields! {
    /// Process id as users know it (thread group), in the initial pid namespace.
    TASK_TGID: i32 = Member "task_struct.tgid", SYSCALLS;
    /// Thread id.
    TASK_PID: i32 = Member "task_struct.pid", SYSCALLS;
    /// PF_* bits of include/linux/sched.h.
    TASK_FLAGS: u32 = Member "task_struct.flags", TCP | DNS;
    /// First thread of the process: its comm is the process's name.
    TASK_GROUP_LEADER: KernelPointer = Pointer "task_struct.group_leader", TCP | DNS | SYSCALLS;
    /// Name of the thread, NUL-padded.
    TASK_COMM: [u8; 16] = Member "task_struct.comm", TCP | DNS | SYSCALLS;
    /// Nanoseconds since boot (CLOCK_BOOTTIME) at which the task began; with the pid it names a process for good.
    TASK_START_BOOTTIME: u64 = Member "task_struct.start_boottime", TCP | DNS | SYSCALLS;
    /// What a process's threads share; its `live` tells the last thread's exit.
    TASK_SIGNAL: KernelPointer = Pointer "task_struct.signal", SYSCALLS;
    /// Threads of the process that have not exited yet; 0 in the exit of the last.
    SIGNAL_LIVE: i32 = Member "signal_struct.live.counter", SYSCALLS;
    /// Cgroups of the task.
    TASK_CGROUPS: KernelPointer = Pointer "task_struct.cgroups", 0;
    /// The one in the v2 hierarchy.
    CSS_SET_DFL_CGRP: KernelPointer = Pointer "css_set.dfl_cgrp", 0;
    /// x86: bit 1 (TS_COMPAT) is set inside a 32-bit system call. Absent elsewhere.
    TASK_THREAD_STATUS: u32 = Member "task_struct.thread_info.status", 0;

    /// What the thread is waiting for, bits of include/linux/sched.h; 0: it runs, or could.
    TASK_STATE: u32 = Member "task_struct.__state", 0;
    /// The same before 5.14.
    TASK_STATE_LONG: u64 = Member "task_struct.state", 0;
    /// Number of the call that the registers are of, x86-64; -1: they are of no call.
    REGS_NUMBER: u64 = Member "pt_regs.orig_ax", 0;
    /// Open files of the task: with the next six, the way from a descriptor to its file.
    TASK_FILES: KernelPointer = Pointer "task_struct.files", 0;
    /// Table of descriptors.
    FILES_FDT: KernelPointer = Pointer "files_struct.fdt", 0;
    /// Its length.
    FDT_MAX_FDS: u32 = Member "fdtable.max_fds", 0;
    /// Files by descriptor.
    FDT_FD: KernelPointer = Pointer "fdtable.fd", 0;
    /// Kind and permissions of an inode, `st_mode`.
    INODE_MODE: u16 = Member "inode.i_mode", 0;
    /// Its number.
    INODE_INO: u64 = Member "inode.i_ino", 0;
    /// Where an open file lies.
    FILE_DENTRY: KernelPointer = Pointer "file.f_path.dentry", 0;
    /// Last part of its path.
    DENTRY_NAME: KernelPointer = Pointer "dentry.d_name.name", 0;

    /// First argument register at a system call, x86-64. Absent elsewhere: arguments are then not shown.
    REGS_ARG0: u64 = Member "pt_regs.di", 0;
    /// Second argument register, x86-64.
    REGS_ARG1: u64 = Member "pt_regs.si", 0;
    /// Third argument register, x86-64.
    REGS_ARG2: u64 = Member "pt_regs.dx", 0;
    /// Fourth argument register, x86-64.
    REGS_ARG3: u64 = Member "pt_regs.r10", 0;
    /// Fifth argument register, x86-64.
    REGS_ARG4: u64 = Member "pt_regs.r8", 0;
    /// Sixth argument register, x86-64.
    REGS_ARG5: u64 = Member "pt_regs.r9", 0;
    /// First argument register of a 32-bit call on x86-64; the others are the second, third, sixth, fifth and this one.
    REGS_BX: u64 = Member "pt_regs.bx", 0;
    /// Its second.
    REGS_CX: u64 = Member "pt_regs.cx", 0;
    /// Its sixth.
    REGS_BP: u64 = Member "pt_regs.bp", 0;

    /// IPv4 peer, network byte order.
    SKC_DADDR: [u8; 4] = Member "sock_common.skc_daddr", TCP;
    /// IPv4 local address, network byte order.
    SKC_RCV_SADDR: [u8; 4] = Member "sock_common.skc_rcv_saddr", TCP;
    /// Peer port, network byte order.
    SKC_DPORT: [u8; 2] = Member "sock_common.skc_dport", TCP;
    /// Local port of a TCP socket, network byte order. It outlives `skc_num`, which is zero once a socket closes.
    INET_SPORT: [u8; 2] = Member "inet_sock.inet_sport", TCP;
    /// Local port that a socket holds, host byte order.
    SKC_NUM: u16 = Member "sock_common.skc_num", TCP;
    /// AF_INET or AF_INET6.
    SKC_FAMILY: u16 = Member "sock_common.skc_family", TCP;
    /// TCP state, `enum` of include/net/tcp_states.h.
    SKC_STATE: u8 = Member "sock_common.skc_state", TCP;
    /// Socket cookie; 0 until somebody asked for it.
    SKC_COOKIE: u64 = Member "sock_common.skc_cookie.counter", 0;
    /// Network namespace of the socket.
    SKC_NET: KernelPointer = Pointer "sock_common.skc_net.net", TCP;
    /// IPv6 peer. Absent where the kernel has no IPv6.
    SKC_V6_DADDR: [u8; 16] = Member "sock_common.skc_v6_daddr", 0;
    /// IPv6 local address. Absent where the kernel has no IPv6.
    SKC_V6_RCV_SADDR: [u8; 16] = Member "sock_common.skc_v6_rcv_saddr", 0;
    /// Inode number of a network namespace, as in /proc/PID/ns/net.
    NET_NS_INUM: u32 = Member "net.ns.inum", TCP;

    /// Inode of an open file: with the next five, the way from files to the sockets that were there before.
    FILE_INODE: KernelPointer = Pointer "file.f_inode", 0;
    /// What an open file is to whom it belongs: of a socket's, its `struct socket`.
    FILE_PRIVATE_DATA: KernelPointer = Pointer "file.private_data", 0;
    /// File system of an inode.
    INODE_SB: KernelPointer = Pointer "inode.i_sb", 0;
    /// Which file system it is.
    SB_MAGIC: u64 = Member "super_block.s_magic", 0;
    /// The protocol's side of a socket.
    SOCKET_SK: KernelPointer = Pointer "socket.sk", 0;
    /// Kind of a socket: SOCK_STREAM, or SOCK_RAW that sends TCP's segments itself.
    SOCKET_TYPE: u16 = Member "socket.type", 0;

    /// Protocol of a socket: raw tracepoints of sockets also fire for others than TCP (DCCP, MPTCP, SCTP).
    SK_PROTOCOL: u16 = Member "sock.sk_protocol", TCP;
    /// SO_REUSEPORT is set; a bit-field.
    SKC_REUSEPORT: u8 = Member "sock_common.skc_reuseport", TCP;
    /// Bits by `enum sock_flags` of include/net/sock.h.
    SKC_FLAGS: u64 = Member "sock_common.skc_flags", 0;
    /// Pending error of a socket, a positive errno.
    SK_ERR: i32 = Member "sock.sk_err", TCP;
    /// cgroup v2 of the socket: kernels from 5.15 on, and 5.10 stable of late.
    SK_CGROUP: KernelPointer = Pointer "sock.sk_cgrp_data.cgroup", 0;
    /// cgroup v2 of the socket before that: a pointer where bit 0 is clear.
    SK_CGROUP_VAL: u64 = Member "sock.sk_cgrp_data.val", 0;
    /// kernfs node of a cgroup.
    CGROUP_KN: KernelPointer = Pointer "cgroup.kn", TCP | CGROUPS;
    /// cgroup id: what user space sees as the directory's inode number.
    KERNFS_ID: u64 = Member "kernfs_node.id", TCP | CGROUPS;
    /// The hierarchy that a cgroup is of.
    CGROUP_ROOT: KernelPointer = Pointer "cgroup.root", CGROUPS;
    /// Its number, as in /proc/PID/cgroup: 0 is v2.
    CGROUP_ROOT_HIERARCHY_ID: i32 = Member "cgroup_root.hierarchy_id", CGROUPS;
    /// Depth of a cgroup below the root.
    CGROUP_LEVEL: i32 = Member "cgroup.level", 0;
    /// Parent and up: pointers by level, itself last; from 6.1 on.
    CGROUP_ANCESTORS: [u8; 0] = Member "cgroup.ancestors", 0;
    /// The same before 6.1, as ids.
    CGROUP_ANCESTOR_IDS: [u8; 0] = Member "cgroup.ancestor_ids", 0;

    /// Congestion avoidance state, `enum tcp_ca_state`; a bit-field.
    ICSK_CA_STATE: u8 = Member "inet_connection_sock.icsk_ca_state", TCP;
    /// Which timer is pending: 5 is the loss probe. An ordinary byte up to 6.x, a bit-field nowhere known.
    ICSK_PENDING: u8 = Member "inet_connection_sock.icsk_pending", TCP;
    /// Smoothed round-trip time in microseconds, times eight.
    SRTT_US: u32 = Member "tcp_sock.srtt_us", 0;
    /// Congestion window in segments.
    SND_CWND: u32 = Member "tcp_sock.snd_cwnd", 0;
    /// Segments sent and not yet acknowledged.
    PACKETS_OUT: u32 = Member "tcp_sock.packets_out", 0;
    /// Octets of data sent, each transmission counted.
    BYTES_SENT: u64 = Member "tcp_sock.bytes_sent", 0;
    /// Octets of data in it that were sent before.
    BYTES_RETRANS: u64 = Member "tcp_sock.bytes_retrans", 0;
    /// Octets received in order (RFC 4898, tcpEStatsAppHCThruOctetsReceived); the peer's FIN counts as one.
    BYTES_RECEIVED: u64 = Member "tcp_sock.bytes_received", 0;
    /// Segments sent (RFC 4898, tcpEStatsPerfSegsOut).
    SEGS_OUT: u32 = Member "tcp_sock.segs_out", 0;
    /// Segments received (RFC 4898, tcpEStatsPerfSegsIn).
    SEGS_IN: u32 = Member "tcp_sock.segs_in", 0;
    /// Segments sent again.
    TOTAL_RETRANS: u32 = Member "tcp_sock.total_retrans", 0;
    /// Segments that the peer received twice, by its D-SACKs (RFC 2883; RFC 4898, tcpEStatsStackDSACKDups).
    DSACK_DUPS: u32 = Member "tcp_sock.dsack_dups", 0;
    /// Where a recovery began, as a sequence number; 0 once TCP has taken it back (`tcp_undo_cwnd_reduction`).
    UNDO_MARKER: u32 = Member "tcp_sock.undo_marker", 0;
    /// Segments sent again and neither acknowledged nor taken for lost since.
    RETRANS_OUT: u32 = Member "tcp_sock.retrans_out", 0;
    /// Segments that the peer has acknowledged, by D-SACKs too.
    TCP_DELIVERED: u32 = Member "tcp_sock.delivered", 0;
    /// Segments received out of order.
    RCV_OOOPACK: u32 = Member "tcp_sock.rcv_ooopack", 0;

    /// Control block of a segment: TCP keeps its own there.
    SKB_CB: [u8; 1] = Member "sk_buff.cb", TCP;
    /// Segments that an skb stands for, inside the control block.
    TCP_SKB_CB_GSO_SEGS: u16 = Member "tcp_skb_cb.tcp_gso_segs", TCP;

    /// IPv4 or IPv6 of a connection request (the socket it will become).
    REQ_FAMILY: u16 = Member "request_sock.__req_common.skc_family", TCP;
    /// Local port of a connection request, host byte order.
    REQ_NUM: u16 = Member "request_sock.__req_common.skc_num", TCP;
    /// Peer port of a connection request, network byte order.
    REQ_DPORT: [u8; 2] = Member "request_sock.__req_common.skc_dport", TCP;
    /// IPv4 peer of a connection request.
    REQ_DADDR: [u8; 4] = Member "request_sock.__req_common.skc_daddr", TCP;
    /// IPv4 local address of a connection request.
    REQ_RCV_SADDR: [u8; 4] = Member "request_sock.__req_common.skc_rcv_saddr", TCP;
    /// IPv6 peer of a connection request.
    REQ_V6_DADDR: [u8; 16] = Member "request_sock.__req_common.skc_v6_daddr", 0;
    /// IPv6 local address of a connection request.
    REQ_V6_RCV_SADDR: [u8; 16] = Member "request_sock.__req_common.skc_v6_rcv_saddr", 0;

    /// Error of the transmission; the argument exists where the tracepoint also fires for failed ones (from
    /// about 6.17).
    RETRANSMIT_ERR: i32 = TraceArg "tcp_retransmit_skb:err", 0;
    /// Why a reset was sent, `enum sk_rst_reason`; from about 6.10.
    SEND_RESET_REASON: u32 = TraceArg "tcp_send_reset:reason", 0;
    /// The congestion avoidance state to come, `enum tcp_ca_state`; the tracepoint exists from 5.19 on.
    CONG_STATE: u8 = TraceArg "tcp_cong_state_set:ca_state", 0;
}

/// Number of rows: the length of the resolved table in every BPF object.
pub const FIELD_COUNT: usize = FIELDS.len();
