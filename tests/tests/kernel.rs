//! What probe says on a kernel that lacks something: here the running one, of which more is asked than any kernel has.

use anyhow::{Context as _, Result, ensure};
use probe_common::fields::FIELDS;
use probe_tests::probe::require_root;
use probe_user::kernel::btf::KernelBtf;
use probe_user::kernel::fields::resolve;
use probe_user::load::{self, LoadError, Loader, ObjectSpec};
use probe_user::signals;

/// A number that `enum bpf_func_id` will not reach.
const NO_HELPER: i32 = 99_999;
const RINGBUF_RESERVE: i32 = 131;

/// A call of a helper: opcode, no registers, no offset, number.
fn call(helper: i32) -> [u8; 8] {
    let [a, b, c, d] = helper.to_le_bytes();
    [0x85, 0, 0, 0, a, b, c, d]
}

#[test]
fn a_helper_that_the_kernel_lacks_is_named() -> Result<()> {
    require_root()?;
    load::raise_memlock();
    let tcp = signals::ALL.iter().find(|kind| kind.object().name == "tcp").context("no signal tcp")?.object();
    let mut elf = tcp.elf.to_vec();
    let mut calls = 0;
    for place in 0..elf.len() {
        if let Some(word) = elf.get_mut(place..place + 8).filter(|word| **word == call(RINGBUF_RESERVE)) {
            word.copy_from_slice(&call(NO_HELPER));
            calls += 1;
        }
    }
    ensure!(calls > 0, "the object calls no bpf_ringbuf_reserve");
    // The loader wants what lives for ever.
    let object: &'static ObjectSpec = Box::leak(Box::new(ObjectSpec { elf: elf.leak(), ..*tcp }));

    let fields = resolve(&KernelBtf::from_host()?, FIELDS);
    let error =
        Loader::new(&fields, &0).load(object, &[]).err().context("the kernel took a call of no helper")?;
    let LoadError::Unknown { part, unknown, .. } = &error else {
        anyhow::bail!("not said to be unknown: {error}");
    };
    ensure!(unknown == &format!("helper {NO_HELPER}"), "{unknown}");
    ensure!(*part == "inet_sock_set_state", "{part} is not the first that calls it");
    // What the verifier said stays to be read.
    let said = error.verifier().context("the verifier said nothing")?;
    ensure!(said.contains(&format!("#{NO_HELPER}")), "{said}");
    ensure!(!error.is_permission_denied(), "{error}");

    // The object as it is loads, so that nothing else was the matter.
    Loader::new(&fields, &0).load(tcp, &[])?;
    Ok(())
}
