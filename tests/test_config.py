"""Campaigns and presets: what is refused and how, which value counts, which paths come out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from satm import config
from satm.cli import main
from satm.config import (
    TABLES,
    Campaign,
    Cell,
    Layout,
    Resolver,
    Setting,
    load_campaign,
    load_presets,
    load_yaml,
    parse,
    root_of,
)
from satm.errors import UsageError, nearest
from satm.methods import METHODS
from satm.methods import resolve as resolve_method
from satm.networks import resolve as resolve_network
from satm.workflow import schema as schemas
from satm.workflow.check import check, load_checked
from satm.workflow.options import experts_of

ROOT = Path(__file__).parent.parent
CAMPAIGNS = sorted((ROOT / "config").glob("*.yaml"))
PRESETS = [
    (path.name, row)
    for path in sorted((ROOT / "config" / "presets").glob("*.yaml"))
    for row in load_yaml(path)["settings"]
]
SCHEMA = json.loads(json.dumps(schemas.build()))


def resolver(presets: tuple[Setting, ...] = (), **content: object) -> Resolver:
    return Resolver(parse(Campaign, content, "test"), presets, "results/test", Path("test.yaml"))


TABLE = {"table2": {"datasets": {"digits": [1]}, "methods": ["random", "mtt"]}}


def test_a_campaign_in_another_encoding_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes("datasets:\n  x: {source: folder, path: Bücher}\n".encode("latin-1"))
    with pytest.raises(UsageError, match=r"c.yaml is not UTF-8 text, in line 2; save it as UTF-8$"):
        load_campaign(path)
    path.write_bytes("\ufeffdatasets:\n  x: {source: folder, path: Bücher}\n".encode())
    assert load_campaign(path).dataset("x").path == "Bücher"


def test_all_mistakes_in_a_campaign_are_said_at_once(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("""
tables:
  t: {datasets: {digits: [1]}, metods: [mtt], seeds: 0, kidn: accuracy}
  u: {datasets: {digits: [0]}}
