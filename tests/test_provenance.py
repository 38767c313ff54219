"""Tables refuse results that differ from the campaign, or whose inputs do, and say in what."""

import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, Refuse
from drawing import torch_generator
from PIL import Image
from safetensors import safe_open

from satm.cli import main
from satm.config import REVISIONS, Cell, Resolver, load_campaign, parse
from satm.config.campaign import Setting
from satm.config.source_files import source_state
from satm.data.images import ImageData, Split, load_images, save_images
from satm.errors import MissingRun, UsageError
from satm.results.columns import CONTINUAL, EVALUATION, METRICS, NAS, SHARPNESS
from satm.results.distilled import load_distilled, save_distilled
from satm.results.rows import read_rows, read_rows_metadata, write_rows
from satm.tables.reader import Reader
from satm.workflow import provenance
from satm.workflow.asked import Chosen, of_images, wildcards
from satm.workflow.campaigns import Campaigns
from satm.workflow.check import load_checked
from satm.workflow.provenance import Provenance, differing_options, stated_identity
from satm.workflow.rules import RULES

CONFIG = ("--config", "tiny.yaml", "--dataset", "digits")
NAMES = {"dataset": "digits", "ipc": 1, "method": "satm", "seed": 0}
CELL = (*CONFIG, "--ipc", "1", "--method", "satm")

MORE = """
  learned: {kind: continual, datasets: {digits: [1]}, methods: [satm], steps: 2, orders: 1, repeats: 1}
  found:
    kind: search
    datasets: {digits: [1]}
    methods: [satm]
    sample: 1
    sample_seed: 139
    width_factor: 0.125
    proxy: {epochs: 1, repeats: 1}
    real: {epochs: 1, repeats: 1, batch_size: 512, lr: 0.05}
"""
"""Tables of other kinds, of the same set."""
WHOLE = TINY.replace(
    "  - {method: satm, options",
    "  - {stage: analyse, options: {segments: 1, starts: [1], count: 1}}\n"
    "  - {stage: evaluate, method: full-strong, options: {epochs: 1}}\n"
    "  - {method: satm, options: {watch: test, evaluate_every: 3}}\n"
    "  - {method: satm, options",
) + MORE.lstrip("\n")

