//! The only door to kernel memory.
//!
//! Offsets come from the running kernel's BTF (see `probe_common::fields`); the table is read-only data, frozen
//! before the programs are loaded, so the verifier knows every value in it and removes what is absent.

use core::mem::MaybeUninit;
use core::ptr::addr_of;

use aya_ebpf::helpers::generated::{bpf_probe_read_kernel, bpf_probe_read_kernel_str};
use probe_common::fields::{FIELD_COUNT, Field, FieldSlot, KernelPointer};

use crate::{Error, Result};

/// Filled in by user space before loading.
#[unsafe(no_mangle)]
static FIELDS: [FieldSlot; FIELD_COUNT] =
    [FieldSlot { offset: 0, shift: 0, width: 0, present: 0, _pad: 0 }; FIELD_COUNT];

/// The row of a field in the resolved table. What is wanted of it is read one by one, and volatile, because the compiler sees only
/// the zeros that user space overwrites: a volatile read of the whole row is one of each member, wanted or not.
#[inline(always)]
fn row<T>(field: Field<T>) -> *const FieldSlot {
    // SAFETY: every `Field` is made by the macro that makes the table, so its index is inside.
    unsafe { addr_of!(FIELDS).cast::<FieldSlot>().add(field.index) }
}

/// Where the field begins in its object.
#[inline(always)]
pub fn offset<T>(field: Field<T>) -> u64 {
    // SAFETY: a row of the table.
    u64::from(unsafe { addr_of!((*row(field)).offset).read_volatile() })
}

/// Whether this kernel has the field.
#[inline(always)]
pub fn present<T>(field: Field<T>) -> bool {
    // SAFETY: a row of the table.
    unsafe { addr_of!((*row(field)).present).read_volatile() != 0 }
}

/// Reads a field of the kernel object at `base`.
#[inline(always)]
pub fn read<T: Copy + Default>(base: KernelPointer, field: Field<T>) -> Result<T> {
    read_at(address(base, field)?)
}

/// Reads a field of the kernel object at `base`; zero where it does not read or this kernel has none. Without a branch: the
/// verifier has one way to follow instead of two.
#[inline(always)]
pub fn read_or_zero<T: Copy + Default>(base: KernelPointer, field: Field<T>) -> T {
    let mut value = T::default();
    if present(field) {
        let address = base + offset(field);
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
    let byte = read(base, field)?;
    // SAFETY: a row of the table.
    let (shift, width) = unsafe {
        let row = row(field);
        (addr_of!((*row).shift).read_volatile(), addr_of!((*row).width).read_volatile())
    };
    if width == 0 {
        return Ok(byte);
    }
    Ok((byte >> (shift & 7)) & (0xffu16 >> ((8 - width) & 7)) as u8)
}

/// The address of a field inside the kernel object at `base`. Where that is null, nothing reads at it: no kernel memory is there.
#[inline(always)]
pub fn address<T>(base: KernelPointer, field: Field<T>) -> Result<KernelPointer> {
    if present(field) { Ok(base + offset(field)) } else { Err(Error::Read) }
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

/// Text at a kernel address up to its NUL, as much as there is room for with a NUL behind it. Returns its length without that; 0
/// where it does not read.
#[inline(always)]
pub fn text_at<const N: usize>(address: KernelPointer, text: &mut [u8; N]) -> u32 {
    // SAFETY: the helper checks the address itself, and writes no further than `N` bytes.
    let len = unsafe { bpf_probe_read_kernel_str((&raw mut *text).cast(), N as u32, address as *const _) };
    // With the NUL, or a negative errno.
    if len > 0 { len as u32 - 1 } else { 0 }
}

/// Room on our stack for part of a kernel object that is read at once: a call of the helper costs more than the octets do.
pub type Room<const WORDS: usize> = MaybeUninit<[u64; WORDS]>;

/// Part of a kernel object.
#[derive(Clone, Copy)]
pub struct Stretch<'a, const WORDS: usize> {
    base: KernelPointer,
    /// Where it begins in the object.
    from: u64,
    words: &'a [u64; WORDS],
}

impl<'a, const WORDS: usize> Stretch<'a, WORDS> {
    /// Reads it, from a field on.
    #[inline(always)]
    pub fn read<T>(room: &'a mut Room<WORDS>, base: KernelPointer, first: Field<T>) -> Result<Self> {
        // Loads from our stack must be aligned: as the kernel's are, if the stretch is.
        let from = offset(first) & !7;
        // SAFETY: as in `read_at`.
        let failed = unsafe {
            bpf_probe_read_kernel(room.as_mut_ptr().cast(), (WORDS * 8) as u32, (base + from) as *const _)
        };
        // SAFETY: the helper writes all of it in any case.
        let words = unsafe { room.assume_init_ref() };
        if failed == 0 { Ok(Self { base, from, words }) } else { Err(Error::Read) }
    }

    /// A field as [`read_or_zero`] has it, which is asked for what lies outside: how far fields are apart differs from kernel to
    /// kernel. The verifier knows where each is, so only one of the two ways is left.
    #[inline(always)]
    pub fn get<T: Copy + Default>(self, field: Field<T>) -> T {
        let at = offset(field).wrapping_sub(self.from);
        if present(field) && at <= (WORDS * 8 - size_of::<T>()) as u64 {
            // SAFETY: inside, and aligned as in the kernel.
            unsafe { self.words.as_ptr().cast::<u8>().add(at as usize).cast::<T>().read() }
        } else {
            read_or_zero(self.base, field)
        }
    }
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
