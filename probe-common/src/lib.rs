//! The contract between probe's BPF programs and its user space.
//!
//! Everything that crosses the border between the two is declared here, once, and compiled into both:
//! record layouts ([`wire`], [`tcp`], [`dns`], [`syscalls`], [`cgroups`]), run-time settings ([`settings`]), the table of
//! kernel fields that user space resolves from BTF ([`fields`]), histogram buckets ([`hist`]) and the named
//! places where something can get lost ([`loss`]).
//!
//! Rules of the border: fixed-width integers in native byte order, explicit padding, no `bool`, no enum,
//! no pointer, and a size assertion beside every type. No I/O, no allocation; no dependency in the kernel's build.
#![no_std]

pub mod cgroups;
pub mod dns;
pub mod fields;
pub mod hist;
pub mod loss;
pub mod question;
pub mod settings;
pub mod syscalls;
pub mod tcp;
pub mod testdrop;
pub mod testflood;
pub mod wire;
