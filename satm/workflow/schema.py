"""The JSON schema of a campaign, for editors and for checks that must not import torch.

`python -m satm.workflow.schema` writes `workflow/schemas/campaign.schema.json` from the options of `satm.config` and of
every registered method and network. The workflow reads that file instead of the classes, because those need torch and
every cluster job parses the workflow again.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from satm.config import (
    BUILTIN_EXPERTS,
    FIGURES,
    TABLES,
    AnalyseOptions,
    Campaign,
    Cell,
    EvaluateOptions,
    Exhibit,
    ExpertsOptions,
    Options,
    Resolver,
    Setting,
    canonical,
    parse,
)
from satm.errors import UsageError, pick, short, suggest
from satm.version import CHECKOUT

SCHEMA = CHECKOUT / "workflow" / "schemas" / "campaign.schema.json"
"""Where a checkout keeps the schema."""


def build() -> dict[str, Any]:
    """Return the schema of a campaign file, draft 2020-12.

    Under `$defs`, `method-NAME` and `network-NAME` hold the options of each registered method and network.
    """
    from satm.methods import METHODS
    from satm.networks import NETWORKS

    schema = Campaign.model_json_schema()
    defs, properties = schema["$defs"], schema["properties"]
    for axis in ("method", "experts", "network", "dataset", "ipc"):  # one name stands for a list of one
        values = defs["Setting"]["properties"][axis]
        values["anyOf"] = [values["items"], {"type": values.pop("type"), "items": values.pop("items")}]
    for kind, registry in (("method", METHODS), ("network", NETWORKS)):
        for name, entry in registry.items():
            defs.update(_definitions(kind, name, entry.options))
        properties[f"{kind}s"] |= _entries(kind, sorted(registry))
    for section, kinds, default in (("tables", TABLES, "accuracy"), ("figures", FIGURES, "")):
        for kind, options in kinds.items():
            found = options.model_json_schema()
            defs.update({**found.pop("$defs", {}), options.__name__: found})
            if kind != default:
                found["required"] = ["kind", *found.get("required", [])]
        properties[section]["additionalProperties"] = {
            "oneOf": [{"$ref": f"#/$defs/{options.__name__}"} for options in kinds.values()]
        }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _definitions(kind: str, name: str, options: type[Options]) -> dict[str, Any]:
    """Return the definition of one registered method or network, and of the models that it uses."""
    found = options.model_json_schema()
    inner: dict[str, Any] = found.pop("$defs", {})
    found["properties"] = {**found.get("properties", {}), kind: {"const": name}}
    found.pop("required", None)  # an entry may leave options to the presets
    return {**inner, f"{kind}-{name}": found}


def _entries(kind: str, names: list[str]) -> dict[str, Any]:
    """Return the schema of a campaign's `methods` or `networks`; a name of one's own must say the registered one."""
    branches = [
        {"if": {"properties": {kind: {"const": name}}}, "then": {"$ref": f"#/$defs/{kind}-{name}"}} for name in names
    ]
    return {
        "properties": {name: {"$ref": f"#/$defs/{kind}-{name}"} for name in names},
        "additionalProperties": {
            "type": "object",
            "properties": {kind: {"enum": names}},
            "required": [kind],
            "allOf": branches,
        },
    }


class Checker:
    """Checks campaigns by the schema file and knows what the registered methods need, without torch."""

    def __init__(self, path: Path = SCHEMA) -> None:
        self._defs: dict[str, Any] = json.loads(path.read_text())["$defs"]
        self._registered: dict[str, dict[str, dict[str, Any]]] = {"method": {}, "network": {}}
        for name, held in self._defs.items():
            kind, dash, registered = name.partition("-")
            if dash and kind in self._registered:
                self._registered[kind][registered] = held
        # Many cells have the same options, and a look at a schema is slow: what was usable once is not asked again.
        self._usable: set[str] = set()

    def registered(self, kind: str) -> Mapping[str, dict[str, Any]]:
        """Return the schemas of the registered methods or networks by name; `kind` is `method` or `network`."""
        return self._registered[kind]

    def experts(self, values: Mapping[str, Any]) -> str | None:
        """Return the name of the experts that a method with these values matches; None: it uses none."""
        option = self.registered("method")[values["method"]]["properties"].get("experts")
        return None if option is None else values.get("experts", option["default"])

    def check(self, resolver: Resolver) -> None:
        """Check every name and option of a campaign.

        Raises:
            UsageError: an unknown name or option, or an unusable value; one line, the first problem.
        """
        where, campaign = str(resolver.path), resolver.campaign
        for name, entry in campaign.networks.items():
            self._options("network", {"network": name, **entry}, f"{where}: networks.{name}")
        for name, entry in campaign.methods.items():
            self._options("method", {"method": name, **entry}, f"{where}: methods.{name}")
        for index, setting in enumerate(campaign.settings):
            self._setting(resolver, setting, f"{where}: settings.{index}")
        for name, table in campaign.tables.items():
            self._exhibit(resolver, table, f"{where}: table {name}")
        for name, figure in campaign.figures.items():
            self._exhibit(resolver, figure, f"{where}: figure {name}")

    def _setting(self, resolver: Resolver, setting: Setting, where: str) -> None:
        if setting.stage == "experts":
            parse(ExpertsOptions, setting.options, where)
        elif setting.stage == "evaluate":
            parse(EvaluateOptions, setting.options, where)
        elif setting.stage == "analyse":
            named = parse(AnalyseOptions, setting.options, where).experts
            if named is not None:
                pick(named, {**BUILTIN_EXPERTS, **resolver.campaign.experts}, f"experts in {where}")
        else:
            kind = "method" if setting.stage == "distill" else "network"
            entries = resolver.campaign.methods if kind == "method" else resolver.campaign.networks
            for name in getattr(setting, kind):
                base = entries.get(name, {}).get(kind, name)
                self._options(kind, {**setting.options, kind: base}, where)

    def _exhibit(self, resolver: Resolver, entry: Exhibit, where: str) -> None:
        """Check every synthetic set and network that a table or figure is made of."""
        cells = list(dict.fromkeys(run._replace(seed=0) for run in entry.runs()))
        for dataset in dict.fromkeys([*getattr(entry, "datasets", ()), *(cell.dataset for cell in cells)]):
            pick(dataset, resolver.datasets, f"dataset in {where}")
            for network in entry.tested_networks():
                self._options("network", resolver.network(network, dataset), where)
        try:
            entry.check(resolver)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None
        for cell in cells:
            self._cell(resolver, cell, f"{where}: {cell.method} on {cell.dataset} at ipc {cell.ipc}")

    def _cell(self, resolver: Resolver, cell: Cell, where: str) -> None:
        values = resolver.method(cell)
        self._options("method", values, where)
        resolver.evaluation(cell)
        experts = self.experts(values)
        if experts is not None:
            recipe = resolver.experts(experts, cell.dataset)
            self._options("network", resolver.network(recipe.network, cell.dataset), f"{where}: experts {experts}")

    def _options(self, kind: str, values: Mapping[str, Any], where: str) -> None:
        """Check `{kind: registered name, option: value…}`."""
        import jsonschema  # type: ignore[import-untyped]  # comes with Snakemake, which is optional

        name = str(values[kind])
        pick(name, self.registered(kind), f"{kind} in {where}")
        if (text := canonical(values)) in self._usable:
            return
        validator = jsonschema.Draft202012Validator({"$ref": f"#/$defs/{kind}-{name}", "$defs": self._defs})
        for error in validator.iter_errors(json.loads(text)):
            place = ".".join(str(step) for step in error.path)
            if error.validator == "additionalProperties":
                known = sorted(set(error.schema["properties"]) - {kind})
                wrong = sorted(set(error.instance) - set(known) - {kind})[0]
                hint = suggest(wrong, known)
                raise UsageError(f"{where}: unknown option {wrong!r} of {name}; known: {', '.join(known)}.{hint}")
            expected = _expected(error.schema)
            raise UsageError(f"{where}: {place}: got {short(error.instance)}, expected {expected}; correct it")
        self._usable.add(text)


def _expected(schema: Mapping[str, Any]) -> str:
    """Return a schema of one value in words."""
    if "anyOf" in schema:
        return " or ".join(_expected(choice) for choice in schema["anyOf"])
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    if "const" in schema:
        return repr(schema["const"])
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    words = [str(schema.get("type", "another value"))]
    return " ".join(words + [f"{sign} {schema[key]}" for key, sign in bounds.items() if key in schema])


if __name__ == "__main__":
    from satm.storage.files import write_json

    write_json(SCHEMA, build())
