//! Type information of any bytes: read it, resolve the whole table of kernel fields in it, list what is listed.

#![no_main]

use std::collections::HashSet;

use libfuzzer_sys::fuzz_target;
use probe_common::fields::{FIELDS, FieldKind, FieldSlot};
use probe_user::kernel::btf::KernelBtf;
use probe_user::kernel::fields::resolve;

fuzz_target!(|bytes: &[u8]| {
    let btf = match KernelBtf::from_bytes(bytes.to_vec()) {
        Ok(btf) => btf,
        Err(error) => {
            assert!(error.to_string().contains("--btf"), "every refusal names the way out: {error}");
            return;
        }
    };
    let resolved = resolve(&btf, FIELDS);
    assert_eq!(resolved.slots.len(), FIELDS.len());
    let absent: HashSet<&str> = resolved.absent.iter().map(|field| field.path).collect();
    for (spec, slot) in FIELDS.iter().zip(&resolved.slots) {
        if absent.contains(spec.path) {
            assert_eq!(*slot, FieldSlot::default(), "{} is absent and somewhere", spec.path);
            continue;
        }
        assert_eq!((slot.present, slot._pad), (1, 0), "{}", spec.path);
        match spec.kind {
            FieldKind::Member => {
                let bits = u32::from(slot.shift) + u32::from(slot.width);
                assert!(bits <= u32::from(spec.size) * 8, "{}: {slot:?} is beyond what is loaded", spec.path);
                assert!(slot.width != 0 || slot.shift == 0, "{}: {slot:?}", spec.path);
            }
            FieldKind::Pointer => {
                assert!((slot.shift, slot.width) == (0, 0) && spec.size == 8, "{}: {slot:?}", spec.path);
            }
            // A program's context holds no more than twelve arguments (MAX_BPF_FUNC_ARGS).
            FieldKind::TraceArg => assert!(slot.offset < 16 && slot.width == 0, "{}: {slot:?}", spec.path),
        }
    }
    for field in &resolved.absent {
        assert!(!field.reason.to_string().is_empty());
    }
    for enumeration in ["sk_rst_reason", "skb_drop_reason"] {
        let variants = btf.enum_variants(enumeration);
        // A name may be given to many variants; what is kept may not be many times the file.
        assert!(variants.len() <= 4_096 && variants.iter().all(|variant| variant.name.len() <= 3 * 512));
        if let Some(first) = variants.first().filter(|first| !first.name.contains('\u{fffd}')) {
            assert!(btf.enum_value(enumeration, &first.name).is_some(), "{first:?}");
        }
    }
    let _ = btf.tracepoint_exists("tcp_retransmit_skb");

    // What lies behind the sections is nobody's business.
    let mut longer = bytes.to_vec();
    longer.extend_from_slice(&[0xff; 16]);
    let again = KernelBtf::from_bytes(longer).map(|btf| resolve(&btf, FIELDS).slots);
    assert_eq!(again.ok(), Some(resolved.slots));
});
