//! deploy/kubernetes: what the chart renders to, as plain files for kustomize. A folder is written, or compared, whole; its
//! kustomization.yaml and namespace.yaml are by hand.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::{
    CHART, Deploy, all_of,
    chart::{name_of, text},
    tools,
};
use crate::{check::Outcome, process::say};

/// Folder, and what is set there.
const FOLDERS: [(&str, &[&str]); 2] =
    [("deploy/kubernetes", &[]), ("deploy/kubernetes/least-privilege", &["securityProfile=least-privilege"])];
/// For every folder. The image is one that `images:` of a kustomization replaces.
const SET: [&str; 2] = ["image.repository=probe", "tests.doctor=false"];
const NAMESPACE: &str = "probe";
/// Whose rights to the kubelet come with 1.33; older clusters are told of in deploy/kubernetes/README.md.
const KUBERNETES: &str = "1.37";
/// By hand.
const OWN: [&str; 3] = ["kustomization.yaml", "namespace.yaml", "README.md"];
const HEAD: &str =
    "# Written by `cargo xtask deploy-check --write` from deploy/helm/probe; not to be edited.\n";

pub(super) fn check(deploy: &Deploy) -> Result<Outcome> {
    let mut faults = Vec::new();
    for (folder, set) in FOLDERS {
        let path = deploy.root.join(folder);
        let rendered = rendered(deploy, set)?;
        if deploy.write {
            write(&path, &rendered)?;
        }
        let found = found(&path)?;
        let names: BTreeSet<&String> = rendered.keys().chain(found.keys()).collect();
        for name in names {
            match (rendered.get(name), found.get(name)) {
                (Some(wanted), Some(there)) if wanted == there => {}
                (Some(_), Some(_)) => {
                    faults.push(format!("{folder}/{name} is stale: cargo xtask deploy-check --write"))
                }
                (Some(_), None) => {
                    faults.push(format!("{folder}/{name} is missing: cargo xtask deploy-check --write"))
                }
                (None, _) => {
                    faults.push(format!("{folder}/{name} is nothing that the chart renders: remove it"))
                }
            }
        }
        faults.extend(kustomized(deploy, folder, &rendered)?);
    }
    faults.extend(documented(deploy)?);
    all_of(faults)?;
    Ok(Outcome::Passed)
}

/// File name to text.
fn rendered(deploy: &Deploy, set: &[&str]) -> Result<BTreeMap<String, String>> {
    let mut helm = deploy.tools.helm();
    helm.args(["template", "probe"]).arg(deploy.root.join(CHART));
    helm.args(["--namespace", NAMESPACE, "--kube-version", KUBERNETES]);
    for set in SET.iter().chain(set) {
        helm.args(["--set", set]);
    }
    let mut files = BTreeMap::<String, String>::new();
    for document in tools::printed(&mut helm)?.split("---\n").filter(|document| !document.trim().is_empty()) {
        let (source, document) = document.split_once('\n').context("an empty document")?;
        let (_, name) = source.rsplit_once('/').with_context(|| format!("{source} names no template"))?;
        let file = files.entry(name.to_owned()).or_insert_with(|| HEAD.to_owned());
        if file.len() > HEAD.len() {
            file.push_str("---\n");
        }
        // Of helm's releases.
        let helms =
            |line: &&str| !line.contains("helm.sh/chart:") && !line.contains("app.kubernetes.io/managed-by:");
        for line in document.trim_end().lines().filter(helms) {
            file.push_str(line.trim_end());
            file.push('\n');
        }
    }
    Ok(files)
}

fn write(path: &Path, rendered: &BTreeMap<String, String>) -> Result<()> {
    fs::create_dir_all(path)?;
    for name in found(path)?.keys().filter(|name| !rendered.contains_key(*name)) {
        fs::remove_file(path.join(name))?;
        say(format_args!("removed: {}", path.join(name).display()));
    }
    for (name, text) in rendered {
        let file = path.join(name);
        if fs::read_to_string(&file).is_ok_and(|there| there == *text) {
            continue;
        }
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        say(format_args!("written: {}", file.display()));
    }
    Ok(())
}

