"""Architecture search: the space, its samples, rank correlations, the stage and how it resumes, and the table."""

import dataclasses
import math
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pandas
import pytest
import torch
from conftest import Refuse
from drawing import torch_generator
from resuming import kept_rows, stopped_after
from scipy import stats
from tabulating import frame_of, made
from tolerances import SUMS

from satm.cli import main
from satm.config import CANDIDATES, Campaign, Cell, Layout, Resolver, SearchOptions, load_campaign, parse
from satm.errors import UsageError
from satm.evaluation.candidates import fitting
from satm.evaluation.search import SPACE, TOPS, candidates, mean_accuracies, rank, sample, spearman
from satm.networks import build
from satm.results.columns import NAS
from satm.results.rows import read_rows, read_rows_metadata, write_rows
from satm.tables.published import PUBLISHED
from satm.tables.reader import refuse_repeats
from satm.workflow.campaigns import Campaigns

ROOT = Path(__file__).parent.parent
RUN = Path("results/search")
HAND = Path("results/hand/search")
"""Folder of runs with other options than the campaign's."""
SEARCH = """
datasets:
  few: {source: digits, classes: [0, 1, 2], augment: crop_scale_rotate}
tables:
  quick:
    kind: search
    datasets: {few: [2]}
    methods: [random]
    seeds: [0, 1]
    sample: 3
    sample_seed: 139
    per_job: 2
    proxy: {epochs: 4, repeats: 2, batch_size: 4}
    real: {epochs: 1, repeats: 2, lr: 0.05}
"""
CONFIG = ("--config", "search.yaml", "--dataset", "few", "--search", "quick")
CELL = (*CONFIG, "--ipc", "2", "--method", "random")


# The space


def test_the_space_has_720_different_networks_in_a_fixed_order() -> None:
    found = candidates()
    assert len(found) == CANDIDATES == len({tuple(one.network.items()) for one in found})
    assert [one.index for one in found] == list(range(720))
    assert found[0].network == {
        "network": "convnet", "width": 32, "depth": 1, "norm": "none", "activation": "sigmoid", "pooling": "none"
    }  # fmt: skip
    assert str(found[1]) == "32-1-none-sigmoid-max" and str(found[45]) == "32-2-none-sigmoid-none"
    assert str(found[719]) == "256-4-group-leakyrelu-average"
    for name, choices in SPACE.items():
        assert len({getattr(one, name) for one in found}) == len(choices)


@pytest.mark.parametrize(
    ("size", "left_out"),
    [
        (32, 0),
        (8, 4 * 5 * 3 * 2),  # depth 4 with either pooling: 8 / 2^4 is nothing
        (4, 2 * 4 * 5 * 3 * 2),  # depths 3 and 4
    ],
)
def test_candidates_that_do_not_fit_are_left_out(size: int, left_out: int) -> None:
    fit = fitting(size)
    assert len(fit) == 720 - left_out
    for one in set(candidates()) - set(fit):
        assert size >> one.depth < 1 and one.pooling != "none"


