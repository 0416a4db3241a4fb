//! Panels as Grafana 10 and later read them.

use serde_json::{Value, json};

/// What a dashboard's source variable is called.
pub(super) const DATASOURCE: &str = "${datasource}";

/// A query, what its series are called, and whether it may find nothing on a host where all is well known.
#[derive(Clone)]
pub(super) struct Query {
    pub(super) text: String,
    pub(super) legend: &'static str,
    /// When there is nothing: such a figure exists only with that option, or after such a failure.
    pub(super) only: Option<&'static str>,
}

impl Query {
    pub(super) fn new(text: impl Into<String>, legend: &'static str) -> Self {
        Self { text: text.into(), legend, only: None }
    }

    pub(super) fn only(self, when: &'static str) -> Self {
        Self { only: Some(when), ..self }
    }
}

pub(super) enum Shape {
    /// One figure, with its course behind it.
    Stat,
    /// Lines.
    Lines,
    /// Areas on top of each other.
    Stack,
    /// Rows by labels: a column for each query, named so.
    Table(&'static [&'static str]),
    /// Buckets of a histogram by time.
    Heatmap,
}

pub(super) struct Panel {
    pub(super) title: &'static str,
    /// How to read it.
    pub(super) description: &'static str,
    pub(super) shape: Shape,
    /// Grafana's id of the unit.
    pub(super) unit: &'static str,
    pub(super) queries: Vec<Query>,
    /// From where on it is yellow, and red.
    pub(super) thresholds: Option<(f64, f64)>,
    /// Of 24 columns.
    pub(super) width: u64,
}

impl Panel {
    pub(super) fn stat(
        title: &'static str,
        unit: &'static str,
        query: impl Into<String>,
        description: &'static str,
    ) -> Self {
        let queries = vec![Query::new(query, "")];
        Self { title, description, shape: Shape::Stat, unit, queries, thresholds: None, width: 4 }
    }

    pub(super) fn lines(
        title: &'static str,
        unit: &'static str,
        queries: Vec<Query>,
        description: &'static str,
    ) -> Self {
        Self { title, description, shape: Shape::Lines, unit, queries, thresholds: None, width: 12 }
    }

    pub(super) fn stack(
        title: &'static str,
        unit: &'static str,
        queries: Vec<Query>,
        description: &'static str,
    ) -> Self {
        Self { shape: Shape::Stack, ..Self::lines(title, unit, queries, description) }
    }

    pub(super) fn red_from(self, yellow: f64, red: f64) -> Self {
        Self { thresholds: Some((yellow, red)), ..self }
    }

    pub(super) fn wide(self) -> Self {
        Self { width: 24, ..self }
    }

    pub(super) fn height(&self) -> u64 {
        match self.shape {
            Shape::Stat => 4,
            Shape::Table(_) => 9,
            Shape::Lines | Shape::Stack | Shape::Heatmap => 8,
        }
    }

    pub(super) fn json(&self, id: u64, x: u64, y: u64) -> Value {
        let is_table = matches!(self.shape, Shape::Table(_));
        let targets: Vec<Value> = self
            .queries
            .iter()
            .zip('A'..='Z')
            .map(|(query, letter)| {
                json!({
                    "datasource": { "type": "prometheus", "uid": DATASOURCE },
                    "editorMode": "code",
                    "expr": query.text,
                    "format": match self.shape { Shape::Table(_) => "table", Shape::Heatmap => "heatmap", _ => "time_series" },
                    "instant": is_table,
                    "legendFormat": if query.legend.is_empty() { "__auto" } else { query.legend },
                    "range": !is_table,
                    "refId": letter.to_string(),
                })
            })
            .collect();
        let mut panel = json!({
            "datasource": { "type": "prometheus", "uid": DATASOURCE },
            "description": self.description,
            "fieldConfig": { "defaults": self.defaults(), "overrides": self.overrides() },
            "gridPos": { "h": self.height(), "w": self.width, "x": x, "y": y },
            "id": id,
            "options": self.options(),
            "targets": targets,
            "title": self.title,
            "type": match self.shape {
                Shape::Stat => "stat",
                Shape::Lines | Shape::Stack => "timeseries",
                Shape::Table(_) => "table",
                Shape::Heatmap => "heatmap",
            },
        });
        if let (Shape::Table(columns), Some(panel)) = (&self.shape, panel.as_object_mut()) {
            let names: serde_json::Map<String, Value> = columns
                .iter()
                .zip('A'..='Z')
                .map(|(column, letter)| (format!("Value #{letter}"), json!(name_of(column))))
                .collect();
            panel.insert(
                "transformations".to_owned(),
                json!([
                    { "id": "merge", "options": {} },
                    { "id": "organize", "options": { "excludeByName": { "Time": true }, "indexByName": {}, "renameByName": names } },
                    { "id": "sortBy", "options": { "fields": {}, "sort": [{ "field": columns.first().map_or("", |column| name_of(column)), "desc": true }] } },
                ]),
            );
        }
        panel
    }

