//! Builds small BTF blobs for tests.

/// A blob in the making; ids are handed out from 1.
pub(crate) struct Blob {
    types: Vec<u8>,
    strings: Vec<u8>,
    count: u32,
}

impl Blob {
    pub(crate) fn new() -> Self {
        Self { types: Vec::new(), strings: vec![0], count: 0 }
    }

    fn string(&mut self, text: &str) -> u32 {
        if text.is_empty() {
            return 0;
        }
        let at = self.strings.len() as u32;
        self.strings.extend_from_slice(text.as_bytes());
        self.strings.push(0);
        at
    }

    /// Any type: `kind` by number, and the words that follow `struct btf_type`.
    pub(crate) fn raw(
        &mut self,
        name: &str,
        kind: u32,
        flag: bool,
        vlen: u32,
        size: u32,
        tail: &[u32],
    ) -> u32 {
        let name = self.string(name);
        let info = u32::from(flag) << 31 | kind << 24 | vlen;
        for word in [name, info, size].iter().chain(tail) {
            self.types.extend_from_slice(&word.to_le_bytes());
        }
        self.count += 1;
        self.count
    }

    pub(crate) fn int(&mut self, name: &str, size: u32) -> u32 {
        self.raw(name, 1, false, 0, size, &[size * 8])
    }

    pub(crate) fn ptr(&mut self, to: u32) -> u32 {
        self.raw("", 2, false, 0, to, &[])
    }

    pub(crate) fn array(&mut self, of: u32, count: u32) -> u32 {
        self.raw("", 3, false, 0, 0, &[of, of, count])
    }

    pub(crate) fn typedef(&mut self, name: &str, of: u32) -> u32 {
        self.raw(name, 8, false, 0, of, &[])
    }

    /// Members as (name, type, first bit).
    pub(crate) fn record(&mut self, name: &str, kind: u32, size: u32, members: &[(&str, u32, u32)]) -> u32 {
        let with_width: Vec<_> = members.iter().map(|&(name, ty, bit)| (name, ty, bit, 0)).collect();
        self.members(name, kind, size, false, &with_width)
    }

    pub(crate) fn structure(&mut self, name: &str, size: u32, members: &[(&str, u32, u32)]) -> u32 {
        self.record(name, 4, size, members)
    }

    pub(crate) fn union(&mut self, name: &str, size: u32, members: &[(&str, u32, u32)]) -> u32 {
        self.record(name, 5, size, members)
    }

    /// A struct with the kind flag: members as (name, type, first bit, width).
    pub(crate) fn packed(&mut self, name: &str, size: u32, members: &[(&str, u32, u32, u32)]) -> u32 {
        self.members(name, 4, size, true, members)
    }

    fn members(
        &mut self,
        name: &str,
        kind: u32,
        size: u32,
        flag: bool,
        members: &[(&str, u32, u32, u32)],
    ) -> u32 {
        let mut tail = Vec::new();
        for &(name, ty, bit, width) in members {
            tail.extend([self.string(name), ty, width << 24 | bit]);
        }
        self.raw(name, kind, flag, members.len() as u32, size, &tail)
    }

    pub(crate) fn enumeration(&mut self, name: &str, signed: bool, variants: &[(&str, i32)]) -> u32 {
        let mut tail = Vec::new();
        for &(name, value) in variants {
            tail.extend([self.string(name), value.cast_unsigned()]);
        }
        self.raw(name, 6, signed, variants.len() as u32, 4, &tail)
    }

    pub(crate) fn enumeration64(&mut self, name: &str, variants: &[(&str, u64)]) -> u32 {
        let mut tail = Vec::new();
        for &(name, value) in variants {
            tail.extend([self.string(name), value as u32, (value >> 32) as u32]);
        }
        self.raw(name, 19, false, variants.len() as u32, 8, &tail)
    }

    pub(crate) fn prototype(&mut self, parameters: &[(&str, u32)]) -> u32 {
        let mut tail = Vec::new();
        for &(name, ty) in parameters {
            tail.extend([self.string(name), ty]);
        }
        self.raw("", 13, false, parameters.len() as u32, 0, &tail)
    }

    pub(crate) fn function(&mut self, name: &str, prototype: u32) -> u32 {
        self.raw(name, 12, false, 0, prototype, &[])
    }

    /// `typedef void (*btf_trace_NAME)(void *, …)`, without names of parameters, as kernels have it.
    pub(crate) fn tracepoint(&mut self, name: &str, arguments: &[u32]) -> u32 {
        let data = self.ptr(0);
        let parameters: Vec<_> = [data].iter().chain(arguments).map(|&ty| ("", ty)).collect();
        let prototype = self.prototype(&parameters);
        let pointer = self.ptr(prototype);
        self.typedef(&format!("btf_trace_{name}"), pointer)
    }

    /// A raw BTF file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        for word in [24, 0, types, types, strings] {
            bytes.extend_from_slice(&u32::to_le_bytes(word));
        }
        bytes.extend_from_slice(&self.types);
        bytes.extend_from_slice(&self.strings);
        bytes
    }
}
