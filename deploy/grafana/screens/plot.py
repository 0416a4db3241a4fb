"""Runs every query of the dashboards against a Prometheus, and draws the panels in the dashboards' own layout.

`plot.py SPEC`, which `cargo xtask observe --screens URL` writes: JSON with url, dashboards (files), may_be_empty (uid, panel, ref, only),
out (directory). A query that Prometheus refuses, or that finds nothing and may not, fails it; pictures are made all the same.
"""

import io
import json
import math
import sys
import time
import urllib.parse
import urllib.request

import matplotlib

matplotlib.use("Agg")
import matplotlib.dates as dates
import matplotlib.pyplot as plt
from datetime import datetime, timezone
from PIL import Image
from matplotlib.ticker import FuncFormatter, MaxNLocator

BACK, CARD, LINE, TEXT, FAINT = "#111217", "#181b1f", "#2c3235", "#d8d9da", "#8e9297"
COLOURS = ["#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#b877d9", "#f2495c", "#8ab8ff", "#96d98d", "#ffcb7d", "#ca95e5"]
LIGHTS = {"green": "#37872d", "yellow": "#c4a000", "red": "#c4162a"}
CELL_W, CELL_H, DPI = 0.62, 0.42, 84
MINUTES = 15
STEP = 5


class Prometheus:
    def __init__(self, url):
        self.url = url.rstrip("/")

    def get(self, path, **parameters):
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise ValueError(json.load(error).get("error", str(error)))


def fill(query, scrape):
    # As Grafana does: four scrapes, or a step and a scrape.
    interval = max(4 * scrape, STEP + scrape)
    for name, value in [
        ("$__rate_interval", f"{interval}s"),
        ("$__range", f"{MINUTES * 60}s"),
        ("$by", "k8s_deployment_name"),
        ("$cluster", ".*"),
        ("$node", ".*"),
        ("$namespace", ".*"),
        ("$workload", ".*"),
    ]:
        query = query.replace(name, value)
    return query