    fn defaults(&self) -> Value {
        let steps = match self.thresholds {
            Some((yellow, red)) => json!([
                { "color": "green", "value": null },
                { "color": "yellow", "value": yellow },
                { "color": "red", "value": red },
            ]),
            None => json!([{ "color": "green", "value": null }]),
        };
        let stacked = if matches!(self.shape, Shape::Stack) { "normal" } else { "none" };
        let custom = match self.shape {
            Shape::Lines | Shape::Stack => json!({
                "drawStyle": "line",
                "fillOpacity": if stacked == "normal" { 40 } else { 10 },
                "lineWidth": 1,
                "showPoints": "never",
                "spanNulls": false,
                "stacking": { "group": "A", "mode": stacked },
                "thresholdsStyle": { "mode": if self.thresholds.is_some() { "line" } else { "off" } },
            }),
            Shape::Table(_) => {
                json!({ "align": "auto", "cellOptions": { "type": "auto" }, "filterable": true })
            }
            Shape::Stat | Shape::Heatmap => json!({}),
        };
        let color = match self.shape {
            Shape::Stat => json!({ "mode": "thresholds" }),
            _ => json!({ "mode": "palette-classic" }),
        };
        json!({
            "color": color,
            "custom": custom,
            "min": if matches!(self.shape, Shape::Table(_)) { Value::Null } else { json!(0) },
            "noValue": if matches!(self.shape, Shape::Stat) { json!("none") } else { Value::Null },
            "thresholds": { "mode": "absolute", "steps": steps },
            "unit": self.unit,
        })
    }

    /// A column of a table is in a unit of its own: `name [unit]`.
    fn overrides(&self) -> Value {
        let Shape::Table(columns) = self.shape else { return json!([]) };
        columns
            .iter()
            .map(|column| {
                json!({
                    "matcher": { "id": "byName", "options": name_of(column) },
                    "properties": [{ "id": "unit", "value": unit_of(column) }, { "id": "decimals", "value": 2 }],
                })
            })
            .collect()
    }

    fn options(&self) -> Value {
        match self.shape {
            Shape::Stat => json!({
                "colorMode": if self.thresholds.is_some() { "background" } else { "value" },
                "graphMode": "area",
                "justifyMode": "auto",
                "orientation": "auto",
                "reduceOptions": { "calcs": ["lastNotNull"], "fields": "", "values": false },
                "textMode": "auto",
            }),
            Shape::Lines | Shape::Stack => json!({
                "legend": { "calcs": ["mean", "max"], "displayMode": "table", "placement": "bottom", "showLegend": true },
                "tooltip": { "mode": "multi", "sort": "desc" },
            }),
            Shape::Table(_) => json!({ "cellHeight": "sm", "showHeader": true }),
            Shape::Heatmap => json!({
                "calculate": false,
                "cellGap": 0,
                "color": { "exponent": 0.5, "mode": "scheme", "scale": "exponential", "scheme": "Oranges", "steps": 64 },
                "tooltip": { "show": true },
                "yAxis": { "axisPlacement": "left", "unit": self.unit },
            }),
        }
    }
}

pub(super) fn name_of(column: &str) -> &str {
    column.split(" [").next().unwrap_or(column)
}

fn unit_of(column: &str) -> &str {
    column.split(" [").nth(1).map_or("short", |unit| unit.trim_end_matches(']'))
}
