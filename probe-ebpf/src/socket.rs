//! What a `struct sock` says about its connection.

use core::mem::MaybeUninit;

use probe_common::fields::{self, KernelPointer};
use probe_common::tcp::Socket;
use probe_common::wire::{Address, FAMILY_IPV4, FAMILY_IPV6};

use crate::{Error, Result, kread};

/// include/linux/socket.h
pub const AF_INET: u16 = 2;
/// include/linux/socket.h
pub const AF_INET6: u16 = 10;

/// A connection request, include/net/tcp_states.h.
pub const TCP_NEW_SYN_RECV: u8 = 12;
/// include/net/tcp_states.h
pub const TCP_TIME_WAIT: u8 = 6;

/// Fills in addresses, ports, state, cgroup and network namespace of a full TCP socket; the owner is left as it is.
///
/// Into the caller's memory, here as below: a BPF stack has 512 bytes, and moved structs would be there twice.
#[inline(always)]
pub fn describe(sk: KernelPointer, socket: &mut Socket) -> Result<()> {
    socket.local_port = u16::from_be_bytes(kread!(sk, INET_SPORT)?);
    socket.peer_port = u16::from_be_bytes(kread!(sk, SKC_DPORT)?);
    socket.state = kread!(sk, SKC_STATE)?;
    socket.cookie = kread::read_or_zero(sk, fields::SKC_COOKIE);
    describe_home(sk, socket)?;
    match kread!(sk, SKC_FAMILY)? {
        AF_INET => {
            socket.family = FAMILY_IPV4;
            kread::read_into(sk, fields::SKC_RCV_SADDR, ipv4_of(&mut socket.local))?;
            kread::read_into(sk, fields::SKC_DADDR, ipv4_of(&mut socket.peer))?;
        }
        AF_INET6 => {
            kread::read_into(sk, fields::SKC_V6_RCV_SADDR, &mut socket.local)?;
            kread::read_into(sk, fields::SKC_V6_DADDR, &mut socket.peer)?;
            settle_ipv6(socket);
        }
        _ => return Err(Error::NotOurs),
    }
    Ok(())
}

/// Fills in the connection that a request on a listening socket will become; cgroup and namespace are the listener's.
#[inline(always)]
pub fn describe_request(listener: KernelPointer, request: KernelPointer, socket: &mut Socket) -> Result<()> {
    socket.local_port = kread!(request, REQ_NUM)?;
    socket.peer_port = u16::from_be_bytes(kread!(request, REQ_DPORT)?);
    socket.state = TCP_NEW_SYN_RECV;
    describe_home(listener, socket)?;
    match kread!(request, REQ_FAMILY)? {
        AF_INET => {
            socket.family = FAMILY_IPV4;
            kread::read_into(request, fields::REQ_RCV_SADDR, ipv4_of(&mut socket.local))?;
            kread::read_into(request, fields::REQ_DADDR, ipv4_of(&mut socket.peer))?;
        }
        AF_INET6 => {
            kread::read_into(request, fields::REQ_V6_RCV_SADDR, &mut socket.local)?;
            kread::read_into(request, fields::REQ_V6_DADDR, &mut socket.peer)?;
            settle_ipv6(socket);
        }
        _ => return Err(Error::NotOurs),
    }
    Ok(())
}

/// Where a socket belongs: network namespace and cgroup.
#[inline(always)]
fn describe_home(sk: KernelPointer, socket: &mut Socket) -> Result<()> {
    socket.netns = netns(sk)?;
    socket.cgroup_id = known_cgroup_id(sk);
    Ok(())
}

/// Inode number of the socket's network namespace.
#[inline(always)]
pub fn netns(sk: KernelPointer) -> Result<u32> {
    kread!(kread!(sk, SKC_NET)?, NET_NS_INUM)
}

/// The socket's `struct cgroup` in the v2 hierarchy.
#[inline(always)]
pub fn cgroup(sk: KernelPointer) -> Result<KernelPointer> {
    if kread::present(fields::SK_CGROUP) {
        return kread!(sk, SK_CGROUP);
    }
    // Before 5.15 the word is a pointer unless its lowest bits say that it holds v1 class data, or nothing
    // (include/linux/cgroup-defs.h, `sock_cgroup_data`).
    let value = kread!(sk, SK_CGROUP_VAL)?;
    if value & 3 == 0 && value != 0 { Ok(value) } else { Err(Error::Read) }
}