def test_a_search_can_be_of_narrower_networks() -> None:
    narrow = candidates(0.125)
    assert {one.width for one in narrow} == {4, 8, 16, 32}
    for one, whole in zip(narrow, candidates(), strict=True):
        assert one == dataclasses.replace(whole, width=whole.width // 8)
    assert len(fitting(32, 0.125)) == 720
    # A group norm of four groups cannot split two filters.
    assert {one.norm for one in set(candidates(1 / 16)) - set(fitting(32, 1 / 16))} == {"group"}


@pytest.mark.parametrize("index", [0, 89, 360, 407, 719])
def test_candidates_train(index: int) -> None:
    module = build(candidates()[index].network, 3, 10, 32, seed=0)
    torch.nn.functional.cross_entropy(module(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
    assert all(held.grad is not None and held.grad.isfinite().all() for held in module.parameters())


def test_a_sample_never_changes() -> None:
    assert [one.index for one in sample(candidates(), 6, 0)] == [402, 40, 186, 583, 225, 663]
    assert [str(one) for one in sample(candidates(), 2, 1)] == ["128-4-none-leakyrelu-average", "32-1-batch-relu-max"]
    assert {one.index for one in sample(candidates(), None, 3)} == set(range(720))


def test_a_smaller_sample_begins_a_larger_one_and_leaving_out_keeps_the_order() -> None:
    fit = fitting(8)
    whole = sample(candidates(), None, 0)
    assert sample(candidates(), 50, 0) == whole[:50]
    assert sample(fit, 50, 0) == [one for one in whole if one in fit][:50]
    assert sample(reversed(fit), 50, 0) == sample(fit, 50, 0)
    with pytest.raises(UsageError, match=r"sample asks for 601 candidates, 600 fit the images; lower it or leave it"):
        sample(fit, 601, 0)


def test_the_space_needs_no_torch() -> None:
    code = "import sys, satm.evaluation.search; print(len(satm.evaluation.search.candidates()), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["720", "False"]


# Rank correlations


def accuracies(*values: float) -> pandas.Series:
    return pandas.Series(values, index=range(100, 100 + len(values)))


def test_a_case_ranked_by_hand() -> None:
    real = accuracies(0.9, 0.8, 0.7, 0.6, 0.5)  # ranks 5 4 3 2 1
    proxy = accuracies(0.3, 0.5, 0.1, 0.4, 0.2)  # ranks 3 5 1 4 2: squared differences 4 1 4 4 1
    assert spearman(proxy, real, None) == pytest.approx(1 - 6 * 14 / (5 * 24))
    assert spearman(proxy, real, 5) == pytest.approx(spearman(proxy, real, None))
    # The best three by the real images are the first three: proxy ranks 2 3 1, squared differences 1 1 0.
    assert spearman(proxy, real, 3, "real") == pytest.approx(1 - 6 * 2 / (3 * 8))
    # The best three by the proxy are the second, fourth and first: real ranks 2 1 3 against 3 2 1.
    assert spearman(proxy, real, 3, "proxy") == pytest.approx(1 - 6 * (1 + 1 + 4) / (3 * 8))


@pytest.mark.parametrize("top_by", ["real", "proxy"])
def test_correlations_are_those_of_scipy(top_by: Literal["real", "proxy"]) -> None:
    generator = torch_generator(4)
    real = [round(float(value), 1) for value in torch.rand(40, generator=generator)]  # with ties
    proxy = [float(value) for value in torch.rand(40, generator=generator)]
    found = rank(accuracies(*proxy), accuracies(*real), top_by)
    judge = real if top_by == "real" else proxy
    for name, top in TOPS.items():
        chosen = sorted(range(40), key=lambda place: (-judge[place], place))[:top]
        expected = stats.spearmanr([proxy[place] for place in chosen], [real[place] for place in chosen]).statistic
        assert found.spearman[name] == pytest.approx(expected, rel=SUMS, nan_ok=True)
    assert found.candidates == 40 and found.best_accuracy == max(real)
    assert found.selected == 100 + proxy.index(max(proxy)) and found.selected_accuracy == real[found.selected - 100]


def test_the_order_of_the_rows_is_without_effect() -> None:
    proxy, real = accuracies(0.3, 0.5, 0.5, 0.4), accuracies(0.9, 0.8, 0.7, 0.8)
    assert rank(proxy[::-1], real[[102, 100, 103, 101]]) == rank(proxy, real)
    assert rank(proxy, real).selected == 101, "of equal ones the first"


@pytest.mark.parametrize(
    ("proxy", "real", "missing"),
    [
        ([0.1] * 6, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], {"top5", "top10", "top20", "all"}),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.1] * 6, {"top5", "top10", "top20", "all"}),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.9, 0.9, 0.9, 0.9, 0.9, 0.6], {"top5", "top10", "top20"}),
        ([0.1, 0.2, 0.4, 0.3], [0.1, 0.2, 0.3, 0.4], {"top5", "top10", "top20"}),
        ([0.5], [0.6], {"top5", "top10", "top20", "all"}),
    ],
)
def test_what_cannot_be_ranked_is_missing(proxy: list[float], real: list[float], missing: set[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = rank(accuracies(*proxy), accuracies(*real))
    assert {name for name, value in found.spearman.items() if math.isnan(value)} == missing


def test_only_equal_candidates_are_compared() -> None:
    with pytest.raises(UsageError, match=r"ranks 2 candidates and the real images 3; candidate 102 is in one of them"):
        rank(accuracies(0.1, 0.2), accuracies(0.1, 0.2, 0.3))


def test_the_mean_over_repeats_ranks() -> None:
    rows = pandas.DataFrame({"candidate": [7, 3, 7, 3], "accuracy": [0.2, 0.3, 0.6, 0.3]})
    assert mean_accuracies(rows).to_dict() == pytest.approx({3: 0.3, 7: 0.4})


# Options


def searched(**content: object) -> Campaign:
    cells = {"kind": "search", "datasets": {"digits": [1]}, "methods": ["random"]}
    return parse(Campaign, {"tables": {"mine": {**cells, **content}}}, "test")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"sample": 721}, "tables.mine.sample: .*less than or equal to 720, got 721"),
        ({"sample": 0}, "tables.mine.sample: .*got 0"),
        ({"proxy": {"epoch": 3}}, "unknown option 'tables.mine.proxy.epoch'.*Did you mean 'epochs'?"),
        ({"proxy": {"lr": "searched"}}, "tables.mine.proxy.lr.*got 'searched'"),
        ({"proxy": {"lr_grid": [0.1]}}, "lr_grid .* has no effect with an architecture search; set lr, or leave lr_"),
        ({"real": {"lr": "learned"}}, "tables.mine.real: real images have no learned step size, so lr must be"),
        ({"top_by": "both"}, "tables.mine.top_by: .*got 'both'"),
    ],
)
def test_unusable_options_are_told(content: dict[str, object], text: str) -> None:
    with pytest.raises(UsageError, match=text) as caught:
        searched(**content)
    assert "\n" not in str(caught.value)


