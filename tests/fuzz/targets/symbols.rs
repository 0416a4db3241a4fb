//! What the kernel and just-in-time compilers write of their functions, where processes have their code, and names of functions.

#![no_main]

use libfuzzer_sys::fuzz_target;
use probe_user::stacks::symbols::{MAX_NAME, Symbols};
use probe_user::stacks::{kernel, maps, names, perf_map};

fuzz_target!(|bytes: &[u8]| {
    if let Some(symbols) = kernel::parse(bytes).expect("reading memory does not fail") {
        assert!(!symbols.is_empty());
        look(&symbols, bytes);
    }
    look(&perf_map::parse(bytes), bytes);

    let mappings = maps::parse(bytes).expect("reading memory does not fail");
    let lines = bytes.split(|&byte| byte == b'\n').count();
    assert!(
        mappings.len() <= lines.min(maps::MAX_MAPPINGS) && mappings.is_sorted_by_key(|mapping| mapping.start)
    );
    for mapping in &mappings {
        assert!(mapping.start < mapping.end);
        assert!(maps::find(&mappings, mapping.start).is_some_and(|(_, found)| found.start == mapping.start));
    }

    for name in [bytes, &[b"_Z", bytes].concat(), &[b"_R", bytes].concat(), &[b"_ZN", bytes].concat()] {
        let name = name.get(..MAX_NAME).unwrap_or(name);
        assert!(names::readable(name).len() <= names::MAX_SHOWN);
    }
});

fn look(symbols: &Symbols, bytes: &[u8]) {
    assert!(symbols.len() <= bytes.split(|&byte| byte == b'\n').count());
    for address in [0, 1, 0xffff_ffff_8100_0000, u64::MAX] {
        if let Some((index, name)) = symbols.find(address) {
            assert!(
                index < symbols.len()
                    && name.len() <= MAX_NAME
                    && bytes.windows(name.len().max(1)).any(|window| window == name)
            );
        }
    }
}
