//! Whether bpf(2) gets past what stands before the kernel's own checks: seccomp and security modules.

#![expect(unsafe_code, reason = "bpf(2) takes a pointer")]

use std::io;

/// No command has this number, nor a flag of it: the kernel answers EINVAL, once it is asked.
const NO_COMMAND: libc::c_int = 0xffff;

/// True: the kernel itself answers. False: somebody before it refuses; before 5.19 that is also the kernel, of whoever has
/// no CAP_BPF.
#[must_use]
pub fn bpf_answers() -> bool {
    // SAFETY: no attributes: a null pointer to zero bytes.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, NO_COMMAND, std::ptr::null::<u8>(), 0) };
    answer == 0 || io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL)
}
