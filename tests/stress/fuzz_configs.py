"""Campaigns that nobody would write: drawn from the schema and then spoilt, or no YAML at all.

A case is the bytes of a campaign's file. It must be refused in one line, or be loaded as it is written: nothing of it
lost, changed or added, every job planned, no path outside of the campaign's folder.
"""

import contextlib
import copy
import datetime
import functools
import io
import itertools
import json
import os
import re
import shutil
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from fuzzing import Wrong, command, inside
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from pydantic import BaseModel
from ruamel.yaml import YAML
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent, MappingStartEvent, NodeEvent, ScalarEvent

from satm.config import BUILTIN_EXPERTS, FIGURES, TABLES, Resolver, load_campaign, load_yaml
from satm.errors import UsageError
from satm.methods import METHODS
from satm.networks import NETWORKS
from satm.workflow.jobs import campaigns_of, jobs
from satm.workflow.schema import build

DEFS = json.loads(json.dumps(build()))["$defs"]
DEFS |= {f"method-{name}": recipe.options.model_json_schema() for name, recipe in METHODS.items()}
DEFS |= {f"network-{name}": architecture.options.model_json_schema() for name, architecture in NETWORKS.items()}
DEFS |= {options.__name__: options.model_json_schema() for kinds in (TABLES, FIGURES) for options in kinds.values()}
OWN = ("mine", "another-1", "X")
"""Names that campaigns give."""


def value_of(schema: Mapping[str, Any]) -> SearchStrategy[Any]:
    """Draw a value that a schema allows."""
    if "$ref" in schema:
        return value_of(DEFS[schema["$ref"].rpartition("/")[2]])
    if "anyOf" in schema:
        return st.one_of(*map(value_of, schema["anyOf"]))
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema.get("type", "object")
    low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
    high = schema.get("maximum", schema.get("exclusiveMaximum", low + 20))
    if kind == "integer":
        return st.integers(int(low), int(high))
    if kind == "number":
        outside = {"exclude_min": "exclusiveMinimum" in schema, "exclude_max": "exclusiveMaximum" in schema}
        return st.floats(low, high, allow_subnormal=False, **outside) | st.sampled_from([low + (high - low) / 2, 1e-3])
    if kind == "array":
        return st.lists(value_of(schema.get("items", {})), min_size=schema.get("minItems", 1), max_size=3, unique=True)
    simple: dict[str, SearchStrategy[Any]] = {"boolean": st.booleans(), "null": st.none(), "object": st.just({})}
    return simple.get(kind, st.sampled_from(["", "flip", "a text", *OWN]))


def options_of(name: str, without: tuple[str, ...] = ()) -> SearchStrategy[dict[str, Any]]:
    """Draw some options of a model of the schema, those that it must have left out."""
    properties = {key: held for key, held in DEFS[name]["properties"].items() if key not in without}
    chosen = st.lists(st.sampled_from(sorted(properties)), unique=True, max_size=4) if properties else st.just([])
    return chosen.flatmap(lambda keys: st.fixed_dictionaries({key: value_of(properties[key]) for key in keys}))


NAMED = ("method", "experts", "network", "dataset", "ipc", "difficulty")


