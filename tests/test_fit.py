"""What is refused when a campaign is planned, once its images are read, and before experts are trained."""

import re
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from conftest import TINY, Refuse
from PIL import Image
from torch import Tensor, nn

from satm.cli import main
from satm.config import Campaign, Resolver, Setting, load_campaign, load_presets, parse
from satm.config.datasets import AUGMENTATIONS, SOURCE_CONTENTS, stated_contents
from satm.data import load_dataset
from satm.data.augment import FAMILIES
from satm.errors import UsageError, refuse
from satm.networks import NETWORKS, build
from satm.networks.layers import Network
from satm.stages.dry_step import check_step
from satm.stages.fit import contents_of, network_problem
from satm.stages.inputs import Inputs
from satm.unroll import planning
from satm.workflow.check import check

SHORT = {"sgd": {"count": 1, "epochs": 4}}
FAST = {"inner_steps": 4, "expert_epochs": 1, "max_start_epoch": 2, "monitor": 0}


def resolver(**content: object) -> Resolver:
    return Resolver(parse(Campaign, content, "test"), (), "results/test", Path("test.yaml"))


def table(*methods: str, dataset: str = "digits", ipc: int = 1, **more: object) -> dict[str, Any]:
    return {"t": {"datasets": {dataset: [ipc]}, "methods": [*methods], **more}}


def mine(method: str, **options: object) -> dict[str, Any]:
    """A campaign that makes one set by a method, with short experts."""
    own = {**(FAST if method == "mtt" else {}), **options}
    return {"experts": SHORT, "methods": {"mine": {"method": method, **own}}, "tables": table("mine")}


BATCH = {"networks": {"bn": {"network": "convnet", "norm": "batch"}}}
WATCHED = {"iterations": 3, "watch": "validation"}

