//! Stacks: names for the addresses of sampled ones, the sum over equal ones, and their picture.
//!
//! [`Symbolizer`] gives frames to addresses, [`Folded`] adds up weights of equal stacks and writes them as text, [`flamegraph()`] draws them, and
//! [`Output`] is the file that takes the drawing.
//! Everything here is made of strangers' bytes (their ELF files, their names, their paths): parsers are total, sizes have limits, and no
//! file of theirs is mapped.

pub mod elf;
mod flamegraph;
mod folded;
mod images;
pub mod kernel;
pub mod maps;
pub mod names;
mod output;
pub mod perf_map;
mod process;
mod symbolizer;
pub mod symbols;
#[cfg(test)]
mod tests;
mod unresolved;

pub use flamegraph::{DrawError, Picture, flamegraph};
pub use folded::{Folded, FoldedLimits, Unit, Weight};
pub use kernel::KernelSymbols;
pub use output::{Output, OutputError};
pub use symbolizer::{Frame, Limits, MAX_FRAMES, Symbolizer};
pub use unresolved::{Reason, Unresolved};