@st.composite
def campaign(draw: DrawFn) -> dict[str, Any]:
    """Draw the content of a campaign of which most are usable."""
    found: dict[str, Any] = {}
    sources = st.sampled_from(["digits", "folder", "parquet", "tiny-imagenet"])
    networks, methods, experts, datasets = [*NETWORKS], [*METHODS], [*BUILTIN_EXPERTS], ["digits", "cifar10"]
    names = st.lists(st.sampled_from(OWN), unique=True, max_size=2)

    if held := draw(names):
        options = options_of("DatasetOptions", ("source", "zca_per_image", "zca_relative", "augment", "std"))
        found["datasets"] = {name: {"source": draw(sources), **draw(options)} for name in held}
        datasets += held
    if held := draw(names):
        found["networks"] = {}
        for name in held:
            kind = draw(st.sampled_from(sorted(NETWORKS)))
            found["networks"][name] = {"network": kind, **draw(options_of(f"network-{kind}", ("network",)))}
        networks += held
    if held := draw(names):
        plain = ("network", "flat_rule", "rho", "alpha", "adaptive", "order", "difficulty", "start_fraction")
        options = options_of("ExpertsOptions", (*plain, "full_epoch", "optimiser"))
        found["experts"] = {name: {"network": draw(st.sampled_from(networks)), **draw(options)} for name in held}
        experts += held
    if held := draw(names):
        found["methods"] = {}
        for name in held:
            kind = draw(st.sampled_from(sorted(METHODS)))
            own = draw(options_of(f"method-{kind}", ("method", "experts", "network")))
            found["methods"][name] = {"method": kind, **own}
        methods += held
    found["settings"] = [draw(setting(methods, networks, datasets)) for _ in range(draw(st.integers(0, 2)))]

    few = st.lists(st.integers(0, 5), min_size=1, max_size=2, unique=True)
    ipcs = st.lists(st.sampled_from([1, 2, 10, 50]), min_size=1, max_size=2, unique=True)
    some = st.lists(st.sampled_from(methods), min_size=1, max_size=3, unique=True)
    cells = st.fixed_dictionaries(
        {"datasets": st.dictionaries(st.sampled_from(datasets), ipcs, min_size=1, max_size=2), "methods": some},
        optional={"seeds": few, "seeds_at": st.dictionaries(st.sampled_from([1, 10]), few, max_size=1)},
    )
    tested = st.lists(st.sampled_from(networks), min_size=1, max_size=2, unique=True)
    measured = st.lists(
        value_of(TABLES["run-metrics"].model_json_schema()["properties"]["measures"]["items"]), min_size=1, unique=True
    )
    watched = st.lists(st.sampled_from(["loss", "step_size", "seconds"]), min_size=1, unique=True)
    labels = st.sampled_from(["", "a", "$\\rho$", "$x", "<b>", "50%"])
    entries: dict[str, SearchStrategy[dict[str, Any]]] = {
        "accuracy": st.fixed_dictionaries({}, optional={"networks": tested, "full": st.just(["strong"])}),
        "robustness": st.just({"baseline": "random"}),
        "search": st.fixed_dictionaries({"sample": st.integers(1, 40)}, optional={"per_job": st.integers(10, 40)}),
        "continual": st.fixed_dictionaries(
            {}, optional={"steps": st.integers(1, 6), "orders": st.integers(1, 3), "sets": st.just("per-step")}
        ),
        "run-metrics": st.fixed_dictionaries({"measures": measured}, optional={"after": st.integers(0, 9)}),
        "late-start": st.just({}),
        "figure": st.one_of(
            st.fixed_dictionaries({"kind": st.just("iterations"), "quantities": watched, "title": labels}),
            st.sampled_from(["costs", "trajectory", "variance", "bounds", "images"]).map(lambda kind: {"kind": kind}),
            st.fixed_dictionaries({"kind": st.just("correlation"), "epochs": st.integers(2, 5)}),
        ),
    }
    places = iter(("one", "two-2", "Three", "f4", "five", "s6", "t7"))
    for kind in draw(st.lists(st.sampled_from(sorted(entries)), min_size=1, max_size=3, unique=True)):
        held = {**draw(cells), **draw(entries[kind])}
        if kind == "robustness":
            held["methods"] = list(dict.fromkeys([*held["methods"], "random"]))
        if kind not in ("accuracy", "figure"):
            held["kind"] = kind
        found.setdefault("figures" if kind == "figure" else "tables", {})[next(places)] = held
    return {section: held for section, held in found.items() if held}


CELLS = ("datasets", "methods", "seeds", "seeds_at")