PLANNED: list[tuple[str, dict[str, Any], str]] = [
    (
        "max_start_epoch",
        mine("mtt", max_start_epoch=5),
        "max_start_epoch: a segment from epoch 4 to epoch 5",
    ),
    (
        "expert_epochs",
        mine("mtt", expert_epochs=4),
        "goes beyond the 4 epochs of the experts; lower max_start_epoch or expert",
    ),
    ("start_epoch", mine("mtt", start_epoch=4), "start_epoch: a segment from epoch 4"),
    ("monitor", mine("mtt", monitor=6), "monitor: a segment from epoch 5 to epoch 6"),
    ("one monitored expert", mine("mtt", monitor=1), "monitor holds out the last expert, so it needs at least 2"),
    (
        "a derived method",
        {**mine("mtt"), "tables": table("mine-at-epoch-4")},
        "mine-at-epoch-4 on digits at ipc 1: start_epoch: a segment from epoch 4 to epoch 5",
    ),
    ("contra", mine("mtt", concurrent=3, distance=2), "concurrent, distance: a segment from epoch 4"),
    ("datm", mine("mtt", segments="expanding"), "segments 'expanding' does not go with expand_from None"),
    ("concurrent", mine("mtt", concurrent=4), "concurrent 4 segments do not fit between min_start_epoch 0"),
    ("kept", mine("mtt", keep_divisor=5), r"int\(4 / 5\) keeps no step"),
    (
        "none kept",
        mine("satm", **FAST, keep_divisor=5),
        r"int\(4 / 5\) keeps no step; lower keep_divisor or .*steps$",
    ),
    ("restart", mine("satm", **FAST, restart=4), "restart 4 leaves no step of 4"),
    ("tesla", mine("mtt", tesla_scale="code"), "tesla_scale 'code' belongs to the engine 'tesla'"),
    ("teacher", mine("dc", labels="teacher"), "labels 'teacher' does not fit method 'dc'"),
    ("correct", mine("bptt", init="correct"), "init 'correct' needs experts, method 'bptt' uses none"),
    ("watch", mine("mtt", selection="test", watch="validation"), "selection 'test' looks at the accuracy on those"),
    ("window", mine("ratbptt", inner_steps=5, window=6), "a window of 6 steps does not fit in 5 inner_steps"),
    ("growth", mine("bptt", inner_steps=5, grow_from=6), "grow_from 6 is more than 5 inner_steps"),
    ("milestones", mine("bptt", inner_steps=5, milestones=[5]), "milestones 5 lies at or after the end of 5 inner"),
    ("blocks", mine("bptt", blocks=2), "blocks 2 does not divide ipc 1"),
    ("basis", mine("bptt", basis=20), "basis 20 has more images than basis_images 1 computes, 10 in 10 classes"),
    ("budget", mine("bptt", basis=10), "basis 10 with basis_images 1 stores 740 numbers, ipc 1 allows 640"),
    ("no file", mine("files"), "method 'files' needs images, the path of an external set"),
    ("held-out", mine("mtt", **WATCHED), "watch 'validation' needs held-out images; set validation above 0 in dataset"),
    *(
        (
            f"batch norm, {name}",
            {
                **{**BATCH, "experts": {"sgd": {**SHORT["sgd"], "network": "bn"}}},
                **{"methods": {"mine": {"method": name, **FAST}}, "tables": table("mine")},
            },
            f"network bn of experts sgd has norm 'batch', .* method '{name}' learns through .* such as 'instance'",
        )
        for name in ("mtt", "tesla", "satm")
    ),
    *(
        (
            f"batch norm, {name}",
            {**BATCH, "methods": {"mine": {"method": name, "network": "bn"}}, "tables": table("mine")},
            f"network bn has norm 'batch', whose running statistics no gradient accounts for, and method '{name}'",
        )
        for name in ("bptt", "ratbptt")
    ),
    (
        "batch norm, dm",
        {
            "settings": [{"stage": "network", "network": "convnet", "options": {"norm": "batch"}}],
            "tables": table("dm", networks=["alexnet"], dataset="cifar10"),
        },
        "dm on cifar10 at ipc 1: network convnet has norm 'batch'",
    ),
    (
        "whitening",
        {
            "datasets": {"big": {"source": "tiny-imagenet", "zca": True, "size": 128}},
            "tables": table("random", dataset="big"),
        },
        "dataset big: zca whitens images of at most 20000 numbers, got 3 x 128 x 128 = 49152; set zca to false",
    ),
    (
        "whitening of grey images",
        {"datasets": {"big": {"source": "folder", "zca": True, "size": 142}}, "tables": table("random", dataset="big")},
        "got 1 x 142 x 142 = 20164",
    ),
    (
        "ipc",
        {"tables": table("random", ipc=139)},
        r"139 training images of each class are needed, class 8 has 138; use",
    ),
    (
        "ipc with held-out images",
        {
            "datasets": {"digits": {"source": "digits", "validation": 100}},
            "tables": table("herding", ipc=39),
            "experts": SHORT,
        },
        "39 training images of each class are needed, class 8 has 38; use a smaller ipc",
    ),
    (
        "ipc of a learned set",
        {**mine("mtt"), "tables": table("mine", ipc=200)},
        "class 0 has 142, .* and 7 more classes",
    ),
    (
        "ipc of a subset",
        {
            "datasets": {"two": {"source": "cifar10", "classes": [3, 5]}},
            "tables": table("random", dataset="two", ipc=5001),
        },
        "class 0 has 5000, class 1 has 5000; use a smaller ipc",
    ),
    (
        "one class",
        {"datasets": {"one": {"source": "digits", "classes": [3]}}, "tables": table("random", dataset="one")},
        "dataset one: it has one class only, expected at least 2",
    ),
    (
        "classes twice",
        {"datasets": {"odd": {"source": "digits", "classes": [3, 3]}}, "tables": table("random", dataset="odd")},
        r"classes is \[3, 3\], expected different labels from 0 on",
    ),
    (
        "no such class",
        {"datasets": {"odd": {"source": "digits", "classes": [3, 10]}}, "tables": table("random", dataset="odd")},
        "classes has 10, expected labels from 0 to 9",
    ),
    (
        "a mean of three channels",
        {"datasets": {"odd": {"source": "digits", "mean": [0.1, 0.2, 0.3]}}, "tables": table("random", dataset="odd")},
        "mean has 3 values, expected 1, one per channel",
    ),
    (
        "a tested network",
        {"tables": table("random", networks=["convnet", "vgg11"])},
        "network vgg11 on digits at ipc 1: images of 8 x 8 pixels are too small: pooling 5 times needs",
    ),
    (
        "a network of experts",
        {**mine("mtt"), "experts": {"sgd": {**SHORT["sgd"], "network": "resnet18"}}},
        "network resnet18 on digits: images of 8 x 8 pixels are too small",
    ),
    (
        "a patch",
        {"networks": {"v": {"network": "vit-tiny", "patch": 3}}, "tables": table("random", networks=["v"])},
        "patch 3 does not divide images of 8 x 8 pixels; use one of 1, 2, 4, 8",
    ),
    (
        "an evaluation on held-out images",
        {
            "settings": [{"stage": "evaluate", "options": {"split": "validation"}}],
            "tables": table("random"),
        },
        "networks on digits at ipc 1: split 'validation' needs held-out images; set validation above 0",
    ),
    (
        "a search for the step size",
        {"settings": [{"stage": "evaluate", "options": {"lr": "searched"}}], "tables": table("random")},
        "lr 'searched' on 'validation' images needs held-out images",
    ),
    (
        "a learned step size of real images",
        {
            "settings": [{"stage": "evaluate", "method": "full-strong", "options": {"lr": "learned"}}],
            "tables": table("random", full=["strong"]),
        },
        "network convnet on all images of digits: real images have no learned step size, got lr 'learned'",
    ),
    (
        "flat and at once",
        {
            "settings": [{"stage": "evaluate", "options": {"together": "yes", "flat_rho": 0.1}}],
            "tables": table("random"),
        },
        "together 'yes' does not go with flat_rho 0.1",
    ),
    (
        "a measurement of another family",
        {"figures": {"f": {"kind": "bounds", "datasets": {"digits": [1]}, "methods": ["random"]}}},
        "measurement bounds of random on digits at ipc 1: method random matches no trajectories",
    ),
    (
        "a variance without a history",
        {"figures": {"f": {"kind": "variance", "datasets": {"digits": [1]}, "methods": ["bptt"]}}},
        "the set of bptt is stored without its history; set snapshots above 0 for it",
    ),
    (
        "an animation without a history",
        {"figures": {"f": {"kind": "animation", "datasets": {"digits": [1]}, "methods": ["bptt"]}}},
        "figure f: the set of bptt is stored without its history; set snapshots above 1 for it",
    ),
    (
        "a correlation of epochs that are not monitored",
        {**mine("mtt", monitor=2), "tables": {}}
        | {"figures": {"f": {"kind": "correlation", "datasets": {"digits": [1]}, "methods": ["mine"], "epochs": 3}}},
        "figure f: mine on digits at ipc 1 monitors 2 epochs, the figure shows 3; set monitor 3 for it",
    ),
    (
        "more first iterations than there are",
        mine("mtt", iterations=5)
        | {
            "tables": {
                "t": {
                    **{"kind": "run-metrics", "datasets": {"digits": [1]}, "methods": ["mine"]},
                    **{"measures": ["seconds"], "after": 5},
                }
            }
        },
        "table t: mine on digits at ipc 1 has 5 iterations and `after: 5` leaves none of them",
    ),
    (
        "divisors",
        {
            **{"experts": SHORT, "settings": [{"method": ["mtt", "satm"], "options": FAST}]},
            "figures": {"f": {"kind": "bounds", "datasets": {"digits": [1]}, "methods": ["mtt"]}},
        }
        | {
            "settings": [
                {"method": ["mtt", "satm"], "options": FAST},
                {"stage": "analyse", "options": {"divisors": [5, 6]}},
            ]
        },
        r"the divisors \[5, 6\] of 4 inner steps keep no part of them",
    ),
    (
        "a search",
        {"tables": {"t": {"kind": "search", "datasets": {"digits": [1]}, "methods": ["random"], "sample": 720}}},
        r"search t on all images of digits: sample asks for 720 candidates, \d+ fit the images",
    ),
    (
        "raters with a curriculum",
        {
            **mine("mtt", experts="late"),
            "experts": {"late": {"order": "curriculum", "difficulty": "curriculum", "count": 1, "epochs": 4}},
        },
        "difficulty names curriculum, experts of order 'curriculum'; name experts of order 'full'",
    ),
    (
        "steps of one class",
        {
            **{"experts": SHORT, "settings": [{"method": "mtt", "options": FAST}]},
            "tables": {
                "t": {
                    **{"kind": "continual", "datasets": {"digits": [1]}, "methods": ["mtt"]},
                    **{"steps": 10, "orders": 1, "sets": "per-step"},
                }
            },
        },
        "method 'mtt' cannot learn from one class, expected at least 2",
    ),
]


