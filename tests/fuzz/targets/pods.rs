//! Lists of pods of kubelets that lie.

#![no_main]

use libfuzzer_sys::fuzz_target;
use probe_user::entity::kube::{KubeNames, PodList, parse};

fuzz_target!(|bytes: &[u8]| {
    let labels = ["app".to_owned(), "app.kubernetes.io/name".to_owned()];
    let Ok(list) = parse(bytes, None, &labels) else {
        return;
    };
    let PodList { pods, left_out: _ } = &list;
    assert!(pods.len() <= bytes.len());
    let mut uids = Vec::new();
    let mut ids = Vec::new();
    for pod in pods {
        assert!(!pod.uids.is_empty(), "nobody would find it: {pod:?}");
        uids.extend(&pod.uids);
        plain(&pod.names);
        assert!(pod.names.container.is_none(), "{pod:?}");
        for (id, names) in &pod.containers {
            assert!(
                (12..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_hexdigit()),
                "{pod:?}"
            );
            assert!(names.container.is_some(), "{pod:?}");
            plain(names);
            ids.push(id);
        }
    }
    for all in [&mut uids, &mut ids] {
        let before = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), before, "twice");
    }
    // Of a list with pods of any other node, none is taken that says so; what is left is taken as before.
    let ours = parse(bytes, Some("node-7"), &labels).expect("the same list");
    for pod in &ours.pods {
        assert!(pod.names.node.as_deref().is_none_or(|node| node == "node-7"), "{pod:?}");
    }
    assert!(ours.pods.len() <= pods.len() + usize::try_from(list.left_out.twice).unwrap_or(usize::MAX));
});

/// Nothing in names steers a terminal, or is longer than Kubernetes' own.
fn plain(names: &KubeNames) {
    let texts = names.identity().map(|(_, name)| name).chain(names.groups().map(|(_, value)| value));
    for text in texts.chain(names.node.as_deref()) {
        assert!((1..=253).contains(&text.len()), "{names:?}");
        assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)), "{names:?}");
    }
    if let Some((name, tag)) = &names.image {
        assert!(
            name.bytes().chain(tag.iter().flat_map(|tag| tag.bytes())).all(|byte| byte.is_ascii_graphic())
        );
    }
}