@st.composite
def setting(draw: DrawFn, methods: list[str], networks: list[str], datasets: list[str]) -> dict[str, Any]:
    """Draw a row of a campaign's settings."""
    stage = draw(st.sampled_from(["network", "distill", "evaluate", "experts", "analyse"]))
    row: dict[str, Any] = {"stage": stage}
    if draw(st.booleans()):
        row["dataset"] = draw(st.sampled_from(datasets) | st.lists(st.sampled_from(datasets), max_size=2))
    if stage in ("distill", "network"):
        kind = {"distill": "method", "network": "network"}[stage]
        name = draw(st.sampled_from(sorted(METHODS if kind == "method" else NETWORKS)))
        left = ("method", "network", "experts")
        return {**row, kind: name, "options": draw(options_of(f"{kind}-{name}", left))}
    if stage == "experts":
        options = options_of("ExpertsOptions").map(lambda held: {k: v for k, v in held.items() if k in ("lr", "count")})
        return {**row, "experts": "sgd", "options": draw(options)}
    options = options_of("CandidateOptions" if stage == "evaluate" else "LateStartTable", (*NAMED, *CELLS))
    return {**row, "method": draw(st.sampled_from(methods)), "options": draw(options)}


ODD: list[Any] = [
    *(None, True, False, 0, -1, 1.5, 10**9, 10**18, 2**63, 10**30, 10**399, -(10**30), 1e308, 1e-320),
    *(float("nan"), float("inf"), float("-inf"), "nan", "1e3", "07", "0x1F", "1:30", "yes", "~", "=", "<<"),
    *("", " ", "x" * 101, "x" * 5000, "../x", "../../x", "/tmp/x", "a/b", ".", "..", "-x", "a b", "a\nb", "a\0b"),
    *("Ä", "\u0663", "mtt-at-epoch-3", "mtt-at-epoch-\u0663", "mtt-at-epoch-03", f"mtt-at-epoch-{'9' * 200}"),
    *("digits-order-0-step-1-of-5", "$HOME/x", "${NOPE_NOPE}/x", "$", "~nobody-there/x", "~", "'; touch /tmp/x; '"),
    *('"; id; "', "{root}", "{{x}}", "%s", "\x1b[31mred", "\u2028", "<script>alert(1)</script>", "$\\frac{$"),
    *("\\input{x}", "all", "overview", "synthetic-x"),
    *([], {}, [[]], [{}], [None], {"": None}, {"a": {"b": {"c": []}}}, [0, 0], ["mtt", "mtt"], [1, 1.0, True]),
    *(datetime.date(2001, 1, 1), b"bytes", [True], [float("nan")], [-1], {1: 2}, {"digits": [1, 1]}, {"digits": []}),
]
"""Values that do not belong where they are put."""


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value, and to the values in it."""
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


@st.composite
def spoilt(draw: DrawFn, content: dict[str, Any]) -> dict[str, Any]:
    """Draw a change of one place in a campaign."""
    content = copy.deepcopy(content)
    everywhere = list(places(content))
    if not everywhere:
        return content
    path = draw(st.sampled_from(everywhere))
    holder: Any = functools.reduce(lambda held, key: held[key], path[:-1], content)
    key, value = path[-1], holder[path[-1]]
    how = draw(st.sampled_from(["value", "value", "value", "remove", "rename", "wrap", "twice", "add", "swap", "deep"]))
    if how == "value":
        holder[key] = copy.deepcopy(draw(st.sampled_from(ODD) | st.integers() | st.floats() | st.text(max_size=8)))
    elif how == "remove":
        del holder[key]
    elif how == "rename" and isinstance(holder, dict):
        name = str(key)
        cut = draw(st.integers(0, len(name)))
        odd = [text for text in ODD if isinstance(text, str)]
        new = draw(st.sampled_from([name[:cut] + name[cut + 1 :], name[:cut] + "x" + name[cut:], *odd]))
        renamed = {new if one == key else one: held for one, held in holder.items()}
        holder.clear()
        holder.update(renamed)
    elif how == "wrap":
        holder[key] = value[0] if isinstance(value, list) and value else [value]
    elif how == "twice" and isinstance(value, list):
        holder[key] = copy.deepcopy(value) + value
    elif how == "add" and isinstance(value, dict):
        name = draw(st.sampled_from(["mtt", "unknown", "", 1, None, "a b"]))
        value[name] = copy.deepcopy(draw(st.sampled_from(ODD)))
    elif how == "swap":
        other = draw(st.sampled_from(everywhere))
        there: Any = functools.reduce(lambda held, one: held[one], other[:-1], content)
        if other[: len(path)] != path and path[: len(other)] != other:
            holder[key], there[other[-1]] = there[other[-1]], value
    elif how == "deep":
        holder[key] = functools.reduce(lambda held, _: [held], range(draw(st.sampled_from([3, 40, 90]))), value)
    return content


def written(content: Any, flow: bool | None = False, unicode: bool = True) -> bytes:
    """Return content as YAML; letters that UTF-8 has not become bytes that are none of it."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style, yaml.allow_unicode, yaml.sort_base_mapping_type_on_output = flow, unicode, False
    yaml.dump(content, text := io.StringIO())
    return text.getvalue().encode("utf-8", "surrogatepass")