@pytest.mark.parametrize(("content", "text"), [case[1:] for case in PLANNED], ids=[case[0] for case in PLANNED])
def test_what_the_options_decide_is_refused_before_any_job(content: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text) as caught:
        check(resolver(**content))
    assert str(caught.value).startswith("test.yaml: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        mine("mtt", max_start_epoch=4),
        {**mine("mtt"), "tables": table("mine-at-epoch-3")},
        mine("bptt", init="gaussian") | {"tables": table("mine", ipc=500)},
        {"tables": table("random", ipc=138)},
        {**BATCH, "tables": table("random", networks=["bn"])},
        {**BATCH, "experts": {"sgd": {**SHORT["sgd"], "network": "bn"}}, "tables": table("herding", networks=["bn"])},
        {"datasets": {"it": {"source": "folder", "zca": True, "size": 141}}, "tables": table("random", dataset="it")},
        {"datasets": {"it": {"source": "parquet"}}, "tables": table("random", dataset="it", networks=["vgg11"])},
        {"datasets": {"it": {"source": "tiny-imagenet", "zca": True}}, "tables": table("random", dataset="it")},
        {
            "datasets": {"digits": {"source": "digits", "validation": 2}},
            **{"settings": [{"stage": "evaluate", "options": {"lr": "searched"}}], "tables": table("random")},
        },
    ],
    ids=str,
)
def test_what_may_be_right_is_not_refused(content: dict[str, Any]) -> None:
    check(resolver(**content))


