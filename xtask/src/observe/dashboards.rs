//! Dashboards for Grafana 10 and later: one description each, made into the JSON under deploy/grafana.

mod agent;
mod dns;
mod filter;
mod network;
mod panel;
mod syscalls;

use std::{collections::BTreeSet, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use panel::{DATASOURCE, Panel};
use serde_json::{Value, json};

use super::{contract::Contract, promql};
use crate::{process, toolchain::GRAFANA_SCHEMA};

struct Row {
    title: &'static str,
    panels: Vec<Panel>,
}

struct Dashboard {
    uid: &'static str,
    file: &'static str,
    title: &'static str,
    description: &'static str,
    /// Has variables that say whose figures are shown.
    of_workloads: bool,
    rows: Vec<Row>,
}

/// Grafana 10.0's; later ones bring it up to their own as they import.
const SCHEMA: u64 = 38;
const COLUMNS: u64 = 24;

fn all() -> [Dashboard; 4] {
    [network::dashboard(), dns::dashboard(), syscalls::dashboard(), agent::dashboard()]
}

/// Files by path.
pub(super) fn files() -> Result<Vec<(&'static str, String)>> {
    all()
        .iter()
        .map(|dashboard| Ok((dashboard.file, serde_json::to_string_pretty(&dashboard.json())? + "\n")))
        .collect()
}

/// Grafana's own schema knows every field: one that it does not know would be left out without a word.
pub(super) fn round_trip(root: &Path) -> Result<()> {
    let python = super::screens::python(root, "grafana-schema", &GRAFANA_SCHEMA)?;
    let script = root.join("xtask/src/observe/dashboards/round_trip.py");
    process::run(
        Command::new(python).current_dir(root).arg(script).args(all().map(|dashboard| dashboard.file)),
    )
}

/// Where a query stands, and why it may find nothing; for whoever runs them all.
pub(super) fn may_be_empty() -> Value {
    let mut found = Vec::new();
    for dashboard in all() {
        for (panel, id) in dashboard.rows.iter().flat_map(|row| &row.panels).zip(1u64..) {
            for (query, letter) in panel.queries.iter().zip('A'..='Z') {
                if let Some(when) = query.only {
                    found.push(
                        json!({ "uid": dashboard.uid, "panel": id, "ref": letter.to_string(), "only": when }),
                    );
                }
            }
        }
    }
    found.into()
}

/// All queries are right by the contract, and so is what their series are called.
pub(super) fn queries(contract: &Contract) -> Result<usize> {
    let mut count = 0;
    for dashboard in all() {
        let mut titles = BTreeSet::new();
        for panel in dashboard.rows.iter().flat_map(|row| &row.panels) {
            let place = format!("{}: {}", dashboard.title, panel.title);
            ensure!(titles.insert(panel.title), "{place}: twice");
            ensure!(panel.description.ends_with('.'), "{place}: a sentence ends with a full stop");
            for query in &panel.queries {
                let labels =
                    promql::check(&filter::filled(&query.text), contract).with_context(|| place.clone())?;
                for label in query.legend.split("{{").skip(1).filter_map(|rest| rest.split("}}").next()) {
                    ensure!(
                        labels.contains(label),
                        "{place}: a legend tells {label}, which is not there: {labels:?}"
                    );
                }
                count += 1;
            }
        }
        for (name, _, variable) in filter::variables(dashboard.of_workloads) {
            let Some((selector, label)) = variable
                .strip_prefix("label_values(")
                .and_then(|rest| rest.strip_suffix(')')?.rsplit_once(", "))
            else {
                continue;
            };
            let labels = promql::check(&filter::filled(selector), contract)
                .with_context(|| format!("variable {name}"))?;
            ensure!(label == "$by" || labels.contains(label), "variable {name}: no label {label}");
            count += 1;
        }
    }
    Ok(count)
}

impl Dashboard {
    fn json(&self) -> Value {
        let mut panels = Vec::new();
        let (mut id, mut y) = (0, 0);
        for (row, number) in self.rows.iter().zip(100u64..) {
            panels.push(json!({
                "collapsed": false,
                "gridPos": { "h": 1, "w": COLUMNS, "x": 0, "y": y },
                "id": number,
                "panels": [],
                "title": row.title,
                "type": "row",
            }));
            y += 1;
            let (mut x, mut height) = (0, 0);
            for panel in &row.panels {
                if x + panel.width > COLUMNS {
                    (x, y) = (0, y + height);
                    height = 0;
                }
                id += 1;
                panels.push(panel.json(id, x, y));
                x += panel.width;
                height = height.max(panel.height());
            }
            y += height;
        }
        json!({
            "annotations": { "list": [] },
            "description": self.description,
            "editable": true,
            "fiscalYearStartMonth": 0,
            "graphTooltip": 1,
            "id": null,
            "links": [{
                "asDropdown": false,
                "icon": "external link",
                "includeVars": true,
                "keepTime": true,
                "tags": ["probe"],
                "targetBlank": false,
                "title": "probe",
                "type": "dashboards",
            }],
            "panels": panels,
            "refresh": "30s",
            "schemaVersion": SCHEMA,
            "tags": ["probe"],
            "templating": { "list": self.variables() },
            "time": { "from": "now-1h", "to": "now" },
            "timezone": "",
            "title": self.title,
            "uid": self.uid,
            "version": 1,
        })
    }

    fn variables(&self) -> Vec<Value> {
        let source = json!({
            "hide": 0,
            "label": "Data source",
            "name": "datasource",
            "query": "prometheus",
            "refresh": 1,
            "regex": "",
            "type": "datasource",
        });
        let others = filter::variables(self.of_workloads).into_iter().map(|(name, label, query)| {
            if name == "by" {
                let options: Vec<Value> = query
                    .split(", ")
                    .enumerate()
                    .filter_map(|(i, option)| {
                        let (text, value) = option.split_once(" : ")?;
                        Some(json!({ "selected": i == 0, "text": text, "value": value }))
                    })
                    .collect();
                return json!({
                    "current": options.first(),
                    "hide": 0,
                    "includeAll": false,
                    "label": label,
                    "multi": false,
                    "name": name,
                    "options": options,
                    "query": query,
                    "type": "custom",
                });
            }
            json!({
                "allValue": ".*",
                "current": { "selected": true, "text": ["All"], "value": ["$__all"] },
                "datasource": { "type": "prometheus", "uid": DATASOURCE },
                "hide": 0,
                "includeAll": true,
                "label": label,
                "multi": true,
                "name": name,
                "query": { "query": query, "refId": name },
                "refresh": 2,
                "regex": "",
                "sort": 1,
                "type": "query",
            })
        });
        [source].into_iter().chain(others).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_panel_lies_on_another() {
        for dashboard in all() {
            let json = dashboard.json();
            let mut taken = BTreeSet::new();
            for panel in json["panels"].as_array().unwrap() {
                let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
                assert!(at("x") + at("w") <= COLUMNS, "{panel}");
                for x in at("x")..at("x") + at("w") {
                    for y in at("y")..at("y") + at("h") {
                        assert!(taken.insert((x, y)), "{}: {}", dashboard.title, panel["title"]);
                    }
                }
            }
        }
    }

    #[test]
    fn ids_are_unique() {
        for dashboard in all() {
            let json = dashboard.json();
            let ids: Vec<u64> = json["panels"]
                .as_array()
                .unwrap()
                .iter()
                .map(|panel| panel["id"].as_u64().unwrap())
                .collect();
            assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
        }
    }
}