PIECES = [b"\t", b"\0", b"&a ", b"*a", b"? ", b": ", b"- ", b"|\n", b"%YAML 9\n", b"\xff", b"# ", b"!"]
TAGS = [
    *(b"!!python/object/apply:os.getcwd []", b"!!python/name:os.system", b"!!int x", b"!!timestamp 2001-99-99"),
    *(b"2001-99-99", b"!!set {a}", b"!!binary AAA", b"!own 1", b"9" * 5000, b"1_0.0_1e9", b"*none", b"<<: [1]"),
]
TAILS = [b"---\na: 1", b"...", b"settings: *x", b"x" * 100_000, b"# " + b"x" * 300_000]


@st.composite
def torn(draw: DrawFn, raw: bytes) -> bytes:
    """Draw a change of the bytes of a file."""
    lines = raw.split(b"\n")
    place = draw(st.integers(0, max(0, len(raw) - 1)))
    line = draw(st.integers(0, len(lines) - 1))
    how = draw(st.sampled_from(["cut", "flip", "insert", "line twice", "line away", "indent", "tag", "tail"]))
    if how == "cut":
        return raw[:place]
    if how == "flip":
        return raw[:place] + bytes([draw(st.integers(0, 255))]) + raw[place + 1 :]
    if how == "insert":
        return raw[:place] + draw(st.sampled_from(PIECES)) + raw[place:]
    if how == "tag":
        lines[line] = lines[line].partition(b":")[0] + b": " + draw(st.sampled_from(TAGS))
    elif how == "line twice":
        lines.insert(line, lines[line])
    elif how == "line away":
        del lines[line]
    elif how == "indent":
        lines[line] = b" " * draw(st.integers(1, 3)) + lines[line]
    else:
        lines.append(draw(st.sampled_from(TAILS)))
    return b"\n".join(lines)


def bomb(kind: str, levels: int, each: int) -> bytes:
    """Return a small file that stands for something huge."""
    if kind == "merge":
        lines = ["a0: &a0 {x: 1}"]
        lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * each)}], y{n}: 1}}" for n in range(1, levels)]
    else:
        left, right = ("[", "]") if kind == "list" else ("{", "}")
        lines = ["a0: &a0 [lol]"]
        for n in range(1, levels):
            parts = [f"{'' if kind == 'list' else f'k{index}: '}*a{n - 1}" for index in range(each)]
            lines.append(f"a{n}: &a{n} {left}{', '.join(parts)}{right}")
    return "\n".join([*lines, f"methods: {{mine: {{method: mtt, lr_images: *a{levels - 1}}}}}"]).encode()


LOOPS = [b"&a [*a]", b"tables: &a {x: *a}", b"methods: {mine: &a {method: mtt, x: *a}}", b"&a {*a : 1}"]
LONG = [b"a: " + b"x" * 200_000, b"- a\n" * 60_000, b"a: 1\n" * 50_000, b"a, " * 80_000, b"[" + b"1," * 100_000]
SHORT = [b"", b"\xef\xbb\xbftables: {}", "tables: {}".encode("utf-16"), b"--- 1\n--- 2", b"null", b"1", b"\0"]