def test_everything_that_is_wrong_is_said_at_once() -> None:
    content = mine("mtt", max_start_epoch=9, keep_divisor=5)
    content["tables"] = {
        **table("mine", networks=["convnet", "vgg11"], seeds=[0, 1, 2]),
        "u": {"datasets": {"digits": [10, 200]}, "methods": ["mine"]},
    }
    with pytest.raises(UsageError) as caught:
        check(resolver(**content))
    told = str(caught.value)
    assert told.startswith("test.yaml: 4 problems: (1) ")
    assert re.search(
        r"\(\d\) mine on digits at ipc (1, 10, 200|1, 200, 10|10, 1, 200): max_start_epoch: a segment", told
    )
    assert told.count("max_start_epoch: a segment") == told.count("keeps no step") == 1
    assert "mine on digits at ipc 200: 200 training images of each class are needed" in told
    assert "network vgg11 on digits at ipc 1: images of 8 x 8 pixels are too small" in told


def test_every_wrong_name_is_said_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        check(
            resolver(
                networks={"a": {"network": "convnt"}},
                methods={"b": {"method": "mtt", "inner_step": 3}},
                settings=[{"method": "satn", "options": {}}],
                tables={"t": {"datasets": {"digits": [1, 10], "digitz": [1]}, "methods": ["mttt"]}},
            )
        )
    told = str(caught.value)
    for text in ("networks.a: unknown network 'convnt'", "methods.b: method mtt: unknown option 'inner_step'"):
        assert text in told
    for text in ("settings.0: unknown method 'satn'", "unknown dataset 'digitz'", "unknown method 'mttt'"):
        assert told.count(text) == 1, told
    assert told.startswith("test.yaml: 5 problems: ")


