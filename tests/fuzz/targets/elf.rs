//! Functions of files that are no ELF file, or a hostile one.

#![no_main]

use libfuzzer_sys::fuzz_target;
use probe_user::stacks::elf::Elf;
use probe_user::stacks::symbols::MAX_NAME;

fuzz_target!(|bytes: &[u8]| {
    let Ok(elf) = Elf::read(bytes) else {
        return;
    };
    if let Some(id) = &elf.build_id {
        assert!((2..=64).contains(&id.len()) && bytes.windows(id.len()).any(|window| window == &**id));
    }
    for offset in [0, 1, 0x1000, bytes.len() as u64, u64::MAX].map(|offset| offset & 0x00ff_ffff) {
        if let Some((index, name)) = elf.address_of(offset).and_then(|address| elf.symbols.find(address)) {
            assert!(index < elf.symbols.len() && (1..=MAX_NAME).contains(&name.len()) && !name.contains(&0));
        }
    }
    // Compressed symbols may be larger than the file, but not than what unpacking stops at.
    assert!(elf.bytes() < 160 << 20);
});
