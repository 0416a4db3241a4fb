//! What this host is: its types, powers, clocks and cgroups.

pub mod bpf;
pub mod btf;
#[cfg(test)]
mod btf_blob;
pub mod cgroup;
pub mod clock;
pub mod conntrack;
pub mod cpus;
pub mod features;
pub mod fields;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod least;
pub mod privileges;
pub mod runs;