def test_jobs_with_the_same_problem_are_named_together() -> None:
    content = {"tables": table("random", "mtt", ipc=200)}
    with pytest.raises(UsageError, match=r"^test.yaml: mtt on digits at ipc 200, random on digits at ipc 200: 200 tr"):
        check(resolver(**content))


def test_epochs_of_options_that_are_not_set_are_not_refused() -> None:
    with pytest.raises(UsageError) as caught:
        check(resolver(**mine("mtt", max_start_epoch=2, expert_epochs=9)))
    (problem,) = caught.value.problems
    assert "mine on digits at ipc 1: max_start_epoch: a segment from epoch 1" in problem


SETTINGS = [
    {"stage": "evaluate", "options": {"lr": "learnt", "epoch": 3, "epochs": "x"}},
    {"options": {"iterations": 3}},
    {"method": "random", "options": {"step_size": 1}},
]


def test_a_row_of_settings_is_named_for_the_methods_that_it_does_not_suit() -> None:
    with pytest.raises(UsageError) as caught:
        check(resolver(settings=SETTINGS, tables=table("mtt", "random", "herding")))
    first, second, third, *others = caught.value.problems
    assert first.startswith("test.yaml: settings.0: unknown option 'epoch'") and first.endswith("mean 'epochs'?")
    assert second == "test.yaml: settings.0: epochs: input should be a valid integer, got 'x'"
    expected = "input should be a valid number or 'learned' or 'searched', got 'learnt'"
    assert third == f"test.yaml: settings.0: lr: {expected}"
    assert ["unknown option 'iterations'" in other for other in others] == [True, True]
    for other in others:
        assert other.endswith(" (set by settings.1, which names no method and so applies to all)")


def test_methods_with_the_same_problem_are_named_together() -> None:
    settings = [{"stage": "evaluate", "method": ["mtt", "random"], "network": "x", "options": {"lr": 1}}]
    presets = [{"stage": "evaluate", "options": {"epochs": 0}}]
    campaign = resolver(settings=settings, tables=table("mtt", "random"))
    campaign.settings = (*(Setting.model_validate(row) for row in presets), *campaign.settings)
    with pytest.raises(UsageError, match=r"table t: mtt, random on digits at ipc 1: evaluate: epochs: input should be"):
        check(campaign)


def test_a_message_stays_readable() -> None:
    with pytest.raises(UsageError, match=r"^x: 40 problems: \(1\) p0; .*\(10\) p9; and 30 more$"):
        refuse((f"p{index % 40}" for index in range(80)), "x")
    with pytest.raises(UsageError, match=r"^x: only$"):
        refuse(["only", "only"], "x")
    refuse([], "x")


def test_what_is_stated_of_the_digits_is_what_they_hold() -> None:
    options = resolver().dataset("digits").model_copy(update={"validation": 3})
    stated, read = stated_contents(options), contents_of(load_dataset("digits", options))
    for field in ("channels", "size", "classes", "train", "test"):
        assert getattr(stated, field) == getattr(read, field), field
    assert sum(SOURCE_CONTENTS["tiny-imagenet"].test or ()) == 10_000
    assert set(AUGMENTATIONS) == set(FAMILIES)


FOLDER = """
datasets: {it: {source: folder, path: images, size: 8}}
settings:
  - {stage: network, network: convnet, options: {depth: 1, width: 4}}
  - {method: mtt, options: {iterations: 2, inner_steps: 2, expert_epochs: 1, max_start_epoch: 2}}
experts: {sgd: {count: 1, epochs: 2, batch_size: 16, per_job: 1}}
tables:
  t: {datasets: {it: [1]}, methods: [random, mtt]}
"""
DATA = ("data", "--config", "it.yaml", "--dataset", "it")


def folder(path: Path, train: dict[str, int], test: dict[str, int], content: str = FOLDER) -> None:
    """Write a dataset of random images by the number of each class, and a campaign on it."""
    generator = numpy.random.default_rng(0)
    for split, counts in (("train", train), ("test", test)):
        for name, count in counts.items():
            (path / "images" / split / name).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                pixels = generator.integers(0, 256, (8, 8), numpy.uint8)
                Image.fromarray(pixels).save(path / "images" / split / name / f"{index}.png")
    (path / "it.yaml").write_text(content)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


