//! What this host is: its types, powers, clocks and cgroups.

pub mod btf;
#[cfg(test)]
mod btf_blob;
pub mod cgroup;
pub mod clock;
pub mod features;
pub mod fields;
pub mod least;
pub mod privileges;
pub mod skipped;