JOBS: dict[str, tuple[Mapping[str, object], tuple[str, ...]]] = {
    "distill": (NAMES, ("distill", *CELL)),
    "evaluate": ({**NAMES, "network": "convnet"}, ("evaluate", *CELL)),
    "variants": ({**NAMES, "network": "convnet"}, ("evaluate", *CELL, "--what", "variants")),
    "full": (
        {"dataset": "digits", "recipe": "strong", "network": "convnet"},
        ("evaluate", *CONFIG, "--what", "full"),
    ),
    "continual": ({**NAMES, "protocol": "learned"}, ("continual", *CELL, "--protocol", "learned")),
    "nas": ({**NAMES, "search": "found", "part": "0-0"}, ("nas", *CELL, "--search", "found")),
    "nas_real": (
        {"dataset": "digits", "search": "found", "part": "0-0"},
        ("nas", *CONFIG, "--search", "found", "--real"),
    ),
    "analysis": ({**NAMES, "what": "sharpness"}, ("analyse", *CELL)),
    "difficulty": (
        {"dataset": "digits", "experts": "sgd"},
        ("experts", *CONFIG, "--measure-difficulty"),
    ),
}
"""Names and command of one job of each rule."""
MADE_BEFORE: dict[str, Mapping[str, object]] = {
    "experts": {"dataset": "digits", "experts": "sgd"},
    "experts_part": {"dataset": "digits", "experts": "sgd", "part": "1-1"},
}
ALL = {rule: names for rule, (names, _) in JOBS.items()} | MADE_BEFORE
COLUMNS = {
    **{"distill": METRICS, "evaluate": EVALUATION, "variants": EVALUATION, "full": EVALUATION},
    **{"continual": CONTINUAL, "nas": NAS, "nas_real": NAS, "analysis": SHARPNESS},
}
"""Columns of the results that have rows."""


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a result of every kind."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.yaml").write_text(WHOLE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in (("data", *CONFIG), ("experts", *CONFIG), *(command for _, command in JOBS.values())):
            assert main(list(command)) == 0, command
    return folder


@pytest.fixture
def whole(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it as the current folder, free to be changed."""
    shutil.copytree(made, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def tiny(*changes: tuple[str, str]) -> Resolver:
    """Return the campaign after changes of its text."""
    text = WHOLE
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    Path("tiny.yaml").write_text(text)
    return load_campaign(Path("tiny.yaml"))


def difference(rule: str, resolver: Resolver) -> str | None:
    """Return in what the results of the job of a rule differ from what is asked for."""
    return Provenance(resolver).difference(
        rule, **({key: names for key, (names, _) in JOBS.items()} | MADE_BEFORE)[rule]
    )


def stated_fields(
    resolver: Resolver, rule: str, names: Mapping[str, object]
) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield each result of a job with the identity that it states."""
    for pattern in RULES[rule].outputs.values():
        path = Path(pattern.format(root=resolver.layout.root, **names))
        if path.suffix == ".parquet":
            yield path, read_rows_metadata(path, COLUMNS[rule])["options"]
        elif path.suffix == ".json":
            yield path, json.loads(path.read_text())["identity"]
        else:
            with safe_open(path, framework="numpy") as file:
                yield path, json.loads(file.metadata()["satm"])


def lacking(asked: Mapping[str, Any], stated: Mapping[str, Any], place: str = "") -> list[str]:
    """Return the fields and options that are asked for and not stated."""
    found = []
    for name, value in asked.items():
        if name not in stated:
            found.append(place + name)
        elif isinstance(value, Chosen):
            found += [f"{place}{name}.{each}" for each in value.values if each not in stated[name]]
        elif isinstance(value, Mapping):
            found += lacking(value, stated[name], f"{place}{name}.")
    return found


NOT_IN_SETS = {"axes", "network", "looks", "experts", "experts_count", "augmentation", "images"}
"""Fields that only the metrics beside a synthetic set state."""


def test_a_result_states_everything_that_is_asked_of_it(whole: Path) -> None:
    """What is not stated cannot be compared."""
    resolver = tiny()
    for rule, names in ALL.items():
        options = RULES[rule].options
        assert options is not None
        asked = options(resolver, wildcards(names))
        for path, stated in stated_fields(resolver, rule, names):
            missed = lacking(asked, stated)
            if path.name == "distilled.safetensors":
                missed = [field for field in missed if field not in NOT_IN_SETS]
            assert missed == [], (path, missed)


def leaves(asked: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the place of every value that is asked for."""
    for name, value in asked.items():
        inner = value.values if isinstance(value, Chosen) else value
        if isinstance(inner, Mapping) and inner:
            yield from leaves(inner, (*path, name))
        else:
            yield (*path, name)


def test_every_value_that_is_asked_for_is_compared(whole: Path) -> None:
    """Each one that a result states is changed, alone; nothing else is."""
    resolver = tiny()
    count = 0
    for rule, names in ALL.items():
        options = RULES[rule].options
        assert options is not None
        asked = options(resolver, wildcards(names))
        for path, stated in stated_fields(resolver, rule, names):
            assert differing_options(asked, stated) == []
            for *outer, last in leaves(asked):
                changed = json.loads(json.dumps(stated))
                inner = changed
                for name in outer:
                    inner = inner.get(name, {}) if isinstance(inner, dict) else {}
                if last in inner:
                    inner[last] = "another"
                    [told] = differing_options(asked, changed)
                    assert ".".join([*outer, last]) in told and "found 'another'" in told, path
                    count += 1
    assert count > 800


@pytest.mark.parametrize("rule", [*MADE_BEFORE, *JOBS])
def test_what_the_stages_have_made_is_what_is_asked_for(whole: Path, rule: str) -> None:
    assert difference(rule, tiny()) is None


NETWORK = ("network: convnet, options: {depth: 1, width: 4}", "network: convnet, options: {depth: 1, width: 8}")
AUGMENTED = ("digits: {source: digits, augment: crop_scale_rotate}", "digits: {source: digits, augment: crop}")
RECIPE = ("epochs: 3, lr: 0.05", "epochs: 3, lr: 0.06")
RHO = ("rho: 0.05", "rho: 0.06")
"""Changes of the campaign, each of one value."""
MORE_EXPERTS = ("count: 2, epochs: 3", "count: 3, epochs: 3")
WATCHED = ("repeats: 2, epochs: 3", "repeats: 2, epochs: 4")
AT_SET = ("evaluate", "variants", "continual", "nas", "analysis")


@pytest.mark.parametrize(
    ("rule", "change", "told"),
    [
        ("distill", RHO, "options.rho: expected 0.06, found 0.05"),
        ("distill", ("{iterations: 3,", "{iterations: 4,"), "options.iterations: expected 4, found 3"),
        ("distill", NETWORK, "network.width: expected 8, found 4"),
        ("distill", WATCHED, "looks.epochs: expected 4, found 3"),
        ("distill", ("watch: test", "watch: null"), "options.watch: expected None, found 'test'"),
        ("evaluate", WATCHED, "options.epochs: expected 4, found 3"),
        ("evaluate", NETWORK, "network.width: expected 8, found 4"),
        ("variants", ("repeats: 2, epochs: 3", "repeats: 3, epochs: 3"), "options.repeats: expected 3, found 2"),
        ("full", ("full-strong, options: {epochs: 1}", "full-strong, options: {epochs: 2}"), "options.epochs"),
        ("full", NETWORK, "network.width: expected 8, found 4"),
        ("continual", ("steps: 2, orders: 1", "steps: 5, orders: 1"), "options.steps: expected 5, found 2"),
        ("nas", ("width_factor: 0.125", "width_factor: 0.25"), "width_factor: expected 0.25, found 0.125"),
        ("nas", ("sample_seed: 139", "sample_seed: 138"), "sample_seed: expected 138, found 139"),
        ("nas", ("proxy: {epochs: 1", "proxy: {epochs: 2"), "options.epochs: expected 2, found 1"),
        ("nas_real", ("real: {epochs: 1", "real: {epochs: 2"), "options.epochs: expected 2, found 1"),
        ("analysis", ("segments: 1", "segments: 2"), "measurement.segments: expected 2, found 1"),
        ("experts", RECIPE, "recipe.lr: expected 0.06, found 0.05"),
        ("experts", NETWORK, "network.width: expected 8, found 4"),
        ("experts_part", RECIPE, "recipe.lr: expected 0.06, found 0.05"),
        ("difficulty", RECIPE, "identity.recipe.lr: expected 0.06, found 0.05"),
        *((rule, AUGMENTED, "augmentation: expected ['crop', ") for rule in ("distill", "experts", "full", "nas_real")),
        *((rule, AUGMENTED, "augmentation: expected ['crop', ") for rule in AT_SET),
        *((rule, RHO, "rho: expected 0.06, found 0.05") for rule in AT_SET),
        *((rule, RECIPE, "recipe.lr: expected 0.06, found 0.05") for rule in ("distill", *AT_SET)),
        ("full", RHO, None),
        ("nas_real", RECIPE, None),
        ("nas", WATCHED, "its synthetic set "),
        ("experts", ("count: 2, epochs: 3", "count: 3, epochs: 3"), "it lists 2 experts, expected 3"),
        *(
            (rule, ("count: 2, epochs: 3", "count: 3, epochs: 3"), "experts_count")
            for rule in ("distill", "evaluate", "variants")
        ),
        *((rule, ("per_job: 1", "per_job: 2"), None) for rule in ("experts", "distill", "evaluate")),
        *((rule, ("methods: [random, mtt, satm]", "methods: [satm]"), None) for rule in JOBS),
    ],
    ids=lambda value: value if value is None or isinstance(value, str) else value[1],
)
def test_a_change_of_the_campaign_is_named(whole: Path, rule: str, change: tuple[str, str], told: str | None) -> None:
    found = difference(rule, tiny(change))
    if told is None:
        assert found is None
    else:
        assert found is not None and told in found


@pytest.mark.parametrize("rule", [rule for rule in JOBS if rule != "difficulty"])
def test_a_change_of_the_code_is_named(whole: Path, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = RULES[rule].stage
    monkeypatch.setitem(REVISIONS, stage, REVISIONS[stage] + 1)
    found = difference(rule, tiny())
    assert found is not None and f"revision: expected {REVISIONS[stage]}, found" in found


def test_a_preset_that_changes_is_named(whole: Path) -> None:
    """Rows of presets come before those of the campaign, and reach results in the same way."""
    resolver = tiny()
    row = parse(Setting, {"method": "satm", "options": {"lr_step_size": 1e-7}}, "a preset")
    others = resolver.settings[: -len(resolver.campaign.settings)]
    preset = Resolver(resolver.campaign, (*others, row), resolver.layout.root, resolver.path)
    found = difference("distill", preset)
    assert found is not None and "options.lr_step_size: expected 1e-07" in found


# Inputs


@pytest.mark.parametrize("rule", AT_SET)
def test_a_replaced_set_is_named(whole: Path, rule: str) -> None:
    """A set of the same options with other bytes, such as one of another machine."""
    resolver = tiny()
    path = Path(resolver.layout.distilled(Cell("digits", 1, "satm", 0)))
    held = load_distilled(path)
    save_distilled(path, replace(held, images=held.images + 1))
    assert difference(rule, resolver) == f"it is of another synthetic set than {path}"
    assert difference("distill", resolver) is None
    path.unlink()
    assert difference(rule, resolver) is None, "nothing to compare with; the options of the set are stated"


@pytest.mark.parametrize("rule", ["distill", *AT_SET])
def test_replaced_experts_are_named(whole: Path, rule: str) -> None:
    resolver = tiny()
    path = Path(resolver.layout.manifest("digits", "sgd"))
    content = json.loads(path.read_text())
    content["identity"]["data"] = "other"
    path.write_text(json.dumps(content))
    found = difference(rule, resolver)
    assert found is not None and f"it is of other experts than {path}: data: expected 'other', found " in found
    path.unlink()
    assert difference(rule, resolver) is None


@pytest.mark.parametrize("rule", ["distill", *AT_SET, "full", "nas_real", "experts", "difficulty"])
def test_other_images_are_named(whole: Path, rule: str) -> None:
    resolver = tiny()
    images = Path(resolver.layout.images("digits"))
    assert main(["data", "--config", "tiny.yaml", "--dataset", "held"]) == 0
    shutil.copy(Path(resolver.layout.images("held")), images)
    found = difference(rule, resolver)
    assert found is not None and "options.validation: expected 0, found 5" in found, found


def test_results_of_another_space_are_named(whole: Path) -> None:
    resolver = tiny(("digits: {source: digits, augment", "digits: {source: digits, zca: true, augment"))
    for rule in ("distill", "evaluate", "full", "experts", "analysis"):
        found = difference(rule, resolver)
        assert found is not None and "preprocessing.space: expected 'whitened', found 'normalised'" in found, rule


# Tables


@pytest.mark.parametrize("rule", list(COLUMNS))
def test_a_table_refuses_what_differs_with_the_command_that_makes_it(whole: Path, rule: str) -> None:
    names, command = JOBS[rule]
    resolver = tiny(AUGMENTED)
    with pytest.raises(MissingRun, match=r"is not what the campaign asks for: (experts\.)?augmentation: ") as caught:
        Reader(resolver).run(rule, COLUMNS[rule], names)
    told = str(caught.value).partition(" with: ")[2].split()
    # Experts come before the sets that match them, and before what is measured at these.
    assert told[:4] == ["python", "-m", "satm", "experts" if rule in ("distill", *AT_SET) else command[0]]
    assert told[-1] == "--overwrite" and "\n" not in str(caught.value)
    partial = Reader(resolver, partial=True)
    assert partial.attempt(partial.run, rule, COLUMNS[rule], names) is None
    assert partial.notes[0].startswith("Left out: ")


def test_what_a_refused_table_says_to_do_mends_it(whole: Path, refused: Refuse) -> None:
    change = ("methods: [random, mtt, satm]", "methods: [satm]")
    tiny(change, WATCHED, ("watch: test, ", ""))
    for stage in ("distill", "evaluate"):
        told = refused("table", "--config", "tiny.yaml")
        command = told.partition(" with: python -m satm ")[2].partition(";")[0].split()
        assert command[0] == stage and command[-1] == "--overwrite", told
        assert main(command) == 0
    assert main(["table", "--config", "tiny.yaml"]) == 0


def test_a_refused_table_or_figure_says_what_else_can_be_done(whole: Path, refused: Refuse) -> None:
    tiny(WATCHED)
    figure = "synthetic-digits-ipc-1"
    partial, everything = (
        "; or leave it out with --partial\n",
        "everything that is missing with: snakemake --profile local",
    )
    told = refused("table", "--config", "tiny.yaml")
    assert told.endswith(partial) and "snakemake" not in told
    Path("Snakefile").touch()
    assert f"; or {everything} results/tiny/table2.csv --configfile tiny.yaml{partial}" in refused(
        "table", "--config", "tiny.yaml"
    )
    shutil.rmtree("results/tiny/distilled")
    assert f"; or {everything} results/tiny/figures/{figure}.png --configfile tiny.yaml{partial}" in refused(
        "figure", "--config", "tiny.yaml", "--name", figure
    )
    assert main(["table", "--config", "tiny.yaml", "--partial"]) == 0


def test_results_of_versions_that_state_less_are_shown(whole: Path) -> None:
    """A field that is not stated is not compared; an option that is not stated had its default."""
    resolver = tiny()
    names = JOBS["evaluate"][0]
    path = Path(resolver.layout.evaluation(Cell("digits", 1, "satm", 0), "convnet"))
    rows = read_rows(path, EVALUATION).to_dict("records")
    whole_identity = read_rows_metadata(path, EVALUATION)["options"]
    for field in ("network", "distillations", "augmentation", "revision"):
        less = {name: value for name, value in whole_identity.items() if name != field}
        write_rows(path, rows, EVALUATION, {"options": less})  # type: ignore[arg-type]
        assert len(Reader(resolver).run("evaluate", EVALUATION, names)[0]) == 2
    options = {name: value for name, value in whole_identity["options"].items() if name != "flat_rho"}
    write_rows(path, rows, EVALUATION, {"options": {**whole_identity, "options": options}})  # type: ignore[arg-type]
    assert len(Reader(resolver).run("evaluate", EVALUATION, names)[0]) == 2
    flat = tiny(("repeats: 2, epochs: 3", "repeats: 2, flat_rho: 0.1, epochs: 3"))
    found = Provenance(flat).difference("evaluate", **names)
    assert found is not None and "options.flat_rho: expected 0.1, found 0.0" in found


def test_options_of_the_images_are_compared_where_the_images_are_not(whole: Path) -> None:
    """As after results were copied to another machine."""
    shutil.rmtree(Path(tiny().layout.root, "data"))
    for rule in ("evaluate", "full", "continual", "nas", "nas_real", "analysis"):
        assert difference(rule, tiny()) is None
        found = difference(rule, tiny(("digits: {source: digits,", "digits: {source: digits, validation: 3,")))
        assert found is not None and "images.validation: expected 3, found 0" in found


def write_picture(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), shade).save(path)


def write_set(folder: Path, seed: int = 1) -> None:
    """Write a set as MTT's code does: images, labels and step size in three files."""
    folder.mkdir(exist_ok=True)
    torch.save(torch.randn(10, 1, 8, 8, generator=torch_generator(seed)), folder / "images_best.pt")
    torch.save(torch.arange(10), folder / "labels_best.pt")
    torch.save(torch.tensor(0.1), folder / "lr_best.pt")


PHOTOS = """
datasets: {photos: {source: folder, path: photos, size: 8, augment: crop}}
settings:
  - {stage: network, network: convnet, options: {depth: 1, width: 4}}
  - {stage: evaluate, options: {repeats: 1, epochs: 1}}
tables: {table2: {datasets: {photos: [1]}, methods: [random]}}
"""
"""A campaign on folders of images."""
IMAGES = Path("results/tiny/data/photos/images.safetensors")
PHOTO = {"dataset": "photos"}
ONLY = ("--config", "tiny.yaml", "--dataset", "photos", "--ipc", "1", "--method", "random")


def encoded_again() -> None:
    """Write an image with the same pixels in fewer bytes."""
    path = Path("photos/train/cat/0.png")
    with Image.open(path) as image:
        copy = Image.fromarray(np.asarray(image))
    copy.save(path, compress_level=0)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The images and the table of such a campaign, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for shade, (part, label, number) in enumerate(itertools.product(("train", "test"), ("ant", "cat"), range(3))):
        write_picture(Path(f"photos/{part}/{label}/{number}.png"), 40 + 15 * shade)
    Path("tiny.yaml").write_text(PHOTOS)
    for command in (("data", *ONLY[:4]), ("distill", *ONLY), ("evaluate", *ONLY), ("table", *ONLY[:2])):
        assert main([*command]) == 0, command
    return tmp_path


def more() -> None:
    write_picture(Path("photos/train/cat/9.png"), 250)


def renamed() -> None:
    Path("photos/train/ant/0.png").rename("photos/train/ant/10.png")


def dead_link() -> None:
    Path("photos/train/ant/0.png").unlink()
    Path("photos/train/ant/0.png").symlink_to("nowhere")


COUNTED = r"\(then 12 files, [\d,]+ bytes in total, now {} files, [\d,]+ bytes in total\)"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (more, COUNTED.format(13)),
        (lambda: shutil.rmtree("photos/test/ant"), COUNTED.format(9)),
        (encoded_again, COUNTED.format(12)),
        (dead_link, COUNTED.format(12)),
        (renamed, r"\(as many, but of other names or sizes\)"),
    ],
)
def test_files_that_changed_since_their_images_were_stored_are_noticed(
    photos: Path, refused: Refuse, capsys: pytest.CaptureFixture[str], change: Callable[[], object], told: str
) -> None:
    change()
    told = f"the files in photos have changed since the images were made {told}"
    again = "python -m satm data --config tiny.yaml --dataset photos"
    advice = r"to keep the images as they are, add `allow: \[changed-files\]` to the dataset's options"
    whole = f"datasets.photos: the images {IMAGES} are out of date: {told}; {advice}; to make them again: {again}$"
    with pytest.raises(UsageError, match=whole):
        load_checked(Path("tiny.yaml"))
    stage = refused("evaluate", *ONLY, "--overwrite")
    assert re.search(
        f"the images {IMAGES} are not those that are asked for: {told}; {advice}; make it with: {again}$", stage
    )
    text = refused("table", *ONLY[:2])
    assert re.search(f"the images {IMAGES} are out of date: {told}; {advice}; begin with: {again}; then ", text)
    assert "begin" not in refused("figure", *ONLY[:2], "--name", "synthetic-photos-ipc-1").split("; or ")[1]
    Path("tiny.yaml").write_text(PHOTOS.replace("size: 8", "size: 8, allow: [changed-files]"))
    capsys.readouterr()
    load_checked(Path("tiny.yaml"))
    assert re.search(f"^satm: warning: tiny.yaml: datasets.photos: {told}$", capsys.readouterr().err, re.MULTILINE)
    assert main(["table", *ONLY[:2]]) == 0 and main(["evaluate", *ONLY, "--overwrite"]) == 0
    assert re.search(f"Doubtful: images of photos: {told}", Path("results/tiny/table2.md").read_text())
    assert re.search(f"warning: images of photos: {told}", capsys.readouterr().out)
    Path("tiny.yaml").write_text(PHOTOS.replace("size: 8", "size: 9"))
    load_checked(Path("tiny.yaml"))  # they are made again in any case


def junk() -> None:
    Path("photos/train/cat/Thumbs.db").write_text("junk")
    Path("photos/train/cat/notes.txt").write_text("junk")
    write_picture(Path("photos/elsewhere/1.png"), 5)
    os.utime("photos/train/cat/0.png", (1, 1))


def moved() -> None:
    shutil.move("photos", "else")
    Path("tiny.yaml").write_text(PHOTOS.replace("path: photos", f"path: {Path('else').absolute()}"))


@pytest.mark.parametrize(
    "change", [junk, moved, lambda: shutil.rmtree("photos"), lambda: shutil.move("photos", "else")]
)
def test_what_changes_no_image_or_cannot_be_compared_is_no_change(
    photos: Path, capsys: pytest.CaptureFixture[str], change: Callable[[], object]
) -> None:
    made = Campaigns(None, [Path("tiny.yaml")]).options("images", wildcards({"root": "results/tiny", **PHOTO}))
    change()
    load_checked(Path("tiny.yaml"))
    assert main(["table", *ONLY[:2]]) == 0
    capsys.readouterr()
    assert main(["evaluate", *ONLY]) == 0
    assert "is finished already" in capsys.readouterr().out
    campaigns = Campaigns(None, [Path("tiny.yaml")])
    assert campaigns.options("images", wildcards({"root": "results/tiny", **PHOTO})) == made


def test_images_of_changed_files_repeat_what_their_pixels_change(photos: Path, refused: Refuse) -> None:
    before, image = IMAGES.stat().st_mtime_ns, Path("photos/train/cat/0.png").read_bytes()
    encoded_again()
    assert main(["data", *ONLY[:4]]) == 0
    load_checked(Path("tiny.yaml"))
    assert main(["table", *ONLY[:2]]) == 0
    more()
    told = "the images are others now; add --overwrite to replace it, and what was made with these images is to be made"
    assert told in refused("data", *ONLY[:4])
    assert main(["data", *ONLY[:4], "--overwrite"]) == 0
    load_checked(Path("tiny.yaml"))
    assert f"it was made with other images than those in {IMAGES} today; begin with: " in refused("table", *ONLY[:2])
    Path("photos/train/cat/9.png").unlink()
    Path("photos/train/cat/0.png").write_bytes(image)
    assert main(["data", *ONLY[:4], "--overwrite"]) == 0
    assert main(["table", *ONLY[:2]]) == 0
    assert IMAGES.stat().st_mtime_ns == before, "a later time would make the workflow repeat everything"


def test_changed_files_of_a_built_in_dataset_are_accepted_by_an_entry_with_all_its_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The advice, followed, changes nothing else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SATM_DATA", str(tmp_path))
    Path("cifar10").mkdir()
    for part in ("train", "test"):
        Path(f"cifar10/{part}.parquet").write_bytes(b"one")
    Path("c.yaml").write_text("tables: {t: {datasets: {cifar10: [1]}, methods: [random]}}")
    resolver = load_campaign(Path("c.yaml"))
    options = resolver.dataset("cifar10")
    splits = (Split(torch.zeros(1, 3, 4, 4).byte(), torch.zeros(1).long()) for _ in range(3))
    images = ImageData("cifar10", *splits, ("a",), (0.5,) * 3, (0.5,) * 3, "")
    stated = {"options": of_images(resolver, wildcards({"dataset": "cifar10"}))["options"].values}
    path = Path(resolver.layout.images("cifar10"))
    save_images(path, images, {**stated, "source": source_state(options)})
    assert Provenance(resolver).refused_files("cifar10") is None
    Path("cifar10/test.parquet").write_bytes(b"others")
    found = Provenance(resolver).refused_files("cifar10")
    entry = "datasets: {cifar10: {source: cifar10, zca: true, allow: [changed-files]}}"
    assert found is not None and found.endswith(f"to keep the images as they are, add `{entry}` to the campaign")
    Path("c.yaml").write_text(f"{Path('c.yaml').read_text()}\n{entry}\n")
    resolver = load_checked(Path("c.yaml"))
    assert resolver.dataset("cifar10").model_dump() == options.model_dump()
    assert Provenance(resolver).refused_files("cifar10") is None


def test_sources_are_read_once_in_a_comparison_of_many_results(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = list[str]()
    monkeypatch.setattr(provenance, "source_state", lambda options: read.append(options.path) or source_state(options))
    compared = Provenance(load_campaign(Path("tiny.yaml")))
    for rule in ("images", "distill", "evaluate"):
        assert compared.difference(rule, **PHOTO, ipc=1, method="random", seed=0, network="convnet") is None
    assert read == ["photos"]


@pytest.mark.parametrize(
    "changed", ["table2.md", "table2.csv", "table2-paired.csv", "figures/synthetic-photos-ipc-1.pdf"]
)
def test_a_form_of_a_table_or_figure_that_was_changed_or_deleted_is_made_again(photos: Path, changed: str) -> None:
    name = "synthetic-photos-ipc-1"
    assert main(["figure", *ONLY[:2], "--name", name]) == 0
    asked = ("figure", name) if changed.startswith("figures") else ("table", "table2")

    def found() -> str | None:
        return Provenance(load_campaign(Path("tiny.yaml"))).differing_exhibit(*asked, partial=False)

    path = Path("results/tiny", changed)
    content = path.read_bytes()
    path.write_bytes(content + b"99.9")
    assert found() == f"{path} is not the file that was made with it"
    path.write_bytes(content)
    assert found() is None
    path.unlink()
    assert changed == "table2-paired.csv" or found() is None, "Snakemake makes outputs again that are missing"
    assert changed != "table2-paired.csv" or found() == f"{path} is not the file that was made with it"


def test_a_table_of_another_kind_leaves_no_file_of_the_former(photos: Path) -> None:
    assert Path("results/tiny/table2-paired.csv").is_file()
    entry = "table2: {kind: robustness, datasets: {photos: [1]}, methods: [random]}"
    Path("tiny.yaml").write_text(PHOTOS.replace("table2: {datasets: {photos: [1]}, methods: [random]}", entry))
    assert main(["table", *ONLY[:2], "--partial"]) == 0
    assert not Path("results/tiny/table2-paired.csv").exists() and Path("results/tiny/table2.csv").is_file()


def test_missing_images_are_noted_below_a_table(photos: Path) -> None:
    IMAGES.unlink()
    assert main(["table", *ONLY[:2]]) == 0
    told = f"Missing image files: 1, so their results could not be compared with them. First: {IMAGES}."
    assert told in Path("results/tiny/table2.md").read_text()


@pytest.mark.parametrize("make", ["images", "zca"])
def test_a_damaged_file_of_images_or_whitening_is_replaced(whole: Path, refused: Refuse, make: str) -> None:
    tiny(("white: {source: digits,", "white: {source: digits, size: 8,"))
    data = ("data", *CONFIG[:2], "--dataset", "white")
    assert main([*data]) == 0
    path = Path(f"results/tiny/data/white/{make}.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[:500])
    assert "delete it and make it again" in refused(*data)
    assert main([*data, "--make", make, "--overwrite"]) == 0
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("options", "change", "told"),
    [
        ("images: a/images_best.pt", lambda: write_set(Path("a"), 2), "file than a/images_best.pt"),
        (
            "images: a/images_best.pt",
            lambda: torch.save(torch.arange(10).flip(0), "a/labels_best.pt"),
            "file than a/labels_best.pt",
        ),
        (
            "images: a/images_best.pt, labels_from: b/labels_best.pt",
            lambda: torch.save(torch.arange(10).flip(0), "b/labels_best.pt"),
            "file than b/labels_best.pt",
        ),
        (
            "images: a/images_best.pt, labels_from: b/labels_best.pt",
            lambda: torch.save(torch.arange(10).flip(0), "a/labels_best.pt"),
            None,
        ),
        (
            "images: a/images_best.pt, step_size_from: b/lr_best.pt",
            lambda: torch.save(torch.tensor(0.2), "b/lr_best.pt"),
            "file than b/lr_best.pt",
        ),
        ("images: c", lambda: write_picture(Path("c/3/only.png"), 200), "folder than c"),
        ("images: a/images_best.pt", lambda: shutil.rmtree("a"), None),  # nothing to compare with
    ],
)
def test_the_files_that_a_set_was_read_from_are_compared(
    campaign: Path, options: str, change: Callable[[], object], told: str | None
) -> None:
    text = Path("tiny.yaml").read_text()
    Path("tiny.yaml").write_text(f"{text}methods: {{theirs: {{method: files, {options}}}}}\n")
    cell = ("--config", "tiny.yaml", "--dataset", "digits", "--ipc", "1", "--method", "theirs")
    for folder in ("a", "b"):
        write_set(Path(folder))
    for number in range(10):
        write_picture(Path(f"c/{number}/only.png"), 10 * number)
    assert main(["distill", *cell]) == 0 and main(["evaluate", *cell]) == 0
    names = {"dataset": "digits", "ipc": 1, "method": "theirs", "seed": 0, "network": "convnet"}
    resolver = load_campaign(Path("tiny.yaml"))
    assert Provenance(resolver).difference("evaluate", **names) is None
    change()
    found = Provenance(resolver).difference("evaluate", **names)
    if told is None:
        assert found is None
    else:
        assert found is not None and f"it was read from another {told} is today" in found


@pytest.mark.parametrize(("option", "text"), [("zca_eps", "eps"), ("zca_per_image", "per_image")])
def test_options_of_the_whitening_are_compared(whole: Path, option: str, text: str) -> None:
    """As soon as they change, not only once the whitening was fitted again."""
    white = ("digits: {source: digits, augment", "digits: {source: digits, zca: true, augment")
    resolver = tiny(white)
    cell = ("--config", "tiny.yaml", "--dataset", "digits", "--ipc", "1", "--method", "random", "--overwrite")
    assert main(["data", *cell[:4]]) == 0 and main(["distill", *cell]) == 0
    names = {"dataset": "digits", "ipc": 1, "method": "random", "seed": 0}
    assert Provenance(resolver).difference("distill", **names) is None
    value = "0.5" if option == "zca_eps" else "true"
    changed = tiny((white[0], f"digits: {{source: digits, zca: true, {option}: {value}, augment"))
    found = Provenance(changed).difference("distill", **names)
    assert found is not None and f"was fitted with other options: {text}: expected" in found
    assert Provenance(changed).difference("images", dataset="digits") is None
    own = Provenance(changed).difference("zca", dataset="digits")
    assert own is not None and own.startswith(f"{text}: expected")


def test_a_picture_whose_whitening_is_missing_says_how_to_make_it(whole: Path, refused: Refuse) -> None:
    resolver = tiny(
        ("digits: {source: digits, augment", "digits: {source: digits, zca: true, augment"),
        ("tables:\n", "figures: {seen: {kind: images, datasets: {digits: [1]}, methods: [random]}}\ntables:\n"),
    )
    cell = ("--config", "tiny.yaml", "--dataset", "digits", "--ipc", "1", "--method", "random", "--overwrite")
    draw = ("figure", "--config", "tiny.yaml", "--name", "seen")
    assert main(["data", *cell[:4]]) == 0 and main(["distill", *cell]) == 0 and main(list(draw)) == 0
    whitening = Path(resolver.layout.zca("digits"))
    assert str(whitening) in RULES["figure"].inputs["measured"](resolver, wildcards({"figure": draw[-1]}))
    whitening.unlink()
    told = refused(*draw)
    assert "zca.safetensors is missing; make it with: python -m satm data --config tiny.yaml" in told
    assert main(told.partition(" with: python -m satm ")[2].partition(";")[0].split()) == 0
    assert main(list(draw)) == 0


def test_experts_that_were_rated_otherwise_are_noticed(campaign: Path) -> None:
    """A curriculum depends on the difficulty of the images for other experts."""
    curriculum = "{count: 1, epochs: 1, order: curriculum, difficulty: sgd}"
    text = Path("tiny.yaml").read_text().replace("{count: 1, epochs: 1}", curriculum)
    Path("tiny.yaml").write_text(text)
    digits, names = ("--config", "tiny.yaml", "--dataset", "digits"), {"dataset": "digits", "experts": "other"}
    difficulty = ("experts", *digits, "--experts", "sgd", "--measure-difficulty")
    assert main(list(difficulty)) == 0 and main(["experts", *digits, "--experts", "other"]) == 0

    def found() -> str | None:
        resolver = load_campaign(Path("tiny.yaml"))
        return Provenance(resolver).difference("experts", **names)

    assert found() is None
    Path("tiny.yaml").write_text(text.replace("sgd: {count: 2,", "sgd: {count: 2, difficulty_count: 1,"))
    assert "difficulty.safetensors, which differs: experts: expected 1, found 2" in str(found())
    assert main([*difficulty, "--overwrite"]) == 0
    assert "its experts were trained by another difficulty than results/tiny/experts/digits/sgd/" in str(found())
    assert main(["experts", *digits, "--experts", "other", "--overwrite"]) == 0
    assert found() is None


def test_doubts_reach_the_log_the_metadata_and_the_table(campaign: Path) -> None:
    images = Path("results/tiny/data/digits/images.safetensors")
    stated = stated_identity(images)
    assert stated is not None
    save_images(images, replace(load_images(images), doubts=("they are odd",)), {"options": stated["options"]})
    cell = ("--config", "tiny.yaml", "--dataset", "digits", "--ipc", "1", "--method", "satm")
    assert main(["evaluate", *cell, "--overwrite"]) == 0
    path = Path("results/tiny/evaluation/digits/ipc-1/satm/seed-0/convnet.parquet")
    assert read_rows_metadata(path, EVALUATION)["doubts"] == ["images of digits: they are odd"]
    log = Path("results/tiny/logs/evaluate/digits/ipc-1/satm/seed-0/convnet.log").read_text()
    assert re.search(r"^\d\d:\d\d:\d\d warning: images of digits: they are odd$", log, re.MULTILINE)
    assert main(["table", "--config", "tiny.yaml", "--partial"]) == 0
    assert "Doubtful: images of digits: they are odd." in Path("results/tiny/table2.md").read_text()


def test_results_whose_sets_are_missing_are_marked_in_the_table(campaign: Path) -> None:
    path = "results/tiny/distilled/digits/ipc-1/satm/seed-0/distilled.safetensors"
    Path(path).unlink()
    assert main(["table", "--config", "tiny.yaml", "--partial"]) == 0
    told = f"Missing synthetic sets: 1, so their results could not be compared with them. First: {path}."
    assert told in Path("results/tiny/table2.md").read_text()


def test_a_distillation_that_gave_up_is_said_to_have_failed_and_keeps_its_column(
    campaign: Path, refused: Refuse
) -> None:
    text = TINY.replace("methods: [random, mtt, satm]", "methods: [mtt, satm]")
    Path("tiny.yaml").write_text(text.replace("lr_images: 1, ", "lr_images: 1, explode: 1e-9, max_rollbacks: 0, "))
    cell = ("--config", "tiny.yaml", "--dataset", "digits", "--ipc", "1", "--method", "mtt")
    told = refused("distill", *cell, code=1).removeprefix("satm: error: ").rstrip("\n")
    assert told.startswith("in iteration 1 the loss of ")
    failed = "is missing because distill failed ("
    assert f"{failed}{told[:60]}" in refused("table", "--config", "tiny.yaml")
    figure = refused("figure", "--config", "tiny.yaml", "--name", "synthetic-digits-ipc-1")
    assert f"{failed}{told[:60]}" in figure
    assert main(["table", "--config", "tiny.yaml", "--partial"]) == 0
    table = Path("results/tiny/table2.md").read_text()
    assert "| mtt |" in next(line for line in table.splitlines() if line.startswith("| dataset"))
    assert failed in table and "not run" not in table
    assert main(["table", "--config", "tiny.yaml", "--name", "overview"]) == 0
    overview = Path("results/tiny/overview.md").read_text()
    assert failed in overview and "not run" not in overview


def test_every_difference_is_named_with_both_values() -> None:
    resolver = load_campaign(None)
    options = Chosen(resolver.experts("sgd", "digits"), {"lr", "epochs"}, {"name": "it"})
    stated = {"name": "it", **resolver.experts("sgd", "digits").model_dump(mode="json", include={"lr", "epochs"})}
    assert differing_options({"recipe": options}, {"recipe": stated}) == []
    assert differing_options({"recipe": options}, {}) == []
    assert differing_options({"recipe": options}, {"recipe": {**stated, "batch_size": 1}}) == []
    assert differing_options({"recipe": options}, {"recipe": {**stated, "name": "her"}}) == [
        "recipe.name: expected 'it', found 'her'"
    ]
    told = differing_options({"recipe": options}, {"recipe": {**stated, "lr": 3.0}})
    assert len(told) == 1 and told[0].endswith("found 3.0")
    assert differing_options({"recipe": options}, {"recipe": None})
    assert differing_options({"experts": None}, {"experts": {"lr": 1}})
    assert differing_options({"axes": ("digits", 1)}, {"axes": ["digits", 1]}) == []


@pytest.mark.parametrize("rule", ["evaluate", "distill", "experts", "images", "difficulty"])
def test_a_damaged_result_or_another_kind_of_file_is_made_again(whole: Path, rule: str) -> None:
    resolver, names = tiny(), JOBS[rule][0] if rule in JOBS else {"dataset": "digits", "experts": "sgd"}
    for pattern in RULES[rule].outputs.values():
        path = Path(pattern.format(**names, root=resolver.layout.root))
        content = path.read_bytes()
        for other in (b"", content[: len(content) // 2], Path("tiny.yaml").read_bytes()):
            path.write_bytes(other)
            found = Provenance(resolver).difference(rule, **names)
            assert found == f"{path} is damaged, or a file of another kind"
        path.write_bytes(content)
    assert Provenance(resolver).difference(rule, **names) is None


def test_a_set_of_another_seed_is_noticed(whole: Path) -> None:
    resolver = tiny()
    cells = [Cell("digits", 1, "satm", seed) for seed in (0, 1)]
    one, other = (Path(resolver.layout.distilled(cell)) for cell in cells)
    other.parent.mkdir(parents=True)
    shutil.copy(one, other)
    assert Provenance(resolver).difference("distill", **cells[1].axes) == "seed: expected 1, found 0"


def test_experts_whose_shards_are_others_are_noticed(whole: Path) -> None:
    resolver, names = tiny(), {"dataset": "digits", "experts": "sgd"}
    manifest = Path(resolver.layout.manifest("digits", "sgd"))
    first, second = (manifest.with_name(f"expert-00{index}.safetensors") for index in (0, 1))

    def found() -> str | None:
        return Provenance(resolver).difference("experts", **names)

    assert found() is None
    content = second.read_bytes()
    shutil.copy(first, second)
    assert found() == f"{second} is another one than it lists"
    second.unlink()
    assert found() == f"{second} is missing"
    second.write_bytes(content)
    assert found() is None
    shutil.copy(manifest.with_name("part-0-0.json"), manifest)
    assert found() == "it lists 1 experts, expected 2"
    manifest.write_text(json.dumps({"identity": json.loads(manifest.read_text())["identity"], "shards": [1]}))
    assert found() == f"{manifest} is damaged, or a file of another kind"


def test_a_remedy_has_every_command_that_is_needed_in_order(whole: Path) -> None:
    names = {"dataset": "digits", "ipc": 1, "method": "satm", "seed": 0, "network": "convnet"}
    campaign = "--config tiny.yaml --dataset digits"
    cell = f"{campaign} --ipc 1 --method satm --seed 0"
    experts, again = f"python -m satm experts {campaign} --experts sgd", f"python -m satm distill {cell} --overwrite"
    white = ("digits: {source: digits, augment", "digits: {source: digits, zca: true, augment")
    for changes, first in (
        (MORE_EXPERTS, f"begin with: {experts}; then: {again}; then "),
        (white, f"begin with: python -m satm data {campaign}; then: {experts} --overwrite; then: {again}; then "),
        (None, ""),
    ):
        remedy = Provenance(tiny(*([changes] if changes else []))).remedy("evaluate", **names)
        assert remedy == f"{first}make it with: python -m satm evaluate {cell} --network convnet --overwrite"