experts: {sgd: {count: x, epochs: 2}, mine: {lr: true}}
datasets: {d: {source: folder, sise: 3}, e: {source: folder, zca_relative: true}}
tabels: {}
""")
    with pytest.raises(UsageError) as caught:
        load_campaign(path)
    told = [problem.removeprefix(f"{path}: ") for problem in caught.value.problems]
    assert [text.partition(";")[0].partition(". Did")[0] for text in told] == [
        "unknown option 'tabels'",
        "unknown option 'datasets.d.sise'",
        "datasets.e: zca_relative changes the whitening, but zca is false",
        "experts.sgd.count: input should be a valid integer, got 'x'",
        "experts.mine: lr is True, expected a number instead of true or false",
        "unknown option 'tables.t.metods'",
        "unknown option 'tables.t.kidn'",
        "tables.t.seeds: input should be a list, got 0",
        "tables.u.datasets.digits.0: input should be greater than or equal to 1, got 0",
        "tables.u.methods is missing",
    ]
    assert caught.value.listed.splitlines()[0] == f"{path}: 10 problems:"
    assert caught.value.listed.splitlines()[10] == f"  (10) {told[9]}"


CELL = "datasets: {digits: [1]}, methods: [mtt]"
NETWORK, ROW = "networks: {small: {network: convnet, width: '8'}}", "settings: [{method: mtt, options: {momentum: -1}}]"


@pytest.mark.parametrize(
    ("content", "begins"),
    [
        (
            "settings: [{method: [mtt, satn], dataset: digit, options: {iter: 3, iterations: '20', momentum: -1}}]",
            [
                "unknown dataset 'digit' in settings.0",
                "settings.0: method mtt: unknown option 'iter'. Did you mean 'iterations'?",
                "settings.0: method mtt: iterations is '20', expected a number without quotes",
                "settings.0: method mtt: momentum: input should be greater than or equal to 0",
                "settings.0: unknown method 'satn'",
            ],
        ),
        (
            "settings: [{stage: analyse, network: convnt, options: {count: 0, experts: sdg}}]",
            ["unknown network 'convnt'", "settings.0: count: ", "unknown experts 'sdg'"],
        ),
        (
            f"tables: {{t: {{{CELL}, compare: [[satm-halff, mtt]]}}, u: {{{CELL}, networks: [convnt]}}}}",
            ["tables.t: compare names 'satm-halff'", "networks.small: ", "settings.0: ", "table u: unknown network"],
        ),
        (
            f"tables: {{t: {{{CELL}, seeds: [0, '1']}}}}",
            ["tables.t: seeds is [0, '1']", "networks.small: ", "settings.0: "],
        ),
        (
            f"experts: {{mine: {{lr: learnt}}}}\nmethods: {{m: {{method: mtt, experts: mine, rho: 1}}}}\n"
            f"tables: {{t: {{{CELL}}}, u: {{datasets: {{digits: [1]}}, methods: [m, mt]}}}}",
            [
                "experts.mine.lr: ",
                "networks.small: ",
                "methods.m: ",
                "settings.0: ",
                "table u: mt on digits at ipc 1: ",
            ],
        ),
        (
            "datasets: {d: {source: folder, sise: 3}}\ntables: {t: {datasets: {d: [1]}, methods: [mtt]}}",
            ["unknown option 'datasets.d.sise'", "networks.small: ", "settings.0: "],
        ),
        ("metods: {m: {method: mtt}}", ["unknown option 'metods'"]),
    ],
)
def test_mistakes_of_all_kinds_are_said_at_once(tmp_path: Path, content: str, begins: list[str]) -> None:
    path = tmp_path / "c.yaml"
    rest = "" if "settings" in content else f"{NETWORK}\n{ROW}\n"
    path.write_text(f"{rest}{content}\n")
    with pytest.raises(UsageError) as caught:
        load_checked(path)
    told = [problem.removeprefix(f"{path}: ") for problem in caught.value.problems]
    assert len(told) == len(begins), told
    for text, begin in zip(told, begins, strict=True):
        assert text.startswith(begin)


def test_a_name_that_is_no_name_of_the_campaign_lists_its_own_and_suggests_what_begins_so() -> None:
    own = {"networks": {"convnet-big": {"network": "convnet"}}, "methods": {"satm-half": {"method": "satm"}}}
    tables = {"t": {**TABLE["table2"], "networks": ["convnet-bigg"]}, "u": {**TABLE["table2"], "methods": ["satm-hal"]}}
    with pytest.raises(UsageError, match=r"known: .*convnet, convnet-big, .* mean 'convnet-big'\?") as caught:
        check(resolver(**own, tables=tables))
    assert "satm-half, t-bptt" in str(caught.value) and "Did you mean 'satm-half'?" in str(caught.value)
    assert nearest("iter", ["outer", "iterations", "iteration-count"]) == "iterations"
    assert nearest("", ["outer"]) is None


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("tabels: {}", "unknown option 'tabels'; known: .*Did you mean 'tables'?"),
        (
            "tables: {table2: {datasets: {digits: [1]}, methods: [mtt], seed: [0]}}",
            "'tables.table2.seed'.*mean 'seeds'",
        ),
        ("tables: {table2: {datasets: {digits: [1]}}}", "tables.table2.methods is missing; give it a value"),
        (
            "tables: {table2: {datasets: {digits: [one]}, methods: [mtt]}}",
            "tables.table2.datasets.digits.0: .*got 'one'",
        ),
        ("tables: {table2: {datasets: {digits: [1]}, methods: [mtt], seeds: []}}", "tables.table2.seeds: .*got \\[\\]"),
        ("datasets: {d: {source: parquett}}", "datasets.d.source: .*'parquet'.*got 'parquett'"),
        (
            "datasets: {d: {source: folder, resize: squash}}",
            "datasets.d: resize is 'squash', but no size is given; set",
        ),
        ("datasets: {d: {source: parquet, sise: 3}}", "unknown option 'datasets.d.sise'.*Did you mean 'size'?"),
        ("experts: {sgd: {epoch: 3}}", "unknown option 'experts.sgd.epoch'.*Did you mean 'epochs'?"),
        ("experts: {sgd: {lr: 0}}", "experts.sgd.lr: .*greater than 0, got 0"),
        ("methods: {my_method: {method: mtt}}", "methods: the name 'my_method' must have letters, digits and '-' only"),
        ("settings: [{stage: distil, options: {}}]", "settings.0.stage: .*got 'distil'"),
        ("[1, 2]", "holds a list, expected a mapping"),
        ("", "is empty, expected a mapping"),
        ("tables: {", "is not usable YAML: line 1: .*correct it"),
    ],
)
def test_an_unusable_file_is_refused_in_one_line(tmp_path: Path, content: str, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(UsageError, match=text) as caught:
        load_campaign(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            {"methods": {"mtt": {"iteration": 3}}},
            "methods.mtt: method mtt: unknown option 'iteration'.*mean 'iterations'?",
        ),
        (
            {"methods": {"mtt": {"iterations": "many"}}},
            "methods.mtt: method mtt: iterations: .*valid integer.*got 'many'",
        ),
        ({"methods": {"mtt": {"iterations": "3"}}}, "iterations is '3', expected a number without quotes"),
        ({"methods": {"mine": {"method": "ratbptt", "milestones": [1, "3"]}}}, "milestones is .*without quotes"),
        ({"methods": {"mtt": {"engine": "mixt"}}}, "engine: .*'mixed', 'reverse'.*got 'mixt'"),
        ({"methods": {"mtt": {"batch_size": 0}}}, "batch_size: .*greater than or equal to 1, got 0"),
        (
            {"methods": {"mine": {"rho": 1}}},
            "test.yaml: methods.mine: unknown method 'mine'; known: .*mtt, .*random, .*satm",
        ),
        ({"methods": {"mine": {"method": "stam"}}}, "unknown method .*'stam'.*Did you mean 'satm'?"),
        (
            {"networks": {"convnet": {"widht": 3}}},
            "networks.convnet: network convnet: unknown option 'widht'.*Did you mean 'width'?",
        ),
        ({"networks": {"n": {"network": "convent"}}}, "unknown network .*'convent'.*Did you mean 'convnet'?"),
        (
            {"settings": [{"method": "mtt", "options": {"itrations": 3}}]},
            "settings.0: method mtt: unknown option 'itrations'",
        ),
        ({"settings": [{"method": "mt", "options": {}}]}, "test.yaml: settings.0: unknown method 'mt'.*mean 'mtt'?"),
        ({"settings": [{"stage": "experts", "options": {"learn": 3}}]}, "settings.0: unknown option 'learn'"),
        (
            {"settings": [{"stage": "evaluate", "options": {"repeat": 3}}]},
            "settings.0: unknown option 'repeat'.*'repeats'",
        ),
        (
            {"settings": [{"options": {"rho": 3}}], "tables": TABLE},
            "random on digits at ipc 1: method random: unknown option 'rho'",
        ),
        (
            {"tables": {"t": {"datasets": {"digit": [1]}, "methods": ["mtt"]}}},
            "dataset .*'digit'.*mean 'digits'?",
        ),
        ({"tables": {"t": {"datasets": {"digits": [1]}, "methods": ["mttt"]}}}, "unknown method .*'mttt'.*mean 'mtt'?"),
        ({"tables": {"table2": {**TABLE["table2"], "networks": ["convnets"]}}}, "unknown network .*mean 'convnet'?"),
        ({"methods": {"mtt": {"experts": "sdg"}}, "tables": TABLE}, "unknown experts 'sdg'; known: .*sgd.*mean 'sgd'?"),
    ],
)
def test_a_wrong_name_or_option_is_refused_before_any_job(content: dict, text: str) -> None:
    with pytest.raises(UsageError, match=text) as caught:
        check(resolver(**content))
    assert "\n" not in str(caught.value)


BOMB = "\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (BOMB, "line 5: the file has more than 20000 values, with aliases expanded"),
        ("methods: &a {mine: *a}", "line 1: an alias refers to a value that contains it"),
        ("[" * 3000, "it is nested too deeply"),
        ("- a\n" * 20_001, "line 20000: the file has more than 20000 values"),
        ("#" * 2**18 + "#", "the file has more than 262144 bytes"),
        ("tables: {}\nmethods: {}\ntables: {}", "line 3: duplicate name 'tables'"),
        ("methods:\n  mine: !!python/object/apply:os.getcwd []", "line 2: unknown tag '!!python/.*; leave it out"),
        ("methods: {mine: !!set {a}}", "unknown tag '!!set'; leave it out"),
        ("methods: {mine: !!binary YQ==}", "unknown tag '!!binary'; leave it out"),
        (
            f"methods: {{mine: {{method: mtt, iterations: {'9' * 5000}}}}}",
            "line 1: a number has 5000 digits, expected at most 400",
        ),
        ("methods: {mine: !!int x}", "is not usable YAML: line 1: expected !!int, got 'x'; correct it"),
        ("methods: {mine: !!bool x}", "line 1: expected !!bool, got 'x'"),
        ("methods: {mine: \0}", "is not usable YAML: .*correct it"),
        ("methods: {? [a, {b: c}] : d}", "line 1: expected a name, got a list or a mapping"),
        ("methods: {<<: {a: 1}, b: 1, b: 2}", "line 1: duplicate name 'b'"),
        ("methods: {1: a, 1.0: b}", 'line 1: .*found duplicate key "1.0"'),
        ("methods: &a {}\ntables: &a {}", "line 2: duplicate anchor 'a'"),
        (f"methods: {{mine: !{'x' * 5000} 1}}", "line 1: unknown tag '!xxx.*; leave it out"),
        ("%YAML 1.3\n---\ntables: {}", "is not usable YAML: version .*correct it"),
    ],
    ids=lambda value: value[:30],
)
def test_yaml_that_is_no_configuration_is_refused_at_once(tmp_path: Path, content: str, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(UsageError, match=text) as caught:
        load_campaign(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize("raw", [b"\xff\xfe", "tables: {}".encode("utf-16"), b"a: \xed\xa0\x80"])
def test_bytes_that_are_no_text_are_no_yaml(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "mine.yaml").write_bytes(raw)
    with pytest.raises(UsageError, match=r"mine\.yaml is not UTF-8 text, in line 1; save it as UTF-8"):
        load_campaign(tmp_path / "mine.yaml")


def test_aliases_and_what_looks_like_a_date_are_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("a: &a [1, 2e-3]\nb: {<<: {c: *a}, d: 2001-99-99, e: 2001-01-01}\nf: *a\n")
    assert load_yaml(path) == {
        "a": [1, 2e-3],
        "b": {"c": [1, 2e-3], "d": "2001-99-99", "e": "2001-01-01"},
        "f": [1, 2e-3],
    }


def test_words_and_numbers_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("a: [yes, no, on, off, y, true, False]\nb: [010, 0o10, 0x10, 1:30]\n")
    assert load_yaml(path) == {
        "a": ["yes", "no", "on", "off", "y", True, False],
        "b": [10, 8, 16, "1:30"],
    }


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("datasets: {d: {source: folder, zca_eps: .inf}}", "datasets.d.zca_eps: .*finite number, got inf"),
        ("datasets: {d: {source: folder, mean: [.nan]}}", "datasets.d.mean.0: .*finite number, got nan"),
        ("datasets: {d: {source: folder, size: 100000}}", "datasets.d.size: .*less than or equal to 4096"),
        ("experts: {mine: {seed: 99999999999999999999}}", "experts.mine: seed has a number beyond 64 bits"),
        ("experts: {mine: {epochs: yes}}", "experts.mine.epochs: .*valid integer, .*got 'yes'"),
        ("experts: {mine: {epochs: true}}", "experts.mine: epochs is True, expected a number instead of true or false"),
        (
            f"tables: {{t: {{{CELL}, seeds: [false]}}}}",
            "tables.t: seeds is .False., expected a number instead of",
        ),
        ("tables: {t: {datasets: {digits: [true]}, methods: [mtt]}}", "tables.t: datasets is .*expected a number"),
        ("datasets: {d: {source: folder, zca: 0}}", "datasets.d: zca is 0, expected true or false"),
        ("datasets: {d: {source: folder, zca: y}}", "datasets.d: zca is 'y', expected true or false"),
        ("datasets: {d: {source: folder, zca: yes}}", "datasets.d: zca is 'yes', expected true or false"),
        (f"tables: {{t: {{{CELL}, seeds_at: {{true: [0]}}}}}}", "tables.t: seeds_at is .*expected a number"),
        ("settings: [{ipc: true, options: {}}]", "settings.0: ipc is True, expected a number"),
        (
            f"tables: {{t: {{kind: search, {CELL}, proxy: {{repeats: true}}}}}}",
            "tables.t.proxy: repeats is True, expected",
        ),
        ("figures: {f: {kind: costs, datasets: {digits: [1]}, methods: []}}", "methods: .*at least 1 item"),
        ("figures: {f: {kind: costs, datasets: {digits: []}, methods: [mtt]}}", "datasets.digits: .*at least 1 item"),
        ("figures: {f: {kind: costs, datasets: {}, methods: [mtt]}}", "datasets: .*at least 1 item"),
        ("experts: {mine: {count: 1000000000}}", "experts.mine.count: .*less than or equal to 100000"),
        (f"tables: {{t: {{{CELL}, seeds: [0, 1, 0]}}}}", "tables.t: seeds has 0 twice; name it once"),
        (f"tables: {{t: {{{CELL}, seeds_at: {{1: []}}}}}}", "tables.t.seeds_at.1: .*at least 1 item"),
        ("tables: {t: {datasets: {digits: [1, 1]}, methods: [mtt]}}", "tables.t: datasets has 1 twice"),
        ("tables: {t: {datasets: {digits: [1]}, methods: [mtt, mtt]}}", "tables.t: methods has 'mtt' twice"),
        ("tables: {t: {datasets: {digits: [-1]}, methods: [mtt]}}", "datasets.digits.0: .*greater than or equal to 1"),
        (f"tables: {{t: {{{CELL}, seeds: [-1]}}}}", "seeds.0: .*greater than or equal to 0"),
        (
            f"tables: {{t: {{{CELL}, seeds: {list(range(10_001))}}}}}",
            "needs 10001 synthetic sets, expected at most 10000",
        ),
        (
            f"tables: {{t: {{kind: continual, {CELL}, sets: per-step, orders: 5000, steps: 10}}}}",
            "needs 50000 files, expected at most 20000",
        ),
        (
            f"tables: {{t: {{kind: search, {CELL}, per_job: 1, seeds: {list(range(99))}}}}}",
            "needs 72000 files, expected",
        ),
        (f"figures: {{t: {{kind: correlation, {CELL}, epochs: 1000000000}}}}", "needs 1000000000 files, expected"),
        (f"figures: {{t: {{kind: iterations, {CELL}, quantities: [loss, loss]}}}}", "quantities has 'loss' twice"),
        (f"tables: {{t: {{kind: acuracy, {CELL}}}}}", "tables.t: unknown kind of table 'acuracy'; .* mean 'accuracy'?"),
        (f"tables: {{t: {{kind: search, {CELL}, smple: 3}}}}", "unknown option 'tables.t.smple'.*mean 'sample'?"),
        (f"tables: {{t: {{{CELL}, sharpness: [satm]}}}}", "tables.t: sharpness names 'satm', which is not among"),
        ("tables: {t: {datasets: {digits: [1]}, methods: []}}", "tables.t: methods is empty, so .* name a method"),
        (f"tables: {{t: {{{CELL}, compare: [[mtt, mtt]]}}}}", "tables.t: compare has 'mtt' against itself; name two"),
        (f"tables: {{t: {{{CELL}, seeds: []}}}}", "tables.t.seeds: list should have at least 1 item, got \\[\\]$"),
        (f"tables: {{t: {{{CELL}, seeds: [-1]}}}}", "yaml: tables.t.seeds.0: [^;]*equal to 0, got -1$"),
        (f"tables: {{t: {{{CELL}, compare: [[mtt, mt]]}}}}", "compare names 'mt', .* Did you mean 'mtt'?"),
        ("fair: {}", "the section 'fair' has become a kind of table; move .* to tables, each with kind: robustness"),
        ("tables: {all: {}}", "tables.all.datasets is missing"),
        (f"tables: {{all: {{{CELL}}}}}", "tables: 'all' means all tables; rename it"),
        ("methods: {mine: {method: [mtt]}}", "mine: method must be the name of a registered method, got \\['mtt'\\]"),
        ("networks: {mine: {network: 3}}", "mine: network must be the name of a registered network, got 3"),
        (f"tables: {{{'x' * 101}: {{{CELL}}}}}", "must have letters, digits and '-' only, at most 100"),
        ("settings: [{stage: analyse, options: {starts: [-1]}}]", "settings.0: starts.0: .*greater than or equal to 0"),
    ],
    ids=lambda value: value[:50],
)
def test_a_value_that_cannot_be_meant_is_refused(tmp_path: Path, content: str, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(UsageError, match=text) as caught:
        check(load_campaign(path))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"methods": {"mtt": {"lr_images": float("inf")}}}, "methods has inf, which is not a finite number"),
        ({"methods": {"mtt": {"iterations": 10**30}}}, "methods has a number beyond 64 bits"),
        ({"networks": {"unused": {"network": "convnet", "width": float("nan")}}}, "networks has nan, which is no"),
        ({"settings": [{"dataset": "digitz", "options": {}}]}, "unknown dataset 'digitz' in .*Did you mean 'digits'"),
        ({"settings": [{"stage": "experts", "experts": "sgdd", "options": {}}]}, "unknown experts 'sgdd' in .*'sgd'"),
        (
            {"settings": [{"stage": "evaluate", "network": "convnt", "options": {}}]},
            "unknown network 'convnt' in .*'convnet'",
        ),
        ({"settings": [{"stage": "analyse", "options": {"experts": "../x"}}]}, "unknown experts '../x' in "),
        ({"tables": {"t": {"datasets": {"digits": [1]}, "methods": ["mtt-at-epoch-\u0663"]}}}, "unknown method"),
        ({"tables": {"t": {"datasets": {"digits": [1]}, "methods": ["mtt-at-epoch-03"]}}}, "unknown method"),
        ({"tables": {"t": {"datasets": {"digits": [1]}, "methods": ["../mtt"]}}}, "unknown method .*'../mtt'"),
        ({"tables": {"t": {"datasets": {"../x": [1]}, "methods": ["mtt"]}}}, "unknown dataset .*'../x'"),
        ({"tables": {"t": {**TABLE["table2"], "networks": ["../x"]}}}, "unknown network .*'../x'"),
    ],
)
def test_names_and_numbers_that_lead_nowhere_are_refused_by_the_check(content: dict, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        check(resolver(**content))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("$NO_SUCH_VARIABLE/x", "has an environment variable that is not set"),
        ("~no-such-user-here/x", "begins with the home folder of an unknown user"),
        ("a\0b", "has a zero byte"),
        ("../x", r"'../x' leads out of the working folder; if intended, write an absolute path"),
        ("a/../../x", "leads out of the working folder"),
        ("..", "leads out of the working folder"),
    ],
)
def test_an_impossible_path_is_refused(path: str, text: str) -> None:
    with pytest.raises(UsageError, match=text) as caught:
        config.expand(path)
    assert "\n" not in str(caught.value)


def test_paths_within_absolute_or_of_the_environment_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "../beside")
    monkeypatch.setenv("WHOLE", "/data")
    for path, found in [
        ("a/../b", "a/../b"),
        ("..a/b", "..a/b"),
        ("/tmp/../x", "/tmp/../x"),
        ("$PLACE/x", "../beside/x"),
        ("$WHOLE/../../x", "/data/../../x"),
    ]:
        assert config.expand(path) == Path(found)


def test_an_entry_in_place_of_a_built_in_dataset_is_told_what_it_loses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("c.yaml")
    path.write_text("datasets: {digits: {validation: 30}, mine: {size: 8}, cifar10-standardised: {zca_eps: 1}}")
    with pytest.raises(UsageError) as caught:
        load_campaign(path)
    whole = "is missing; the entry replaces the built-in {0} as a whole, so begin with its options, {1}"
    zca = "zca: true, zca_per_image: true, zca_relative: true"
    standard = f"{{source: cifar10, {zca}, augment: flip_rotate, variant_of: cifar10}}"
    assert [problem.removeprefix("c.yaml: ") for problem in caught.value.problems] == [
        "datasets.digits.source " + whole.format("digits", "{source: digits, augment: crop_scale_rotate}"),
        "datasets.mine.source is missing; give it a value",
        "datasets.cifar10-standardised.source " + whole.format("cifar10-standardised", standard),
    ]
    entries = "digits: {source: digits}, b: {source: digits, augment: flip}, c: {source: cifar10}, d: {source: digits}"
    path.write_text(
        f"datasets: {{{entries}}}\ntables: {{t: {{datasets: {{digits: [1], b: [1], c: [1]}}, methods: [random]}}}}"
    )
    load_checked(path)
    doubt = (
        'digits does not state augment, so it has augment "color_crop_cutout_flip_scale_rotate"; '
        'the built-in digits has augment "crop_scale_rotate"; state it\n'
    )
    other = "c does not state zca, so it has zca false; the built-in cifar10 has zca true; state it\n"
    lines = (f"satm: warning: c.yaml: datasets.{text}" for text in (doubt, other))
    assert capsys.readouterr().err == "".join(lines)
    assert main(["data", "--config", "c.yaml", "--dataset", "digits"]) == 0
    assert f"warning: {doubt}" in capsys.readouterr().out


def test_a_table_cannot_have_the_name_of_a_file_beside_another(tmp_path: Path) -> None:
    table = "{datasets: {digits: [1]}, methods: [random]}"
    path = tmp_path / "c.yaml"
    path.write_text(f"tables: {{t: {table}, t-paired: {table}}}")
    with pytest.raises(UsageError, match="'t-paired' is the file of paired differences beside the table 't'; rename"):
        load_campaign(path)
    path.write_text(f"tables: {{s: {table}, t-paired: {table}}}")
    load_campaign(path)


def test_paths_that_lead_nowhere_are_refused_before_any_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = {"x": "../theirs/x.pt", "y": "y.pt", "z": "$NO_SUCH_VARIABLE/z.pt", "unused": "../u.pt"}
    content = {
        "datasets": {
            "out": {"source": "folder", "path": "../d"},
            "later": {"source": "folder", "path": "$NO_SUCH_VARIABLE/../../d"},
            "absent": {"source": "folder", "path": "d"},
        },
        "methods": {name: {"method": "files", "images": path} for name, path in files.items()},
        "tables": {"t": {"datasets": {"digits": [1]}, "methods": ["x", "y", "z"], "seeds": [3]}},
    }
    with pytest.raises(UsageError) as caught:
        check(resolver(**content))
    assert [problem.removeprefix("test.yaml: ") for problem in caught.value.problems] == [
        "datasets.out: the path '../d' leads out of the working folder; if intended, write an absolute path",
        "table t: x on digits at ipc 1: the path '../theirs/x.pt' leads out of the working folder; if intended, write "
        "an absolute path",
        "table t: y on digits at ipc 1: y.pt does not exist; correct the path, or put the file there",
        "table t: z on digits at ipc 1: the path '$NO_SUCH_VARIABLE/z.pt' has an environment variable that is not set; "
        "set it or write the path out",
    ]
    layout = resolver().layout
    made = [layout.images("out"), *(layout.distilled(Cell("digits", 1, name, 3)) for name in "xz")]
    for path in (*made, "y.pt"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()
    check(resolver(**content))


def test_a_file_that_is_not_there_or_cannot_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read the configuration .*No such file"):
        load_campaign(tmp_path / "nothing.yaml")
    with pytest.raises(UsageError, match=r"my_file.yaml names the folder of results: .* rename it"):
        load_campaign(tmp_path / "my_file.yaml")


@pytest.mark.parametrize("path", CAMPAIGNS, ids=lambda path: path.stem)
def test_campaigns_of_the_checkout_are_valid(path: Path) -> None:
    check(load_campaign(path))
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(json.dumps(load_yaml(path))))


def test_the_schema_alone_refuses_a_wrong_option() -> None:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    jsonschema.Draft202012Validator.check_schema(validator.schema)
    assert validator.is_valid({"methods": {"mtt": {"iterations": 3}, "mine": {"method": "satm", "rho": 0.1}}})
    assert not validator.is_valid({"methods": {"mtt": {"rho": 3}}})
    assert not validator.is_valid({"methods": {"mine": {"method": "mtt", "rho": 0.1}}})
    assert not validator.is_valid({"methods": {"mine": {"rho": 0.1}}})
    assert validator.is_valid({"settings": [{"method": "mtt", "ipc": [1, 3], "options": {}}]})


@pytest.mark.parametrize("name", sorted(METHODS))
def test_only_methods_that_need_experts_name_some(name: str) -> None:
    assert (experts_of({"method": name}) is not None) == METHODS[name].needs_experts


def test_experts_of_a_method_are_its_own_or_the_default() -> None:
    assert experts_of({"method": "satm"}) == "sgd"
    assert experts_of({"method": "mtt", "experts": "flat"}) == "flat"


@pytest.mark.parametrize(("file", "row"), PRESETS, ids=[f"{file}-{index}" for index, (file, _) in enumerate(PRESETS)])
def test_a_preset_row_parses_and_has_a_source(file: str, row: dict) -> None:
    setting = parse(Setting, row, file)
    assert setting.source
    for name in setting.method if setting.stage == "distill" else ():
        resolve_method({"method": name, **setting.options})
    for name in setting.network:
        resolve_network({"network": name, **setting.options})
    if setting.stage == "experts":
        parse(config.ExpertsOptions, setting.options, file)
    if setting.stage == "evaluate":
        parse(config.EvaluateOptions, setting.options, file)


@pytest.mark.parametrize("method", ["mtt", "satm"])
def test_every_cell_of_the_papers_table_has_a_preset(method: str) -> None:
    paper = load_campaign(ROOT / "config" / "paper.yaml")
    for dataset, ipc, _, _ in paper.table("table2").cells() + paper.table("table3").cells():
        assert "lr_images" in paper.method(Cell(dataset, ipc, method)), (dataset, ipc)


def test_a_published_value_arrives_as_printed() -> None:
    paper = load_campaign(ROOT / "config" / "paper.yaml")
    assert paper.method(Cell("cifar100", 50, "satm")) == {
        "method": "satm",
        "iterations": 10000,
        "inner_steps": 80,
        "expert_epochs": 2,
        "max_start_epoch": 40,
        "batch_size": 500,
        "lr_images": 1000,
        "lr_step_size": 1e-5,
    }


def test_the_later_value_counts() -> None:
    preset = Setting(method=("mtt",), options={"momentum": 0.1, "inner_steps": 1, "iterations": 1})
    content = {
        "settings": [
            {"method": "mtt", "options": {"inner_steps": 2, "iterations": 2}},
            {"method": "mtt-mine", "dataset": "digits", "options": {"iterations": 3}},
            {"method": "mtt", "ipc": 10, "options": {"iterations": 4}},
        ],
        "methods": {"mtt-mine": {"method": "mtt", "augment": False}},
    }
    held = resolver((preset,), **content)
    plain = {"method": "mtt", "momentum": 0.1, "inner_steps": 2, "iterations": 2}
    assert held.method(Cell("digits", 1, "mtt")) == plain
    assert held.method(Cell("digits", 1, "mtt-mine"))["iterations"] == 3
    assert held.method(Cell("cifar10", 1, "mtt-mine"))["iterations"] == 2
    assert held.method(Cell("digits", 10, "mtt-mine"))["iterations"] == 4
    assert held.method(Cell("digits", 1, "mtt-mine"))["momentum"] == 0.1
    assert held.method(Cell("digits", 1, "satm")) == {"method": "satm"}
    own = resolver((preset,), **{**content, "methods": {"mtt": {"iterations": 5, "momentum": 0.2}}})
    assert own.method(Cell("digits", 10, "mtt")) == {
        "method": "mtt",
        "momentum": 0.2,
        "inner_steps": 2,
        "iterations": 5,
    }


def test_changing_resolved_options_does_not_change_later_ones() -> None:
    settings = [{"method": "mtt", "dataset": "digits", "options": {"iterations": 7}}]
    held = resolver(settings=settings, datasets={"flowers": {"source": "folder", "path": "x"}})
    found = held.method(Cell("digits", 1, "mtt"))
    assert found["iterations"] == 7
    found["iterations"] = 8
    assert held.method(Cell("digits", 1, "mtt"))["iterations"] == 7
    assert "iterations" not in held.method(Cell("flowers", 1, "mtt"))


def test_options_that_were_usable_once_are_refused_when_they_change() -> None:
    usable = resolver(methods={"mine": {"method": "mtt", "inner_steps": 4}})
    check(usable)
    check(usable)
    with pytest.raises(UsageError, match="inner_steps"):
        check(resolver(methods={"mine": {"method": "mtt", "inner_steps": "four"}}))


def test_experts_networks_and_evaluations_are_set_by_dataset() -> None:
    rows = [
        {"stage": "experts", "experts": "sgd", "dataset": "digits", "options": {"epochs": 7, "lr": 0.5}},
        {"stage": "network", "network": "convnet", "dataset": "digits", "options": {"width": 8, "depth": 2}},
        {"stage": "evaluate", "method": "mtt", "options": {"repeats": 2}},
    ]
    entries = {"wide": {"network": "convnet", "width": 64}}
    held = resolver(settings=rows, networks=entries, experts={"sgd": {"lr": 0.25}}, methods={"m": {"method": "mtt"}})
    assert (held.experts("sgd", "digits").epochs, held.experts("sgd", "digits").lr) == (7, 0.25)
    assert held.experts("sgd", "cifar10").epochs == config.ExpertsOptions().epochs
    assert held.network("convnet", "digits") == {"network": "convnet", "width": 8, "depth": 2}
    assert held.network("wide", "digits") == {"network": "convnet", "width": 64, "depth": 2}
    assert held.network("convnet", "cifar10") == {"network": "convnet"}
    assert [held.evaluation(Cell("digits", 1, name)).repeats for name in ("mtt", "m", "satm")] == [2, 2, 5]


def test_a_run_by_hand_uses_the_options_of_the_demo() -> None:
    demo, hand = load_campaign(ROOT / "config" / "demo.yaml"), load_campaign(None)
    for ipc in (1, 3, 10):
        for method in ("random", "mtt", "satm"):
            assert hand.method(Cell("digits", ipc, method)) == demo.method(Cell("digits", ipc, method))
    assert hand.experts("sgd", "digits") == demo.experts("sgd", "digits")
    assert hand.network("convnet", "digits") == demo.network("convnet", "digits") != {"network": "convnet"}


def test_numbers_may_be_written_as_in_papers(tmp_path: Path) -> None:
    path = tmp_path / "numbers.yaml"
    path.write_text("a: [1e-6, 1.5E+3, 2e5, 1.0e-6]\nb: [e5, 1e, v1e5, 3]")
    assert load_yaml(path) == {"a": [1e-6, 1500.0, 2e5, 1e-6], "b": ["e5", "1e", "v1e5", 3]}


def test_whole_numbers_fractions_and_names_may_be_written_in_either_form(tmp_path: Path) -> None:
    path = tmp_path / "numbers.yaml"
    path.write_text(
        "experts: {mine: {epochs: 1e3, lr: 1}}\n"
        f"tables: {{t: {{{CELL}, seeds_at: {{10: [0], 50: [1.0]}}}}}}\n"
        f"figures: {{f: {{kind: sweep, datasets: {{digits: [1]}}, axis: a, series: {{s: {{1: mtt, 0.5: mtt}}}}}}}}\n"
    )
    campaign = load_campaign(path).campaign
    assert (campaign.experts["mine"].epochs, campaign.experts["mine"].lr) == (1000, 1.0)
    assert campaign.tables["t"].seeds_at == {10: (0,), 50: (1,)}
    assert campaign.figures["f"].series == {"s": {1.0: "mtt", 0.5: "mtt"}}


def test_cells_of_a_table_come_in_its_order() -> None:
    table = TABLES["accuracy"](datasets={"d": (1, 10)}, methods=("a", "b"), seeds=(0, 1), seeds_at={10: (3,)})
    assert table.cells() == [
        *(("d", 1, method, seed) for method in "ab" for seed in (0, 1)),
        ("d", 10, "a", 3),
        ("d", 10, "b", 3),
    ]
    assert table.cells(("b",)) == [("d", 1, "b", 0), ("d", 1, "b", 1), ("d", 10, "b", 3)]


def test_paths_are_frozen() -> None:
    layout = Layout(root_of(Path("config/demo.yaml")))
    cell = Cell("digits", 10, "satm", 2)
    assert [
        layout.images("digits"),
        layout.zca("digits"),
        layout.experts_part("digits", "sgd", "0-4"),
        layout.manifest("digits", "sgd"),
        layout.distilled(cell),
        layout.metrics(cell),
        layout.evaluation(cell, "convnet"),
        layout.analysis("sharpness", cell),
        layout.table("table2"),
        layout.figure("figure1", "pdf"),
        layout.all("figures"),
    ] == [
        "results/demo/data/digits/images.safetensors",
        "results/demo/data/digits/zca.safetensors",
        "results/demo/experts/digits/sgd/part-0-4.json",
        "results/demo/experts/digits/sgd/manifest.json",
        "results/demo/distilled/digits/ipc-10/satm/seed-2/distilled.safetensors",
        "results/demo/distilled/digits/ipc-10/satm/seed-2/metrics.parquet",
        "results/demo/evaluation/digits/ipc-10/satm/seed-2/convnet.parquet",
        "results/demo/analysis/digits/ipc-10/satm/seed-2/sharpness.parquet",
        "results/demo/table2.csv",
        "results/demo/figures/figure1.pdf",
        "results/demo/figures/all",
    ]
    assert root_of(Path("config/paper.yaml")) == root_of(Path("elsewhere/paper.yaml")) == "results"


def test_parts_cover_every_expert_once() -> None:
    assert config.parts(config.ExpertsOptions(count=7, per_job=3)) == ["0-2", "3-5", "6-6"]
    assert config.parts(config.ExpertsOptions(count=2, per_job=10)) == ["0-1"]


def test_the_readme_of_the_campaigns_is_a_campaign(tmp_path: Path) -> None:
    text = (ROOT / "config" / "README.md").read_text()
    path = tmp_path / "readme.yaml"
    path.write_text(text.split("```yaml\n")[1].split("```")[0])
    held = load_campaign(path)
    check(held)
    assert set(load_yaml(path)) == set(Campaign.model_fields)
    assert len(held.table("table2").cells()) == 4 * (3 + 1)


def test_presets_are_read_in_the_order_of_their_names() -> None:
    assert [setting.source for setting in load_presets()] == [row["source"] for _, row in PRESETS]


def test_reading_a_campaign_imports_no_heavy_library() -> None:
    code = (
        "import sys, pathlib; from satm.workflow.campaigns import Campaigns; "
        f"held = Campaigns(pathlib.Path({str(ROOT)!r})).of('results/figures-cpu'); print(len(held.figures) > 40); "
        "print(sorted({'torch', 'snakemake', 'matplotlib', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "[]"]


TABLE_KIND = """
from typing import Literal
import pandas
from satm.config import TABLES
from satm.tables.base import TableKind
from satm.tables.render import Grid