/// cgroup id of a socket; 0 where it does not read.
#[inline(always)]
pub fn known_cgroup_id(sk: KernelPointer) -> u64 {
    let cgroup = if kread::present(fields::SK_CGROUP) {
        kread::read_or_zero(sk, fields::SK_CGROUP)
    } else {
        cgroup(sk).unwrap_or(0)
    };
    kread::read_or_zero(kread::read_or_zero(cgroup, fields::CGROUP_KN), fields::KERNFS_ID)
}

/// cgroup id of a `struct cgroup`.
#[inline(always)]
pub fn cgroup_id(cgroup: KernelPointer) -> Result<u64> {
    kread!(kread!(cgroup, CGROUP_KN)?, KERNFS_ID)
}

/// A v4-mapped connection (RFC 4291, 2.5.5.2) is IPv4 on the wire and is reported as what it is.
#[inline(always)]
fn settle_ipv6(socket: &mut Socket) {
    if is_mapped(&socket.peer) {
        socket.family = FAMILY_IPV4;
        unmap(&mut socket.local);
        unmap(&mut socket.peer);
    } else {
        socket.family = FAMILY_IPV6;
    }
}

/// Whether an address is one of ::ffff:0:0/96.
#[inline(always)]
fn is_mapped(address: &Address) -> bool {
    let [upper, lower] = words(address);
    upper == 0 && lower as u32 == u32::from_le_bytes([0, 0, 0xff, 0xff])
}

/// What a connection is on the wire: `FAMILY_IPV4` or `FAMILY_IPV6`, as [`describe`] has it.
#[inline(always)]
pub fn family(sk: KernelPointer) -> Result<u8> {
    Ok(match kread!(sk, SKC_FAMILY)? {
        AF_INET => FAMILY_IPV4,
        AF_INET6 if is_mapped(&kread!(sk, SKC_V6_DADDR)?) => FAMILY_IPV4,
        AF_INET6 => FAMILY_IPV6,
        _ => return Err(Error::NotOurs),
    })
}

/// Where IPv4 is in an address.
#[inline(always)]
fn ipv4_of(address: &mut Address) -> &mut [u8; 4] {
    // SAFETY: the first four of sixteen bytes.
    unsafe { &mut *(&raw mut *address).cast() }
}

/// The IPv4 address at the end of a mapped one, to its beginning; the rest zero.
#[inline(always)]
fn unmap(address: &mut Address) {
    // SAFETY: the last four of sixteen bytes.
    let last = unsafe { (&raw const *address).cast::<[u8; 4]>().add(3) };
    let mut ipv4 = MaybeUninit::<[u8; 4]>::uninit();
    // SAFETY: four bytes are four bytes; `copy` writes all of them.
    let ipv4 = unsafe { &mut *ipv4.as_mut_ptr() };
    kread::copy(last, ipv4);
    // SAFETY: an address is plain bytes.
    kread::blank(unsafe { &mut *(&raw mut *address).cast::<MaybeUninit<Address>>() });
    kread::copy(ipv4, ipv4_of(address));
}

/// IPv4 in the first four bytes, the rest zero.
#[inline(always)]
pub fn set_ipv4(address: &mut Address, ipv4: [u8; 4]) {
    let words = (&raw mut *address).cast::<u64>();
    // SAFETY: 16 bytes; unaligned on purpose (on our stack LLVM knows the real alignment).
    unsafe {
        words.write_unaligned(u64::from(u32::from_ne_bytes(ipv4)));
        words.add(1).write_unaligned(0);
    }
}

/// An address as two native words: BPF has no memcmp, and single bytes cost registers.
#[inline(always)]
pub fn words(address: &[u8; 16]) -> [u64; 2] {
    let words = (&raw const *address).cast::<u64>();
    // SAFETY: 16 bytes.
    unsafe { [words.read_unaligned(), words.add(1).read_unaligned()] }
}