def raw_texts() -> SearchStrategy[bytes]:
    """Draw files that were no campaign to begin with."""
    bombs = st.builds(bomb, st.sampled_from(["list", "map", "merge"]), st.integers(6, 40), st.integers(2, 12))
    level = st.sampled_from([b"[", b"{a: ", b"- ", b"? ", b"a:\n "])
    deep = st.builds(lambda one, count: one * count, level, st.integers(1, 60_000))
    text = st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass"))
    return st.one_of(bombs, deep, st.sampled_from([*LOOPS, *LONG, *SHORT]), st.binary(max_size=200), text)


@st.composite
def configs(draw: DrawFn) -> bytes:
    """Draw the bytes of a campaign's file."""
    kind = draw(st.sampled_from(["whole", "spoilt", "spoilt", "spoilt", "spoilt", "torn", "torn", "raw"]))
    if kind == "raw":
        return draw(raw_texts())
    content: dict[str, Any] = draw(campaign())
    if kind == "spoilt":
        for _ in range(draw(st.sampled_from([1, 1, 1, 2, 4]))):
            content = draw(spoilt(content))
    raw = written(content, draw(st.sampled_from([False, True, None])), draw(st.booleans()))
    return draw(torn(raw)) if kind == "torn" else raw


# What a case must come to


def check_config(raw: bytes, base: Path) -> str:
    """Try a campaign's file below a folder; return in a word what came of it.

    Raises:
        Wrong: what must never be.
    """
    folder = base / "work" / "a folder"
    shutil.rmtree(base / "work", ignore_errors=True)
    folder.mkdir(parents=True)
    path = Path("fuzzed.yaml")
    with inside(folder), offline():
        path.write_bytes(raw)
        resolver = loaded(path)
        kind = "refused" if resolver is None else planned(resolver, raw, path)
        code, _ = command("cost", "--config", str(path))
        if code != (0 if kind == "planned" else 2):
            raise Wrong(f"{kind}, and the command line ends with {code}")
        if resolver is not None:
            commands(resolver, path)
    if (left := sorted(path.name for path in base.iterdir())) != ["work"]:
        raise Wrong(f"files outside of the current folder: {left}")
    made = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    if strange := [name for name in made if not name.startswith("results/fuzzed/") and name != "fuzzed.yaml"]:
        raise Wrong(f"files outside of the campaign's folder: {strange}")
    return kind


def loaded(path: Path) -> Resolver | None:
    """Return the campaign; None where it is refused."""
    try:
        return load_campaign(path)
    except UsageError as error:
        one_line(error)
    except Exception as error:
        raise Wrong(f"a traceback: load_campaign: {type(error).__name__}: {str(error)[:300]}") from error
    return None


def planned(resolver: Resolver, raw: bytes, path: Path) -> str:
    """Check a campaign that loads."""
    twice(raw)
    same(load_yaml(path), resolver.campaign, "")
    try:
        campaigns = campaigns_of(path)
        campaigns.of("results/fuzzed")
        found = jobs(campaigns, "results/fuzzed")
    except UsageError as error:
        one_line(error)
        return "refused by the check"
    except Exception as error:
        raise Wrong(f"a traceback: check or plan: {type(error).__name__}: {str(error)[:300]}") from error
    for job in found:
        for name, value in job.names:
            if not re.fullmatch(r"results/fuzzed" if name == "root" else r"[A-Za-z0-9][A-Za-z0-9-]*", value):
                raise Wrong(f"job {job} has the name {value!r}")
    made = {job.names for job in found if job.rule == "distill"}
    for table in resolver.campaign.tables.values():
        if table.kind == "late-start" or getattr(table, "sets", "") == "per-step":
            continue  # made of sets of other methods or datasets than it names
        for dataset, ipcs in table.datasets.items():
            for ipc, method in itertools.product(ipcs, table.methods):
                for seed in table.seeds_at.get(ipc, table.seeds):
                    names = {"dataset": dataset, "ipc": str(ipc), "method": method, "seed": str(seed)}
                    if tuple(sorted({"root": "results/fuzzed", **names}.items())) not in made:
                        raise Wrong(f"no job makes {names}")
    return "planned"


