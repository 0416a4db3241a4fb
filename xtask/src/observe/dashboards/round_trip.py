"""Reads dashboards (paths as arguments) as Grafana's own schema has them, and writes them again: what it does not know, gets lost."""

import json
import sys

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard


def lost(there, back, path=""):
    if isinstance(there, dict) and isinstance(back, dict):
        for key, value in there.items():
            if key in back:
                yield from lost(value, back[key], f"{path}.{key}")
            elif value not in (None, [], {}, "", False):
                yield f"{path}.{key}"
    elif isinstance(there, list) and isinstance(back, list):
        if len(there) != len(back):
            yield f"{path}: {len(there)} became {len(back)}"
        for one, other in zip(there, back):
            yield from lost(one, other, f"{path}[]")
    elif there != back:
        yield f"{path}: {there!r} became {back!r}"


register_default_plugins()
bad = []
for file in sys.argv[1:]:
    with open(file) as text:
        dashboard = json.load(text)
    back = json.loads(json.dumps(Dashboard.from_json(dashboard), cls=JSONEncoder))
    bad += [f"{file}: {what}" for what in sorted(set(lost(dashboard, back)))]
for line in bad:
    print(line)
sys.exit(bool(bad))
