//! The only door to kernel memory.
//!
//! Offsets come from the running kernel's BTF (see `probe_common::fields`); the table is read-only data, frozen
//! before the programs are loaded, so the verifier knows every value in it and removes what is absent.

use core::mem::MaybeUninit;
use core::ptr::{addr_of, read_volatile};

use aya_ebpf::helpers::generated::{bpf_probe_read_kernel, bpf_probe_read_kernel_str};
use probe_common::fields::{FIELD_COUNT, Field, FieldSlot, KernelPointer};

use crate::{Error, Result};

/// Filled in by user space before loading.
#[unsafe(no_mangle)]
static FIELDS: [FieldSlot; FIELD_COUNT] =
    [FieldSlot { offset: 0, shift: 0, width: 0, present: 0, _pad: 0 }; FIELD_COUNT];

/// The resolved row of a field.
#[inline(always)]
pub fn slot<T>(field: Field<T>) -> FieldSlot {
    // SAFETY: every `Field` is made by the macro that makes the table, so its index is inside. Volatile,
    // because the compiler sees only the zeros that user space overwrites.
    unsafe { read_volatile(addr_of!(FIELDS).cast::<FieldSlot>().add(field.index)) }
}

/// Whether this kernel has the field.
#[inline(always)]
pub fn present<T>(field: Field<T>) -> bool {
    slot(field).present != 0
}

/// Reads a field of the kernel object at `base`.
#[inline(always)]
pub fn read<T: Copy + Default>(base: KernelPointer, field: Field<T>) -> Result<T> {
    let slot = slot(field);
    if slot.present == 0 || base == 0 {
        return Err(Error::Read);
    }
    read_at(base + u64::from(slot.offset))
}

/// Reads a field of the kernel object at `base`; zero where it does not read or this kernel has none. Without a branch: the
/// verifier has one way to follow instead of two.
#[inline(always)]
pub fn read_or_zero<T: Copy + Default>(base: KernelPointer, field: Field<T>) -> T {
    let slot = slot(field);
    let mut value = T::default();
    if slot.present != 0 {
        let address = base + u64::from(slot.offset);
        // SAFETY: as in `read_at`. Where it fails, the helper zeroes the destination.
        let _failed = unsafe {
            bpf_probe_read_kernel((&raw mut value).cast(), size_of::<T>() as u32, address as *const _)
        };
    }
    value
}

/// Zeros, written by a read that fails: the verifier knows nothing certain of what they are, so that ways on which some are
/// overwritten stay one way to it.
#[inline(always)]
pub fn blank<T>(value: &mut MaybeUninit<T>) {
    // SAFETY: no kernel memory is at address zero; the helper then zeroes all of the destination (bpf_probe_read_kernel_common
    // of kernel/trace/bpf_trace.c).
    let _failed =
        unsafe { bpf_probe_read_kernel(value.as_mut_ptr().cast(), size_of::<T>() as u32, core::ptr::null()) };
}

/// Reads a bit-field (or an ordinary byte, where the kernel has one) of the kernel object at `base`.
#[inline(always)]
pub fn read_bits(base: KernelPointer, field: Field<u8>) -> Result<u8> {
    let slot = slot(field);
    let byte = read(base, field)?;
    if slot.width == 0 {
        return Ok(byte);
    }
    Ok((byte >> (slot.shift & 7)) & (0xffu16 >> ((8 - slot.width) & 7)) as u8)
}

/// The address of a field inside the kernel object at `base`.
#[inline(always)]
pub fn address<T>(base: KernelPointer, field: Field<T>) -> Result<KernelPointer> {
    let slot = slot(field);
    if slot.present == 0 || base == 0 {
        return Err(Error::Read);
    }
    Ok(base + u64::from(slot.offset))
}

/// Reads a `T` at a kernel address.
#[inline(always)]
pub fn read_at<T: Copy + Default>(address: KernelPointer) -> Result<T> {
    let mut value = T::default();
    // SAFETY: the helper checks the address itself and fails on a bad one; `value` is a `T` on our stack, and
    // `T` is one of the integers and byte arrays of the table, for which every bit pattern is valid.
    let failed =
        unsafe { bpf_probe_read_kernel((&raw mut value).cast(), size_of::<T>() as u32, address as *const _) };
    if failed == 0 { Ok(value) } else { Err(Error::Read) }
}

/// Reads a field of the kernel object at `base` into `value`: for what is too large to be moved about on a BPF stack.
#[inline(always)]
pub fn read_into<T: Copy>(base: KernelPointer, field: Field<T>, value: &mut T) -> Result<()> {
    let address = address(base, field)?;
    // SAFETY: as in `read_at`.
    let failed = unsafe {
        bpf_probe_read_kernel((&raw mut *value).cast(), size_of::<T>() as u32, address as *const _)
    };
    if failed == 0 { Ok(()) } else { Err(Error::Read) }
}

/// Reads text of the kernel object at `base` up to its NUL; zeros after that, whatever the kernel has left there: in 5.10 a
/// shorter name of a task leaves the end of the longer one before it.
#[inline(always)]
pub fn read_text<const N: usize>(base: KernelPointer, field: Field<[u8; N]>) -> Result<[u8; N]> {
    let address = address(base, field)?;
    let mut text = [0; N];
    // SAFETY: as in `read_at`; the helper writes no further than `N` bytes.
    let len = unsafe { bpf_probe_read_kernel_str((&raw mut text).cast(), N as u32, address as *const _) };
    if len >= 0 { Ok(text) } else { Err(Error::Read) }
}

/// The address behind a pointer that the verifier keeps typed (a context's socket), on which it allows no arithmetic: read
/// back from our stack it is a number like any other.
#[inline(always)]
pub fn address_of<T>(pointer: *mut T) -> Result<KernelPointer> {
    read_at((&raw const pointer) as KernelPointer)
}

/// Copies what the verifier watches closely (a value of a map) to where it should know nothing certain of it; and what is
/// large: the compiler would copy it byte by byte, and the verifier follow it so.
#[inline(always)]
pub fn copy<T: Copy>(from: *const T, to: &mut T) {
    // SAFETY: both are `T`s in memory of this program; the helper reads any kernel memory.
    let _failed = unsafe { bpf_probe_read_kernel((&raw mut *to).cast(), size_of::<T>() as u32, from.cast()) };
}

/// `kread!(sk, SKC_STATE)?`: the field `SKC_STATE` of the kernel object at `sk`.
#[macro_export]
macro_rules! kread {
    ($base:expr, $field:ident) => {
        $crate::kread::read($base, ::probe_common::fields::$field)
    };
}