def commands(resolver: Resolver, path: Path) -> None:
    """Run what is quick for a campaign that loads."""
    for name in list(resolver.campaign.tables)[:1]:
        command("table", "--config", str(path), "--name", name, "--partial")
    for name in list(resolver.campaign.figures)[:1]:
        command("figure", "--config", str(path), "--name", name, "--partial")
    for name, options in list(resolver.campaign.datasets.items())[:1]:
        if options.source != "digits":
            command("data", "--config", str(path), "--dataset", name)
    for name in list(resolver.campaign.methods)[:1]:
        command("distill", "--config", str(path), "--dataset", "digits", "--ipc", "1", "--method", name)
    for name in list(resolver.campaign.experts)[:1]:
        command("experts", "--config", str(path), "--dataset", "digits", "--experts", name, "--collect")


def one_line(error: UsageError) -> None:
    if "\n" in str(error) or not str(error).isprintable() or len(str(error)) > 3000:
        raise Wrong(f"no clear line: {str(error)[:500]!r}")


def twice(raw: bytes) -> None:
    """Check that no name stands in a mapping twice, by the parser's events alone."""
    holders: list[Any] = []
    for event in YAML(typ="safe", pure=True).parse(raw.decode()):
        mapping = holders[-1] if holders else None
        if isinstance(event, NodeEvent) and isinstance(mapping, dict):
            mapping["names"] = not mapping["names"]
            if mapping["names"] and isinstance(event, ScalarEvent):
                if event.value in mapping["seen"]:
                    raise Wrong(f"{event.value!r} stands there twice and was accepted")
                mapping["seen"].add(event.value)
        if isinstance(event, CollectionStartEvent):
            holders.append({"names": False, "seen": set()} if isinstance(event, MappingStartEvent) else [])
        elif isinstance(event, CollectionEndEvent):
            holders.pop()


def same(written: Any, read: Any, place: str) -> None:
    """Check that options are what was written, in whatever type they are kept."""
    if isinstance(read, BaseModel):
        if set(written) != read.model_fields_set:
            raise Wrong(f"{place}: written {sorted(written)}, read {sorted(read.model_fields_set)}")
        for name, value in written.items():
            same(value, getattr(read, name), f"{place}.{name}")
    elif isinstance(read, dict):
        if len(written) != len(read):
            raise Wrong(f"{place}: written {written!r}, read {read!r}")
        for (one, value), (other, held) in zip(written.items(), read.items(), strict=True):
            same(one, other, place)
            same(value, held, f"{place}.{one}")
    elif isinstance(read, tuple | list):
        listed = written if isinstance(written, list) else [written]
        if len(listed) != len(read):
            raise Wrong(f"{place}: written {written!r}, read {read!r}")
        for index, (value, held) in enumerate(zip(listed, read, strict=True)):
            same(value, held, f"{place}.{index}")
    elif isinstance(written, str) and isinstance(read, float | int):
        if isinstance(read, bool) or float(written) != read:
            raise Wrong(f"{place}: written {written!r}, read {read!r}")
    elif written != read or (isinstance(read, float | int) and isinstance(written, bool) != isinstance(read, bool)):
        raise Wrong(f"{place}: written {written!r}, read {read!r}")


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Let no case reach data of this machine or the network, by a proxy that does not answer."""
    urllib.request.urlcleanup()  # urlopen remembers its proxies
    proxy = {"https_proxy": "http://127.0.0.1:1", "no_proxy": ""}
    with mock.patch.dict(os.environ, {"SATM_DATA": "data", **proxy}):
        yield
    urllib.request.urlcleanup()