CONTINUAL = FOLDER + "  c: {kind: continual, datasets: {it: [1]}, methods: [random], steps: 2, orders: 1}\n"
FEW = {"a": 40, "b": 40, "c": 3}
SOME = dict.fromkeys(FEW, 4)


@pytest.mark.parametrize(
    ("train", "test", "content", "texts"),
    [
        (
            FEW,
            SOME,
            FOLDER.replace("{it: [1]}", "{it: [1, 5]}"),
            [
                "random on it at ipc 5: 5 training images of each class are needed, class 2 (c) has 3; use",
                "mtt on it at",
            ],
        ),
        (FEW, SOME, FOLDER.replace("size: 8", "size: 8, validation: 3"), ["cannot hold out 3 validation images"]),
        ({"a": 9}, {"a": 9}, FOLDER, ["dataset it: it has one class only", "mtt on it at ipc 1: method 'mtt' cannot"]),
        (FEW, {"a": 4, "b": 4, "c": 0}, CONTINUAL, ["protocol c with random on it at ipc 1: class 2 (c) has no test"]),
        (
            FEW,
            SOME,
            FOLDER.replace("mtt]}", "mtt], networks: [convnet, vgg11, resnet18]}"),
            [
                "network vgg11 on it at ipc 1: images of 8 x 8 pixels are too small",
                "network resnet18 on it at ipc 1: im",
            ],
        ),
        (
            FEW,
            SOME,
            FOLDER.replace("size: 8", "zca: true, mean: [0.5], size: 144"),
            ["zca whitens images of at most 20000 numbers, got 1 x 144 x 144 = 20736; set zca to false"],
        ),
        (
            FEW,
            SOME,
            FOLDER.replace("mtt]}", "mtt], networks: [convnet, bn]}")
            + "networks: {bn: {network: resnet18, norm: batch, width_factor: 0.1}}\n"
            + "",
            ["network bn on it at ipc 1: resnet18 cannot be trained on a batch of 1 images of 1 x 8 x 8 (Expected"],
        ),
    ],
    ids=["ipc", "held out", "one class", "no test images", "networks", "whitening", "a batch of one image"],
)
def test_what_the_images_decide_is_refused_before_they_are_stored(
    here: Path, refused: Refuse, train: dict[str, int], test: dict[str, int], content: str, texts: list[str]
) -> None:
    if "bn:" in content:  # sets of 3 images in batches of 2
        content = content.replace("settings:", "settings:\n  - {stage: evaluate, options: {batch_size: 2}}")
    folder(here, train, test, content)
    told = refused(*DATA)
    for text in texts:
        assert text in told, told
    assert not [*here.rglob("*.safetensors")]


def test_images_that_fit_are_stored_and_a_class_without_test_images_is_needed_by_continual_learning_only(
    here: Path,
) -> None:
    folder(here, FEW, {"a": 4, "b": 4, "c": 0})
    assert main([*DATA]) == 0


def test_a_campaign_changed_after_its_images_is_refused_before_experts_are_trained(here: Path, refused: Refuse) -> None:
    folder(here, FEW, SOME)
    assert main([*DATA]) == 0
    (here / "it.yaml").write_text(FOLDER.replace("{it: [1]}", "{it: [1, 5]}"))
    told = refused("experts", *DATA[1:])
    assert "class 2 (c) has 3" in told and not [*here.rglob("expert*.safetensors")]
    (here / "it.yaml").write_text(FOLDER.replace("width: 4", "width: 4, norm: batch"))
    told = refused("experts", *DATA[1:])
    assert "network convnet of experts sgd has norm 'batch'" in told and not [*here.rglob("expert*.safetensors")]


class _Attention(nn.Module):
    """Attention by a fused kernel, which has first derivatives only."""

    def forward(self, values: Tensor) -> Tensor:
        tokens = values.view(len(values), 1, 4, -1)
        return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens).flatten(1)