fn found(path: &Path) -> Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_file() && !OWN.contains(&name.as_str()) {
            files.insert(name, fs::read_to_string(entry.path())?);
        }
    }
    Ok(files)
}

/// What `kubectl apply -k` would apply is what was rendered, in a namespace that admits it, with the image that was put in its place.
fn kustomized(deploy: &Deploy, folder: &str, rendered: &BTreeMap<String, String>) -> Result<Vec<String>> {
    // As whoever deploys it does: over the folder, with the name of an image.
    let overlay = deploy.scratch.join(folder);
    fs::create_dir_all(&overlay)?;
    let up = "../".repeat(folder.split('/').count() + 2);
    let images = "images: [{name: probe, newName: registry.example.com/observability/probe}]";
    fs::write(overlay.join("kustomization.yaml"), format!("resources: [{up}{folder}]\n{images}\n"))?;
    let said = tools::printed(deploy.tools.kubectl().arg("kustomize").arg(&overlay))?;
    let built = deploy.tools.documents(&said)?;
    let mut wanted = Vec::new();
    for text in rendered.values() {
        wanted.extend(deploy.tools.documents(text)?);
    }
    let mut faults = Vec::new();
    let mut missing = |what: &str, is_there: bool| {
        if !is_there {
            faults.push(format!("kubectl kustomize {folder}: {what}"));
        }
    };
    missing("as many objects as files have, and the namespace", built.len() == wanted.len() + 1);
    let namespace = built.iter().find(|document| text(document, "/kind") == "Namespace");
    let level =
        namespace.map(|document| text(document, "/metadata/labels/pod-security.kubernetes.io~1enforce"));
    missing("a namespace that admits hostPID", level == Some("privileged"));
    for mut document in wanted {
        let Some(there) = built.iter().find(|there| name_of(there) == name_of(&document)) else {
            missing(&format!("{} is missing", name_of(&document)), false);
            continue;
        };
        let image = "/spec/template/spec/containers/0/image";
        if let Some(image) = document.pointer_mut(image) {
            // Put there by `images:`.
            missing(
                &format!("the image is {image}"),
                image.as_str().is_some_and(|image| image.starts_with("probe:")),
            );
            *image = json!("registry.example.com/observability/probe:0.1.0");
        }
        missing(&format!("{} differs from what the chart renders", name_of(&document)), *there == document);
    }
    Ok(faults)
}

/// The overlay in the README is one that works.
fn documented(deploy: &Deploy) -> Result<Vec<String>> {
    let page = fs::read_to_string(deploy.root.join("deploy/kubernetes/README.md"))?;
    let block = page.split_once("```yaml\n").and_then(|(_, rest)| rest.split_once("```"));
    let (block, _) = block.context("deploy/kubernetes/README.md has no YAML")?;
    let overlay = deploy.scratch.join("documented");
    fs::create_dir_all(&overlay)?;
    let block =
        block.replace("path/to/", "../../../").replace("sha256:…", &format!("sha256:{}", "a".repeat(64)));
    fs::write(overlay.join("kustomization.yaml"), block)?;
    fs::write(overlay.join("probe.yaml"), "interval: 30s\n")?;
    let built = tools::printed(deploy.tools.kubectl().arg("kustomize").arg(&overlay))?;
    // The ConfigMap, and the volume that follows its name; the image; the variable.
    let wanted = [("name: probe-config-", 2), ("probe@sha256:aaaa", 1), ("value: http://$(NODE_IP):4317", 1)];
    let wrong = wanted.iter().filter(|(text, times)| built.matches(text).count() != *times);
    Ok(wrong
        .map(|(text, times)| {
            format!("the overlay of deploy/kubernetes/README.md has not {times} times `{text}`")
        })
        .collect())
}