def test_what_is_not_given_is_ftds() -> None:
    search = searched(proxy={"epochs": 100}).tables["mine"]
    assert (search.proxy.epochs, search.proxy.repeats, search.proxy.lr, search.proxy.decay_epoch) == (
        100,
        3,
        0.01,
        None,
    )
    assert (search.real.epochs, search.real.repeats, search.sample, search.top_by) == (200, 3, None, "real")


@pytest.mark.parametrize(
    ("content", "parts"),
    [({"sample": 5, "per_job": 2}, ["0-1", "2-3", "4-4"]), ({"per_job": 400}, ["0-399", "400-719"])],
)
def test_a_search_is_made_in_parts(content: dict[str, object], parts: list[str]) -> None:
    options = searched(**content).tables["mine"]
    assert options.parts() == parts
    assert options.files(Layout("r"), "mine") == [
        *(f"r/nas/digits/ipc-1/random/seed-0/mine/part-{part}.parquet" for part in parts),
        *(f"r/nas/digits/real/mine/part-{part}.parquet" for part in parts),
    ]


def test_without_a_campaign_a_search_has_the_defaults() -> None:
    assert load_campaign(None).search("any") == SearchOptions()
    with pytest.raises(UsageError, match=r"unknown search 'mime' in test.yaml; known: mine. Did you mean 'mine'"):
        Resolver(searched(), (), "results/test", Path("test.yaml")).search("mime")


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("sample: 3", "sample: 2", ""),
        ("per_job: 2", "per_job: 1", ""),
        ("sample_seed: 139", "sample_seed: 0", "nas nas_real"),
        ("sample: 3", "sample: 3\n    width_factor: 0.5", "nas nas_real"),
        ("epochs: 4", "epochs: 5", "nas"),
        ("epochs: 1", "epochs: 2", "nas_real"),
        ("augment: crop_", "augment: ", "nas nas_real"),
    ],
)
def test_parameters_hold_only_what_a_job_uses(tmp_path: Path, old: str, new: str, changed: str) -> None:
    wildcards = SimpleNamespace(
        root="results/search", dataset="few", ipc="2", method="random", seed="0", search="quick", part="0-1"
    )
    path, found = tmp_path / "search.yaml", []
    assert SEARCH.count(old) == 1
    for text in (SEARCH, SEARCH.replace(old, new)):
        path.write_text(text)
        held = Campaigns(ROOT, [path])
        found.append({rule: held.options(rule, wildcards) for rule in ("nas", "nas_real")})
    assert [stage for stage in found[0] if found[0][stage] != found[1][stage]] == changed.split()


