//! probe's user space: loads the BPF programs, reads what they found, says whose it was, and hands it on.
//!
//! ARCHITECTURE.md has the map. Data goes one way: `load` → `collect` → `signals` → `entity` → `series` →
//! `sink`.

pub mod cli;
pub mod collect;
pub mod config;
pub mod doctor;
pub mod entity;
pub mod event;
pub mod handover;
pub mod kernel;
pub mod load;
pub mod pipeline;
pub mod series;
pub mod signals;
pub mod sink;
pub mod stacks;
pub mod telemetry;
mod tls;
