"""The JSON schema of a campaign, for editors: `python -m satm.workflow.schema` writes it."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from satm.config import FIGURES, TABLES, Campaign, Options
from satm.methods import METHODS
from satm.networks import NETWORKS
from satm.version import CHECKOUT

SCHEMA = CHECKOUT / "workflow" / "schemas" / "campaign.schema.json"
"""Path of the schema in a checkout; it is not in git, so that options are defined in one place only."""

HERE = Path("campaign.schema.json")
"""Path of the schema without a checkout."""


class _Untitled(GenerateJsonSchema):
    """Omits titles, which repeat the names of options."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def build() -> dict[str, Any]:
    """Return the schema of a campaign file, draft 2020-12.

    Under `$defs`, `method-NAME` and `network-NAME` hold the options of each registered method and network.
    """
    schema = Campaign.model_json_schema(schema_generator=_Untitled)
    defs, properties = schema["$defs"], schema["properties"]
    for kind, registry in (("method", METHODS), ("network", NETWORKS)):
        for name, entry in registry.items():
            _define(defs, f"{kind}-{name}", entry.options, {kind: {"const": name}})
        known = {name: {"$ref": f"#/$defs/{kind}-{name}"} for name in registry}
        other = {"type": "object", "required": [kind], "anyOf": list(known.values())}  # a name that the user chose
        properties[f"{kind}s"] |= {"properties": known, "additionalProperties": other}
    for section, kinds, default in (("tables", TABLES, "accuracy"), ("figures", FIGURES, "")):
        for kind, options in kinds.items():
            required = {name for name, field in options.model_fields.items() if field.is_required()} - {"kind"}
            _define(defs, f"{section}-{kind}", options, {"kind": {"const": kind}})
            defs[f"{section}-{kind}"]["required"] = sorted(required if kind == default else required | {"kind"})
        entries = [{"$ref": f"#/$defs/{section}-{kind}"} for kind in kinds]
        properties[section]["additionalProperties"] = {"oneOf": entries}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _define(defs: dict[str, Any], name: str, model: type[Options], fixed: Mapping[str, Any]) -> None:
    """Define an entry of a campaign with exactly the options of a class."""
    schema = model.model_json_schema(schema_generator=_Untitled)
    for inner, definition in schema.pop("$defs", {}).items():
        defs.setdefault(inner, definition)
    defs[name] = schema | {"properties": schema.get("properties", {}) | fixed}


def write(path: Path) -> None:
    """Write the schema, and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(build(), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    default = SCHEMA if SCHEMA.parents[1].is_dir() else HERE
    parser.add_argument("path", nargs="?", type=Path, default=default, help="file to write (default: %(default)s)")
    write(parser.parse_args().path)