# The stage


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the images and the synthetic sets of the search."""
    folder = tmp_path_factory.mktemp("search")
    (folder / "search.yaml").write_text(SEARCH)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["data", "--config", "search.yaml", "--dataset", "few"]) == 0
        for seed in ("0", "1"):
            cell = ("--dataset", "few", "--ipc", "2", "--method", "random", "--seed", seed)
            assert main(["distill", "--config", "search.yaml", *cell]) == 0
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it as the current folder."""
    copied = tmp_path / "work"
    copied.mkdir()
    (copied / "search.yaml").write_text(SEARCH)
    for path in (prepared / RUN).rglob("*.safetensors"):
        target = copied / path.relative_to(prepared)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    monkeypatch.chdir(copied)
    return copied


PART = RUN / "nas/few/ipc-2/random/seed-0/quick/part-0-1.parquet"
STATE = RUN / "state/nas/few/ipc-2/random/seed-0/quick/part-0-1"


def measured(path: Path) -> list[Any]:
    return read_rows(path, NAS).drop(columns=["seconds", "peak_memory_bytes"]).to_dict("records")


def test_a_search_from_images_to_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in ("0-1", "2-2"):
        assert main(["nas", *CELL, "--part", part]) == 0
    assert main(["nas", *CELL, "--seed", "1"]) == 0  # both parts
    assert main(["nas", *CONFIG, "--real"]) == 0
    chosen = sample(fitting(8), 3, 139)
    rows = read_rows(PART, NAS)
    assert rows["candidate"].tolist() == [one.index for one in chosen[:2] for _ in range(2)]
    assert rows[list(SPACE)].to_dict("records") == [one.choices for one in chosen[:2] for _ in range(2)]
    assert rows["repeat"].tolist() == [0, 1, 0, 1] and rows["loss"].nunique() == 4
    assert set(rows["epochs"]) == {4} and set(rows["split"]) == {"test"} and set(rows["search"]) == {"quick"}
    real = read_rows(RUN / "nas/few/real/quick/part-2-2.parquet", NAS)
    assert (
        set(real["candidate"]) == {chosen[2].index}
        and set(real["epochs"]) == {1}
        and set(real["ipc"]) == {0}
        and set(real["method"]) == {"real"}
    )
    assert read_rows_metadata(PART, NAS)["options"]["options"]["batch_size"] == 4
    assert "120 of 720 candidates do not fit images of 8 pixels" in capsys.readouterr().out

    assert main(["table", "--config", "search.yaml", "--name", "quick"]) == 0
    table = pandas.read_csv(RUN / "quick.csv")
    assert table["method"].tolist() == ["random", "real"] and table["ipc"].tolist() == [2, 0]
    assert set(table["candidates"]) == {3} and table["seeds"].tolist() == [2, 1]
    assert table["spearman_all"].iloc[1] == 1 and table["spearman_top5"].isna().all()
    assert table["selected_accuracy"].iloc[1] == table["best_accuracy"].iloc[1]
    text = (RUN / "quick.md").read_text()
    assert "published" not in text.casefold() and "of 3 of 720 ConvNets" in text
    assert not [path for path in (RUN / "state").rglob("*") if path.is_file()]

    path = RUN / "nas/few/ipc-2/random/seed-1/quick/part-2-2.parquet"
    real = RUN / "nas/few/real/quick/part-2-2.parquet"
    kept = real.read_bytes()
    real.write_bytes(path.read_bytes())
    with pytest.raises(UsageError, match=r"real/quick/part-2-2.parquet is of ipc 2, expected 0; make it again"):
        frame_of(load_campaign(Path("search.yaml")), "quick")
    real.write_bytes(kept)
    held = read_rows(path, NAS)
    write_rows(path, held.to_dict("records"), NAS, {"options": {"distilled": "abc"}})  # type: ignore[arg-type]
    with pytest.raises(
        UsageError,
        match=r"is not what .*: it is of another synthetic set than .*; make it with: .*satm nas .* --overwrite$",
    ):
        frame_of(load_campaign(Path("search.yaml")), "quick")
    write_rows(path, held.assign(candidate=5).to_dict("records"), NAS, {})
    with pytest.raises(UsageError, match=r"is in one of them only; make both with the same sample and sample_seed"):
        frame_of(load_campaign(Path("search.yaml")), "quick")
    path.unlink()
    command = r"nas --config search.yaml --dataset few --ipc 2 --method random --seed 1 --search quick --part 2-2$"
    with pytest.raises(UsageError, match=command):
        frame_of(load_campaign(Path("search.yaml")), "quick")


