//! What an agent leaves to the next, of any octets: whatever is taken over of it is left again as it was.

#![no_main]

use libfuzzer_sys::fuzz_target;
use probe_user::entity::{Entities, Entity};
use probe_user::handover::{Handover, OwnerState};
use probe_user::kernel::cgroup::TreeLimits;
use probe_user::series::{Limits, Store};

fuzz_target!(|bytes: &[u8]| {
    let _packed = Handover::unpack(bytes);
    let Some(left) = Handover::read(bytes) else { return };
    let again = Handover::unpack(&left.pack().expect("it packs"));
    assert_eq!(again.as_ref(), Some(&left));
    let (first, collected) = go_on(&left.owners, left.collected_unix_ns);
    let (second, _) = go_on(&first, collected);
    assert_eq!(second, first);
    for entry in left.signals.iter().flat_map(|signal| &signal.entries) {
        let _read = entry.read::<u64, [u32; 4]>();
    }
});

/// What becomes of owners that are taken over, when it is left again, in order.
fn go_on(owners: &[OwnerState], collected_unix_ns: u64) -> (Vec<OwnerState>, u64) {
    let limits = Limits { per_metric: 64, per_entity: 16, entities: 8, idle: 60 };
    let mut store = Store::new(limits, u64::MAX);
    for (entity, owner) in Entities::at(None, None, TreeLimits::default()).go_on(owners) {
        store.go_on(&entity, &owner.series, collected_unix_ns);
    }
    for usage in store.usage() {
        assert!(usage.active <= limits.per_metric);
    }
    let mut left = store.leave(Entity::leave);
    for owner in &mut left {
        owner.series.sort_by_key(|series| format!("{series:?}"));
    }
    left.sort_by_key(|owner| format!("{owner:?}"));
    (left, store.collected_unix_ns())
}