def show(value, unit):
    if value is None or math.isnan(value):
        return "–"
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "bytes":
        for word, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
            if abs(value) >= size:
                return f"{value / size:.3g} {word}"
        return f"{value:.0f} B"
    if unit == "s":
        for word, size in (("s", 1), ("ms", 1e-3), ("µs", 1e-6)):
            if abs(value) >= size:
                return f"{value / size:.3g} {word}"
        return "0 s" if value == 0 else f"{value * 1e9:.3g} ns"
    for word, size in (("M", 1e6), ("K", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {word}{'/s' if unit == 'cps' else ''}"
    return f"{value:.3g}{'/s' if unit == 'cps' else ''}"


def legend(target, labels):
    text = target["legendFormat"]
    if text == "__auto":
        return ", ".join(value for key, value in labels.items() if key != "__name__") or target["refId"]
    for key, value in labels.items():
        text = text.replace("{{" + key + "}}", value)
    while "{{" in text:
        text = text[: text.index("{{")] + text[text.index("}}") + 2 :]
    return " ".join(text.split()) or "(none)"


def points(series):
    times = [datetime.fromtimestamp(at, timezone.utc) for at, _ in series["values"]]
    return times, [float(value) for _, value in series["values"]]


def card(figure, panel, top, height):
    grid = panel["gridPos"]
    pad = 0.06
    x, w = grid["x"] * CELL_W + pad, grid["w"] * CELL_W - 2 * pad
    y, h = height - (grid["y"] - top + grid["h"]) * CELL_H + pad, grid["h"] * CELL_H - 2 * pad
    width = 24 * CELL_W
    box = [x / width, y / height, w / width, h / height]
    figure.add_artist(plt.Rectangle((box[0], box[1]), box[2], box[3], transform=figure.transFigure, facecolor=CARD, edgecolor=LINE, linewidth=0.6, zorder=-1))
    figure.text((x + 0.1) / width, (y + h - 0.21) / height, panel["title"], color=TEXT, fontsize=8.5, weight="bold")

    def axes(left, bottom, right, up):
        return figure.add_axes([(x + left) / width, (y + bottom) / height, (w - left - right) / width, (h - bottom - up) / height], facecolor=CARD)

    return axes


def stat(panel, found, axes):
    unit = panel["fieldConfig"]["defaults"]["unit"]
    area = axes(0, 0, 0, 0.3)
    area.axis("off")
    series = [one for _, some in found for one in some]
    value = points(series[0])[1][-1] if series else None
    colour = TEXT
    for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]:
        if value is not None and (step["value"] is None or value >= step["value"]):
            colour = {"green": "#73bf69", "yellow": "#f2cc0c", "red": "#f2495c"}[step["color"]]
    if series:
        times, values = points(series[0])
        area.fill_between(times, values, color=colour, alpha=0.18, linewidth=0)
        top = max(max(values), 1e-12)
        area.set_ylim(0, top * 2.2)
        area.margins(x=0)
    area.text(0.5, 0.55, "none" if value is None else show(value, unit), color=colour, fontsize=19, weight="bold", ha="center", va="center", transform=area.transAxes)


def lines(panel, found, axes, stacked):
    unit = panel["fieldConfig"]["defaults"]["unit"]
    rows = []
    for target, some in found:
        for series in some:
            times, values = points(series)
            values = [0.0 if math.isnan(value) else value for value in values]
            rows.append((legend(target, series["metric"]), times, values))
    rows.sort(key=lambda row: -max(row[2]))
    area = axes(0.62, 0.98, 0.15, 0.42)
    for side in ("top", "right", "left", "bottom"):
        area.spines[side].set_visible(False)
    area.grid(color=LINE, linewidth=0.5)
    area.tick_params(colors=FAINT, labelsize=7, length=0)
    area.yaxis.set_major_locator(MaxNLocator(4))
    area.yaxis.set_major_formatter(FuncFormatter(lambda value, _: show(value, unit)))
    area.xaxis.set_major_formatter(dates.DateFormatter("%H:%M"))
    if not rows:
        area.text(0.5, 0.5, "no data", color=FAINT, ha="center", transform=area.transAxes, fontsize=9)
        return
    if stacked:
        every = sorted({at for _, times, _ in rows for at in times})
        by_time = [dict(zip(times, values)) for _, times, values in rows]
        area.stackplot(every, *[[one.get(at, 0.0) for at in every] for one in by_time], colors=COLOURS, alpha=0.55, linewidth=0)
    else:
        for (_, times, values), colour in zip(rows, COLOURS * 4):
            area.plot(times, values, color=colour, linewidth=1.1)
        highest = max(max(values) for _, _, values in rows)
        for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]:
            if step["value"] and step["value"] < highest * 1.1:
                area.axhline(step["value"], color={"yellow": "#f2cc0c", "red": "#f2495c"}[step["color"]], linewidth=0.7, linestyle="--")
    area.set_ylim(bottom=0)
    area.margins(x=0)
    for i, ((name, _, values), colour) in enumerate(zip(rows[:6], COLOURS)):
        column, row = i % 2, i // 2
        text = f"{name[:44]}  {show(max(values), unit)}"
        area.text(column * 0.52, -0.22 - row * 0.11, "■", color=colour, fontsize=7, transform=area.transAxes)
        area.text(column * 0.52 + 0.022, -0.22 - row * 0.11, text, color=FAINT, fontsize=7, transform=area.transAxes)