@pytest.mark.parametrize(("together", "writes", "kept"), [("no", 1, 1), ("no", 3, 3), ("yes", 1, 2)])
def test_a_stopped_part_goes_on_to_the_same_rows(folder: Path, together: str, writes: int, kept: int) -> None:
    Path("search.yaml").write_text(SEARCH.replace("{epochs: 4,", f"{{together: '{together}', epochs: 4,"))
    command = ["nas", *CELL, "--part", "0-1"]
    assert main(command) == 0
    whole = measured(PART)
    PART.unlink()
    with stopped_after(writes, "/rows-"):
        assert main(command) == 75 and not PART.exists()
    rows = kept_rows(STATE)
    assert len(rows) == kept
    assert main(command) == 0
    assert read_rows(PART, NAS)["seconds"].tolist()[:kept] == [row["seconds"] for row in rows], "only what was missing"
    assert measured(PART) == whole and not STATE.exists()


def test_every_network_has_a_start_of_its_own(folder: Path) -> None:
    losses: list[float] = []
    for flags in (CELL, (*CELL, "--seed", "1"), (*CELL, "--network-seed", "1"), (*CONFIG, "--real")):
        assert main(["nas", *flags]) == 0
        root = HAND if "--network-seed" in flags else RUN
        seed = "seed-1" if "--seed" in flags else "seed-0"
        place = "real" if "--real" in flags else f"ipc-2/random/{seed}"
        parts = [root / f"nas/few/{place}/quick/part-{part}.parquet" for part in ("0-1", "2-2")]
        losses += [loss for part in parts for loss in read_rows(part, NAS)["loss"]]
    assert len(losses) == len(set(losses)) == 4 * 3 * 2


def test_rows_of_another_recipe_are_not_kept(folder: Path, refused: Refuse) -> None:
    with stopped_after(1, "/rows-"):
        assert main(["nas", *CELL, "--part", "0-1"]) == 75
    Path("search.yaml").write_text(SEARCH.replace("epochs: 4", "epochs: 2"))
    assert "options.epochs: expected 2, found 4" in refused("nas", *CELL, "--part", "0-1")
    assert main(["nas", *CELL, "--part", "0-1", "--overwrite"]) == 0
    assert set(read_rows(PART, NAS)["epochs"]) == {2}


def test_a_candidate_that_diverges_is_a_bad_one(folder: Path) -> None:
    assert main(["nas", *CELL, "--part", "2-2", "--lr", "1e30"]) == 0
    rows = read_rows(HAND / PART.relative_to(RUN).with_name("part-2-2.parquet"), NAS)
    assert not rows["loss"].map(math.isfinite).any() and rows["accuracy"].isna().all()
    assert mean_accuracies(rows).tolist() == [0.0]


