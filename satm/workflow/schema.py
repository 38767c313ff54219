"""The JSON schema of a campaign, for editors: `python -m satm.workflow.schema` writes it into a checkout.

A class of methods' options defines only what it adds to the one below it, so that shared options are described once.
"""

import json
from collections.abc import Mapping
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from satm.config import FIGURES, TABLES, Campaign, Options
from satm.methods import METHODS
from satm.networks import NETWORKS
from satm.version import CHECKOUT

SCHEMA = CHECKOUT / "workflow" / "schemas" / "campaign.schema.json"
"""Place of the schema in a checkout; git does not keep it, so that a new option is in one place."""

LONGEST = 120
"""Characters of a line with several values."""


class _Untitled(GenerateJsonSchema):
    """Leaves out titles, which repeat the names of options."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def build() -> dict[str, Any]:
    """Return the schema of a campaign file, draft 2020-12.

    Under `$defs`, `method-NAME` and `network-NAME` hold the options of each registered method and network.
    """
    schema = Campaign.model_json_schema(schema_generator=_Untitled)
    defs, properties = schema["$defs"], schema["properties"]
    for axis in ("method", "experts", "network", "dataset", "ipc"):  # one name stands for a list of one
        values = defs["Setting"]["properties"][axis]
        values["anyOf"] = [values["items"], {"type": values.pop("type"), "items": values.pop("items")}]
    for kind, registry in (("method", METHODS), ("network", NETWORKS)):
        for name, entry in registry.items():
            below = entry.options.__bases__[0]  # of the same name where only defaults differ
            shared = below if below.__name__ == entry.options.__name__ else entry.options
            _define(defs, f"{kind}-{name}", entry.options, [shared], {kind: {"const": name}})
        known = {name: {"$ref": f"#/$defs/{kind}-{name}"} for name in registry}
        other = {"type": "object", "required": [kind], "anyOf": list(known.values())}  # a name of one's own
        properties[f"{kind}s"] |= {"properties": known, "additionalProperties": other}
    for section, kinds, default in (("tables", TABLES, "accuracy"), ("figures", FIGURES, "")):
        for kind, options in kinds.items():
            _define(defs, f"{section}-{kind}", options, _below(options), {"kind": {"const": kind}})
            required = {name for name, field in options.model_fields.items() if field.is_required()} - {"kind"}
            defs[f"{section}-{kind}"]["required"] = sorted(required if kind == default else required | {"kind"})
        entries = [{"$ref": f"#/$defs/{section}-{kind}"} for kind in kinds]
        properties[section]["additionalProperties"] = {"oneOf": entries}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _define(
    defs: dict[str, Any], name: str, model: type[Options], below: list[type[Options]], fixed: Mapping[str, Any]
) -> None:
    """Define an entry of a campaign, which has no other options."""
    entry = _added(defs, model, below)
    defs[name] = entry | {"type": "object", "properties": entry["properties"] | fixed, "unevaluatedProperties": False}


def _below(model: type[Options]) -> list[type[Options]]:
    return [each for each in model.__bases__ if each is not Options]


def _added(defs: dict[str, Any], model: type[Options], below: list[type[Options]]) -> dict[str, Any]:
    """Return the options that a class adds to the classes below it, which are defined once for all that share them."""
    inherited: dict[str, Any] = {}
    for each in below:
        inherited |= _schema(defs, each)
        if f"shared-{each.__name__}" not in defs:
            defs[f"shared-{each.__name__}"] = _added(defs, each, _below(each))
    own = {name: option for name, option in _schema(defs, model).items() if option != inherited.get(name)}
    shared = {"allOf": [{"$ref": f"#/$defs/shared-{each.__name__}"} for each in below]} if below else {}
    return {"properties": own, **shared}


def _schema(defs: dict[str, Any], model: type[Options]) -> dict[str, Any]:
    """Return the options of a class, after defining those inside them."""
    schema = model.model_json_schema(schema_generator=_Untitled)
    for name, inner in schema.get("$defs", {}).items():
        defs.setdefault(name, inner)
    properties: dict[str, Any] = schema.get("properties", {})
    return properties


def text(content: Any, indent: str = "") -> str:
    """Return JSON with sorted keys; each value that fits into a line is on one line."""
    line = json.dumps(content, sort_keys=True)
    if len(indent + line) <= LONGEST or not isinstance(content, dict | list):
        return line
    deeper = f"{indent}  "
    if isinstance(content, list):
        lines, (first, last) = [text(value, deeper) for value in content], "[]"
    else:
        lines, (first, last) = [f"{json.dumps(key)}: {text(content[key], deeper)}" for key in sorted(content)], "{}"
    return f"{first}\n{deeper}" + f",\n{deeper}".join(lines) + f"\n{indent}{last}"


if __name__ == "__main__":
    SCHEMA.parent.mkdir(exist_ok=True)
    SCHEMA.write_text(text(build()) + "\n")
