//! Files that are none, broken ones, small ones, and changed ones.

use super::*;
use proptest::prelude::*;

/// A file with a table of symbols of that many bytes, which are to be zeros, and names as large.
pub(in crate::stacks) fn of_zeros(bytes: u64) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend([3, 0, 62, 0, 1, 0, 0, 0]);
    for number in [0u64, 0, 64] {
        file.extend(number.to_le_bytes());
    }
    for number in [0u32, 64 | 56 << 16, 64 << 16, 3] {
        file.extend(number.to_le_bytes());
    }
    for (kind, link) in [(0u32, 0u32), (SHT_SYMTAB, 2), (3, 0)] {
        for number in [0, kind] {
            file.extend(number.to_le_bytes());
        }
        for number in [0, 0, 8_192, bytes / 24 * 24] {
            file.extend(number.to_le_bytes());
        }
        for number in [link, 0] {
            file.extend(number.to_le_bytes());
        }
        file.extend([0; 16]);
    }
    file
}

#[test]
fn what_is_no_file_of_ours() {
    let zeros = of_zeros(2_400);
    let with = |at: usize, byte: u8| {
        let mut file = zeros.clone();
        file[at] = byte;
        file.resize(16_384, 0);
        file
    };
    let fine = Elf::read(&with(0, 0x7f)[..]).unwrap();
    assert!(fine.symbols.is_empty() && !fine.stripped && fine.build_id.is_none());
    let cases: &[(&str, Vec<u8>, &str)] = &[
        ("empty", vec![], "no ELF file"),
        ("a script", b"#!/bin/sh\n".repeat(9), "no ELF file"),
        ("other byte order", with(5, 2), "an ELF file of another byte order"),
        ("of 128 bits", with(4, 3), "a broken ELF file: neither 32 nor 64 bits"),
        ("odd headers", with(58, 63), "a broken ELF file: headers of another size"),
        ("many headers", with(61, 0xff), "more functions than are kept"),
        ("headers beyond", with(46, 1), "a broken ELF file: it ends too early"),
        ("names nowhere", with(64 + 64 + 40, 9), "a broken ELF file: no names for its symbols"),
        ("many symbols", with(64 + 64 + 36, 1), "more functions than are kept"),
        ("symbols beyond", with(64 + 64 + 34, 1), "a broken ELF file: it ends too early"),
    ];
    for (what, bytes, want) in cases {
        let error = Elf::read(&bytes[..]).expect_err(what);
        assert_eq!(error.to_string(), *want, "{what}");
    }
}