def test_parts_beyond_the_candidates_that_fit_are_empty(folder: Path) -> None:
    whole = SEARCH.replace("    sample: 3\n", "").replace("per_job: 2", "per_job: 600")
    Path("search.yaml").write_text(whole)
    assert main(["nas", *CELL, "--part", "600-719"]) == 0
    assert read_rows(PART.with_name("part-600-719.parquet"), NAS).empty


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        ((*CELL, "--real"), ("--ipc has no effect with --real; leave it out",)),
        ((*CONFIG, "--real", "--seed", "1"), ("--seed has no effect with --real; leave it out",)),
        ((*CONFIG, "--ipc", "2"), ("needs --ipc and --method of a synthetic set, or --real for all real images",)),
        ((*CELL, "--part", "0-2"), ("unknown part '0-2' of search quick; known: 0-1, 2-2",)),
        ((*CELL[:-1], "mtt"), ("synthetic set", "does not exist", "distill --config search.yaml --dataset few")),
        ((*CELL, "--sample", "601"), ("sample asks for 601 candidates, 600 fit the images",)),
        ((*CELL, "--sample", "721"), ("search quick: sample", "less than or equal to 720")),
        ((*CELL, "--split", "validation"), ("holds out no validation images",)),
        ((*CELL, "--epochs", "0"), ("epochs", "greater than or equal to 1")),
        ((*CONFIG, "--real", "--lr", "learned"), ("search quick: real: real images have no learned step size",)),
        ((*CONFIG, "--real", "--lr", "-1"), ("training needs a positive step size",)),
        ((*CONFIG[:-1], "quikc", "--real"), ("unknown search 'quikc' in search.yaml", "Did you mean 'quick'?")),
    ],
    ids=lambda value: " ".join(value[6:]) if isinstance(value, tuple) and value[0].startswith("--") else None,
)
def test_unusable_flags_are_one_line(
    folder: Path, refused: Refuse, arguments: tuple[str, ...], texts: tuple[str, ...]
) -> None:
    told = refused("nas", *arguments)
    for text in texts:
        assert text in told, told
    assert not list(Path("results").rglob("nas/**/*.parquet"))


# The table


def written(resolver: Resolver, name: str, accuracy: dict[tuple[int, str, int], list[float]]) -> None:
    """Write files of a search of some candidates with these accuracies, by ipc, method and seed; ipc 0: real."""
    for (ipc, method, seed), values in accuracy.items():
        rows = [
            {
                **{"dataset": "cifar10", "ipc": ipc, "method": method, "seed": seed, "search": name},
                **{"candidate": one.index, **one.choices, "repeat": 0, "split": "test", "accuracy": value},
                **{"loss": 1.0, "epochs": 1, "seconds": 60.0, "peak_memory_bytes": 1},
            }
            for one, value in zip(candidates()[10:], values, strict=False)
        ]
        layout, part = resolver.layout, f"0-{len(values) - 1}"
        path = (
            layout.nas(Cell("cifar10", ipc, method, seed), name, part)
            if ipc
            else layout.nas_real("cifar10", name, part)
        )
        write_rows(Path(path), rows, NAS, {})


def test_a_candidate_in_two_files_of_one_run_is_refused() -> None:
    part = pandas.DataFrame(
        {"dataset": "d", "ipc": 0, "method": "real", "seed": 0, "search": "s", "candidate": [1, 2], "repeat": 0}
    ).assign(accuracy=[0.5, 0.6])
    refuse_repeats({"a": part, "b": part.assign(candidate=[3, 4])}, NAS)
    text = r"candidate 2, repeat 0: row 1 of a \(accuracy 0.6\) and row 0 of b \(accuracy 0.7\); delete what is wrong"
    with pytest.raises(UsageError, match=text):
        refuse_repeats({"a": part, "b": part.assign(candidate=[2, 3], accuracy=[0.7, 0.5])}, NAS)