@TABLES.named("largest")
class LargestTable(TableKind):
    kind: Literal["largest"] = "largest"
    least: int = 3

    def files(self, layout, name):
        return [layout.metrics(cell) for cell in self.cells()]

    def frame(self, reader, name):
        return pandas.DataFrame({"largest": [self.least + max(ipc for ipcs in self.datasets.values() for ipc in ipcs)]})

    def grid(self, reader, name, frame):
        return Grid(name, ["largest"], [[str(frame["largest"].iloc[0])]], (), reader.notes)
"""
FIGURE_KIND = """
from typing import Literal
import pandas
from satm.config import FIGURES
from satm.figures.base import CellsFigure, Drawn
from satm.figures.curves import Line, Panel, draw_panels

@FIGURES.named("dot")
class DotFigure(CellsFigure):
    kind: Literal["dot"] = "dot"

    def files(self, layout, tables):
        return [layout.distilled(cell) for cell in self.cells()]

    def draw(self, reader):
        panel = Panel("", "x", "y", [Line("dot", [1.0], [2.0])])
        return Drawn(draw_panels([[panel]], self.title, reader.notes), pandas.DataFrame({"x": [1]}))
"""


def test_a_file_alone_adds_a_kind_of_table_and_of_figure(tmp_path: Path) -> None:
    for room, text in (("tables", TABLE_KIND), ("figures", FIGURE_KIND)):
        (tmp_path / room).mkdir()
        (tmp_path / room / "added.py").write_text(text)
    cells = {"datasets": {"digits": [1, 4]}, "methods": ["random"]}
    tables = {"most": {"kind": "largest", **cells, "least": 5}}
    content = {"tables": tables, "figures": {"one": {"kind": "dot", **cells, "title": "a dot"}}}
    (tmp_path / "it.yaml").write_text(json.dumps(content))
    code = (
        "import sys, satm.tables, satm.figures; from pathlib import Path; from satm.cli import main; "
        "satm.tables.__path__.append('tables'); satm.figures.__path__.append('figures'); "
        "codes = [main([stage, '--config', 'it.yaml', '--name', name]) for stage, name in "
        "[('table', 'most'), ('figure', 'one'), ('table', 'overview')]]; "
        "from satm.workflow.jobs import campaigns_of, jobs; "
        "rules = {job.rule for job in jobs(campaigns_of(Path('it.yaml')), 'results/it')}; "
        "print(codes, rules >= {'table', 'figure', 'distill'})"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[0, 0, 0] True"
    assert (tmp_path / "results/it/most.csv").read_text() == "largest\n9\n"
    assert all((tmp_path / "results/it/figures" / f"one.{form}").is_file() for form in ("png", "pdf", "csv"))
