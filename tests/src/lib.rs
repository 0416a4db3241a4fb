//! What the live tests share.

pub mod accounts;
pub mod attempts;
pub mod blind;
pub mod bpf;
pub mod counters;
pub mod dns_load;
pub mod dns_server;
pub mod dns_world;
pub mod drop;
pub mod elf;
pub mod flood;
pub mod flooding;
pub mod guest;
pub mod netns;
pub mod orders;
pub mod otlp_receiver;
pub mod path;
pub mod privileges;
pub mod probe;
pub mod protocol;
pub mod require;
pub mod runner;
pub mod tcp_load;
pub mod tracers;
pub mod traffic;
pub mod workload;