def test_a_table_of_two_sets_beside_the_published_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cells = {"kind": "search", "datasets": {"cifar10": [50]}, "methods": ["mtt", "satm"], "seeds": [0, 1], "sample": 3}
    content = {"tables": {"ftd-table5": cells}}
    resolver = Resolver(parse(Campaign, content, "test"), (), "results", Path("test.yaml"))
    real = [0.7, 0.9, 0.8]
    written(
        resolver,
        "ftd-table5",
        {
            (0, "real", 0): real,
            (50, "mtt", 0): [0.2, 0.4, 0.3],  # the same order
            (50, "mtt", 1): [0.3, 0.2, 0.4],  # ranks 2 1 3 against 1 3 2: 1 - 6 * 6 / 24
            (50, "satm", 0): [0.1, 0.1, 0.1],
            (50, "satm", 1): [0.2, 0.4, 0.3],
        },
    )
    mtt, satm, whole = frame_of(resolver, "ftd-table5").to_dict("records")
    assert mtt["spearman_all"] == pytest.approx((1 - 0.5) / 2)
    assert mtt["spearman_all_std"] == pytest.approx(1.5 / math.sqrt(2))
    assert mtt["selected_accuracy"] == pytest.approx((0.9 + 0.8) / 2) and mtt["best_accuracy"] == 0.9
    assert mtt["selected"] == f"{candidates()[11]}, {candidates()[12]}"
    assert (mtt["proxy_minutes"], mtt["real_minutes"], mtt["candidates"]) == (3, 3, 3)
    assert (mtt["published_spearman_top5"], mtt["published_minutes"]) == (0.41, 360)
    assert math.isnan(satm["spearman_all"]) and math.isnan(satm["published_spearman_top5"])
    assert whole["method"] == "real" and whole["spearman_all"] == 1 and math.isnan(whole["proxy_minutes"])
    assert whole["published_minutes"] == 6804 and whole["published_source"] == "ftd Table 5"
    (grid,) = made(resolver, "ftd-table5").grids
    lines = grid.markdown().splitlines()
    assert lines[0].startswith("| dataset | IPC | method | top 5 | top 5 (published) |")
    assert "| 0.25 ± 1.06 | 85.0 ± 7.1 | 3.0 | 360.0 | 90.0 | 3 |" in lines[2]
    assert "| all | real |" in lines[4] and "| 6804.0 |" in lines[4]


def test_a_table_of_narrower_networks_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cells = {"kind": "search", "datasets": {"cifar10": [1]}, "methods": ["mtt"], "sample": 3, "width_factor": 0.125}
    resolver = Resolver(parse(Campaign, {"tables": {"mine": cells}}, "test"), (), "results", Path("test.yaml"))
    written(resolver, "mine", {(0, "real", 0): [0.7, 0.9, 0.8], (1, "mtt", 0): [0.2, 0.4, 0.3]})
    contents = made(resolver, "mine")
    assert contents.frame["selected"].tolist() == [str(candidates(0.125)[11])] * 2
    assert "Widths are 0.125 times the papers'." in contents.grids[0].markdown()


@pytest.mark.parametrize(("top_by", "expected"), [("real", 1 - 6 * 12 / 120), ("proxy", 0)])
def test_a_table_says_whose_accuracies_choose_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, top_by: str, expected: float
) -> None:
    monkeypatch.chdir(tmp_path)
    cells = {"kind": "search", "datasets": {"cifar10": [1]}, "methods": ["mtt"], "sample": 6, "top_by": top_by}
    resolver = Resolver(parse(Campaign, {"tables": {"mine": cells}}, "test"), (), "results", Path("test.yaml"))
    real, proxy = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [0.6, 0.1, 0.5, 0.4, 0.3, 0.9]  # the best five: without 0.4, or 0.1
    written(resolver, "mine", {(0, "real", 0): real, (1, "mtt", 0): proxy})
    made(resolver, "mine")
    table = pandas.read_csv("results/mine.csv")
    assert table["spearman_top5"].tolist() == pytest.approx([expected, 1]) and table["spearman_top10"].isna().all()
    named = {"real": "by the real images", "proxy": "by the synthetic set"}
    assert named[top_by] in Path("results/mine.md").read_text()


def test_published_numbers_are_of_papers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cells = {"kind": "search", "datasets": {"cifar10": [10]}, "methods": ["dc"], "sample": 3}
    content = {"tables": {"contra-table7": cells, "mine": cells}}
    resolver = Resolver(parse(Campaign, content, "test"), (), "results", Path("test.yaml"))
    for name in content["tables"]:
        written(resolver, name, {(0, "real", 0): [0.1, 0.2, 0.3], (10, "dc", 0): [0.1, 0.2, 0.3]})
    dc, whole = frame_of(resolver, "contra-table7").to_dict("records")
    assert (dc["published_selected_accuracy"], dc["published_spearman_top10"]) == (pytest.approx(0.845), 0.79)
    assert whole["published_selected_accuracy"] == pytest.approx(0.859)
    assert frame_of(resolver, "mine").filter(like="published").isna().all(axis=None)
    assert set(PUBLISHED) <= set(load_campaign(ROOT / "config/paper.yaml").campaign.tables)
