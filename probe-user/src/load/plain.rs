//! Types of `probe_common` in aya's maps.

/// A value that crosses the border: plain bytes, proved by `bytemuck` at compile time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Plain<T>(pub T);

#[expect(unsafe_code, reason = "the one implementation of aya's Pod")]
// SAFETY: `bytemuck::Pod` asks for the same and more: any bit pattern is valid, and there is no padding. `Plain` is
// transparent.
unsafe impl<T: bytemuck::Pod> aya::Pod for Plain<T> {}
