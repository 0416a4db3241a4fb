//! What the BPF programs share: the door to kernel memory, the ring, the filter, names of owners.
#![no_std]
#![feature(asm_experimental_arch)]

pub mod emit;
pub mod filter;
pub mod kread;
pub mod socket;
pub mod task;

/// The programs cannot panic: the verifier would refuse a loop without end. This satisfies the compiler.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Why a program gave an event up. Each has a counter.
#[derive(Clone, Copy)]
pub enum Error {
    /// Kernel memory could not be read, or this kernel has no such field.
    Read,
    /// Nothing is wrong: the event is not one of ours.
    NotOurs,
}

/// What every `try_*` function returns.
pub type Result<T> = core::result::Result<T, Error>;