def heat(panel, found, axes):
    buckets = {}
    for _, some in found:
        for series in some:
            buckets[float(series["metric"]["le"])] = dict((at, float(value)) for at, value in series["values"])
    area = axes(0.7, 0.35, 0.15, 0.42)
    area.tick_params(colors=FAINT, labelsize=7, length=0)
    for side in area.spines.values():
        side.set_visible(False)
    bounds = sorted(bound for bound in buckets if 1e-5 <= bound < 16)
    times = sorted({at for bucket in buckets.values() for at in bucket})
    if not times:
        return
    cells, below = [], {}
    for bound in bounds:
        cells.append([max(0, buckets[bound].get(at, 0) - below.get(at, 0)) ** 0.5 for at in times])
        below = buckets[bound]
    area.imshow(cells, aspect="auto", origin="lower", cmap="inferno", interpolation="nearest")
    marks = range(0, len(bounds), 3)
    area.set_yticks(list(marks), [show(bounds[i], "s") for i in marks])
    marks = range(0, len(times), max(1, len(times) // 6))
    area.set_xticks(list(marks), [datetime.fromtimestamp(times[i], timezone.utc).strftime("%H:%M") for i in marks])


def table(panel, found, axes):
    names = panel["transformations"][1]["options"]["renameByName"]
    units = {o["matcher"]["options"]: o["properties"][0]["value"] for o in panel["fieldConfig"]["overrides"]}
    columns = [names[f"Value #{target['refId']}"] for target, _ in found]
    rows, keys = {}, []
    for (target, some), column in zip(found, columns):
        for series in some:
            labels = {key: value for key, value in series["metric"].items() if key != "__name__"}
            keys += [key for key in labels if key not in keys]
            rows.setdefault(tuple(sorted(labels.items())), {})[column] = float(series["value"][1])
    ranked = sorted(rows.items(), key=lambda row: -row[1].get(columns[0], -1))[:10]
    area = axes(0.15, 0.1, 0.15, 0.4)
    area.axis("off")
    order = {"cluster": 0, "k8s_namespace_name": 1, "workload": 2, "job": 1, "node": 3, "instance": 3}
    keys.sort(key=lambda key: order.get(key, 9))
    head = keys + columns
    for i, name in enumerate(head):
        area.text(i / len(head), 1 - 0.5 / 11, name, color="#6e9fff", fontsize=8, transform=area.transAxes, va="center")
    for row, (labels, values) in enumerate(ranked, 1):
        labels = dict(labels)
        cells = [labels.get(key, "") for key in keys] + [show(values.get(column), units[column]) for column in columns]
        for i, cell in enumerate(cells):
            area.text(i / len(head), 1 - (row + 0.5) / 11, cell[:26], color=TEXT, fontsize=8, transform=area.transAxes, va="center")


def main():
    spec = json.load(open(sys.argv[1]))
    prometheus = Prometheus(spec["url"])
    excused = {(one["uid"], one["panel"], one["ref"]): one["only"] for one in spec["may_be_empty"]}
    end = spec.get("end") or time.time()
    targets = prometheus.get("query", query="count_over_time(up[1m])", time=end)["result"]
    scrape = max(1, round(60 / max(float(one["value"][1]) for one in targets)))
    bad, ran, empty = [], 0, []
    for file in spec["dashboards"]:
        dashboard = json.load(open(file))
        answers = {}
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                place = (dashboard["uid"], panel["id"], target["refId"])
                query = fill(target["expr"], scrape)
                ran += 1
                try:
                    if target["instant"]:
                        result = prometheus.get("query", query=query, time=end)["result"]
                    else:
                        result = prometheus.get("query_range", query=query, start=end - MINUTES * 60, end=end, step=STEP)["result"]
                except ValueError as error:
                    bad.append(f"{panel['title']}: {error}: {query}")
                    result = []
                if not result and place in excused:
                    empty.append(f"{dashboard['title']}: {panel['title']} ({excused[place]})")
                elif not result:
                    bad.append(f"{dashboard['title']}: {panel['title']}: nothing found: {query}")
                answers[panel["id"], target["refId"]] = result
        draw(dashboard, answers, spec["out"])
    print(f"{ran} queries, {len(bad)} refused or empty")
    for line in empty:
        print(f"empty, and may be: {line}")
    for line in bad:
        print(f"error: {line}")
    sys.exit(bool(bad))


def draw(dashboard, answers, out):
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    # The first screen and the first row of "How?": what fits a page.
    end = min(max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels), 32)
    shown = [panel for panel in dashboard["panels"] if panel["gridPos"]["y"] + panel["gridPos"]["h"] <= end]
    while shown[-1]["type"] == "row":
        shown.pop()
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in shown)
    height = (rows + 1) * CELL_H
    figure = plt.figure(figsize=(24 * CELL_W, height), facecolor=BACK)
    figure.text(0.008, 1 - 0.28 / height, dashboard["title"], color=TEXT, fontsize=13, weight="bold")
    for panel in shown:
        if panel["type"] == "row":
            y = height - (panel["gridPos"]["y"] + 1 + 0.65) * CELL_H
            figure.text(0.008, y / height, panel["title"], color=TEXT, fontsize=10)
            continue
        axes = card(figure, panel, -1, height)
        found = [(target, answers[panel["id"], target["refId"]]) for target in panel["targets"]]
        kind = panel["type"]
        if kind == "stat":
            stat(panel, found, axes)
        elif kind == "table":
            table(panel, found, axes)
        elif kind == "heatmap":
            heat(panel, found, axes)
        else:
            lines(panel, found, axes, panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] == "normal")
    name = dashboard["uid"].removeprefix("probe-")
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DPI, facecolor=BACK)
    plt.close(figure)
    # Few colours: a picture of a hundred kilobytes at most.
    Image.open(drawn).convert("RGB").quantize(160).save(f"{out}/{name}.png", optimize=True)


main()