/// The seeds of the fuzz target: what is in them, and where, is nm's word.
#[test]
fn small_files() {
    type Case = (&'static str, bool, &'static [(u64, Option<&'static str>)]);
    let cases: &[Case] = &[
        ("program", false, &[(0x241, Some("own")), (0x245, Some("lent")), (0x249, Some("_start"))]),
        ("library", false, &[(0x23f, None), (0x240, Some("own")), (0x247, Some("lent"))]),
        ("stripped", true, &[(0x240, None), (0x244, Some("lent"))]),
        ("compressed", false, &[(0x240, Some("own")), (0x244, Some("lent"))]),
        ("debug", false, &[(0x240, Some("own")), (0x244, Some("lent"))]),
        ("program_32", false, &[(0x0804_80b8, Some("own")), (0x0804_80bc, Some("lent"))]),
    ];
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus/elf");
    for (name, stripped, functions) in cases {
        let elf = Elf::read(&std::fs::read(corpus.join(name)).unwrap()[..]).unwrap();
        assert_eq!(elf.stripped, *stripped, "{name}");
        assert_eq!(elf.build_id.as_ref().map_or(0, |id| id.len()), 20, "{name}");
        for (address, want) in *functions {
            let found = elf.symbols.find(*address).map(|(_, name)| std::str::from_utf8(name).unwrap());
            assert_eq!(found, *want, "{name} {address:#x}");
        }
    }
    let wide = Elf::read(&std::fs::read(corpus.join("program_32")).unwrap()[..]).unwrap();
    assert_eq!((wide.address_of(0xb8), wide.address_of(1 << 20)), (Some(0x0804_80b8), None));
}

#[test]
fn build_ids() {
    let note = |kind: u32, name: &[u8], content: &[u8]| {
        let mut note = Vec::new();
        for number in [name.len() as u32, content.len() as u32, kind] {
            note.extend(number.to_ne_bytes());
        }
        for part in [name, content] {
            note.extend(part);
            note.resize(note.len().next_multiple_of(4), 0);
        }
        note
    };
    let abi = note(1, b"GNU\0", &[0; 16]);
    let id = note(3, b"GNU\0", &[1, 2, 3, 4, 5]);
    type Case<'a> = (&'a str, Vec<u8>, Option<&'a [u8]>);
    let cases: &[Case<'_>] = &[
        ("none", abi.clone(), None),
        ("alone", id.clone(), Some(&[1, 2, 3, 4, 5])),
        ("after another", [abi.clone(), id.clone()].concat(), Some(&[1, 2, 3, 4, 5])),
        ("somebody else's", [note(3, b"Go\0\0", b"text"), id.clone()].concat(), Some(&[1, 2, 3, 4, 5])),
        ("too short", note(3, b"GNU\0", &[1]), None),
        ("too long", note(3, b"GNU\0", &[1; 65]), None),
        ("cut off", id[..18].to_vec(), None),
        ("lengths beyond", [&u32::MAX.to_ne_bytes()[..], &[0xff; 12]].concat(), None),
        ("nothing", vec![], None),
    ];
    for (what, notes, want) in cases {
        assert_eq!(build_id(notes).as_deref(), *want, "{what}");
    }
}

/// This test's own file, a megabyte of it or so, with bytes changed: headers, tables and names.
fn sample() -> Vec<u8> {
    let mut file = std::fs::read("/proc/self/exe").unwrap();
    let elf = Header::read(&file[..]).unwrap();
    let sections = elf.sections(&file[..]).unwrap();
    // The tables are at the end: what lies between is not looked at.
    let dynsym = sections.iter().find(|section| section.kind == SHT_DYNSYM).unwrap();
    let strings = &sections[dynsym.link as usize];
    let keep = (dynsym.offset + dynsym.size).max(strings.offset + strings.size) as usize;
    let headers = file[elf.sections.0 as usize..].to_vec();
    file.truncate(keep.next_multiple_of(8));
    let at = (file.len() as u64).to_le_bytes();
    file[40..48].copy_from_slice(&at);
    file.extend(headers);
    file
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn changed_files_do_no_harm(
        changes in proptest::collection::vec((0usize..1 << 20, any::<u8>()), 1..40),
        headers in proptest::collection::vec((0usize..4_096, any::<u8>()), 0..10),
        cut in proptest::option::of(0usize..1 << 20),
        address in any::<u64>(),
    ) {
        static SAMPLE: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(sample);
        let mut file = SAMPLE.clone();
        let sections = file.len() - Header::read(&file[..]).map_or(0, |header| usize::from(header.sections.1) * 64);
        for (at, byte) in changes {
            let at = at % file.len();
            file[at] = byte;
        }
        for (at, byte) in headers {
            // Where it hurts: the beginning, and the section headers.
            let at = if at % 2 == 0 { at / 2 % 64 } else { sections + at / 2 };
            let at = at % file.len();
            file[at] = byte;
        }
        file.truncate(cut.unwrap_or(usize::MAX));
        if let Ok(elf) = Elf::read(&file[..]) {
            let _ = elf.address_of(address).and_then(|address| elf.symbols.find(address).map(|found| found.0));
            prop_assert!(elf.bytes() < 2 * file.len() + 4_096);
        }
    }
}
