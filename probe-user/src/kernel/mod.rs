//! What this host is: its types, powers, clocks and cgroups.

pub mod btf;
#[cfg(test)]
mod btf_blob;
pub mod fields;