def _inputs(module: nn.Module | None = None) -> Inputs:
    class Other(Inputs):
        def module(self, network: str, seed: int = 0) -> nn.Module:
            return super().module(network, seed) if module is None else module

    return Other(load_campaign(Path("tiny.yaml")), "digits", torch.device("cpu"))


def test_an_inner_step_is_tried_for_every_method_that_matches_the_experts(campaign: Path) -> None:
    text = TINY.replace("[random, mtt, satm]", "[random, mtt, satm, tesla]")
    text += "methods:\n  tesla: {method: tesla, expert_epochs: 1, max_start_epoch: 2, iterations: 2}\n"
    (campaign / "tiny.yaml").write_text(text)
    recipe = load_campaign(Path("tiny.yaml")).experts("sgd", "digits")
    state = torch.get_rng_state()
    check_step(_inputs(), "sgd", recipe)
    assert torch.equal(torch.get_rng_state(), state)
    hidden = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), _Attention())
    with pytest.raises(UsageError) as caught:
        check_step(_inputs(Network(hidden, nn.Linear(8, 10))), "sgd", recipe)
    told = str(caught.value)
    assert told.startswith("2 problems: (1) method ") and "method tesla" in told
    assert "cannot learn through network convnet of experts sgd on digits: an inner step fails (" in told
    dropped = Network(nn.Sequential(nn.Flatten(), nn.Dropout()), nn.Linear(64, 10))
    with pytest.raises(UsageError, match="is active dropout, so steps cannot be repeated exactly"):
        check_step(_inputs(dropped), "sgd", recipe)
    narrow = Network(nn.Flatten(), nn.Linear(63, 10))
    with pytest.raises(UsageError, match=r"an inner step fails .*shapes cannot be multiplied"):
        check_step(_inputs(narrow), "sgd", recipe)
    check_step(_inputs(narrow), "other", recipe)  # no method matches these


def test_memory_that_a_method_will_lack_is_told_before_experts_are_trained(
    campaign: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    text = TINY.replace("{digits: [1]}", "{digits: [1, 5]}")
    text = text.replace("keep_divisor: 2", "keep_divisor: 2, engine: mixed")
    (campaign / "tiny.yaml").write_text(text)
    recipe = load_campaign(Path("tiny.yaml")).experts("sgd", "digits")
    check_step(_inputs(), "sgd", recipe)
    assert not caplog.messages
    monkeypatch.setattr(planning, "free_memory", lambda device: 200 * 2**10)
    check_step(_inputs(), "sgd", recipe)
    by_mtt, by_satm = sorted(caplog.messages)  # 10 images fit
    needs = "a hypergradient of 4 inner steps with 50 images each takes about"
    assert by_mtt.startswith(f"method mtt at ipc 5 on digits: {needs} ") and "with engine reverse" in by_mtt
    assert by_satm.startswith(f"method satm at ipc 5 on digits: {needs} ") and "; at most about " in by_satm


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("size", [8, 16, 32, 33, 64])
def test_the_check_of_a_network_refuses_what_cannot_be_built(name: str, size: int) -> None:
    architecture = NETWORKS[name]
    options = architecture.options()
    try:
        architecture.check(size, options)
    except ValueError as error:
        with pytest.raises(UsageError, match=re.escape(str(error))):
            build({"network": name}, 3, 10, size, 0)
    else:
        contents = SOURCE_CONTENTS["cifar10"].of(range(10))
        assert network_problem({"network": name}, type(contents)(3, size, 10), 1) is None


def test_presets_change_what_is_checked() -> None:
    content = {"experts": {"sgd": {"epochs": 2}}, "tables": table("mtt", dataset="cifar10")}
    with_presets = Resolver(parse(Campaign, content, "test"), load_presets(), "results/test", Path("test.yaml"))
    with pytest.raises(UsageError, match=r"mtt on cifar10 at ipc 1: max_start_epoch: a segment .*the 2 epochs of the"):
        check(with_presets)
