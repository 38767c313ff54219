"""Tables of what images are worth, against numbers computed by hand from the rows, and from the real commands."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy
import pandas
import pytest
import torch
from drawing import torch_generator
from resuming import stopped_after
from scipy import stats
from tabulating import frame_of

from satm.cli import main
from satm.config import Campaign, Cell, Resolver, load_campaign, parse
from satm.errors import UsageError
from satm.results.columns import EVALUATION
from satm.results.distilled import DistilledDataset, load_distilled, save_distilled
from satm.results.rows import read_rows, write_rows
from satm.storage.tensors import read_tensors
from satm.tables.robustness import RobustnessTable
from satm.tables.statistics import augmentation_robust_score, label_robust_score

TABLE = {"kind": "robustness", "datasets": {"digits": [1]}, "methods": ["random", "mtt", "datm"], "seeds": [0, 1, 2]}
ACCURACY = {
    # method: (class, augmented), (class, plain), (soft, augmented), (soft, plain)
    "random": (0.30, 0.20, 0.40, 0.35),
    "mtt": (0.60, 0.55, 0.62, 0.50),
    "datm": (0.50, 0.45, 0.70, 0.66),
}
OWN = {"random": "teacher", "mtt": "teacher", "datm": "own"}
SEEDS = {0: -0.02, 1: 0.0, 2: 0.03}


def accuracy(method: str, which: int, seed: int, repeat: int) -> float:
    """Worse and better by seed, and a little by network and method."""
    return ACCURACY[method][which] + SEEDS[seed] * (1 + (method == "datm")) + 0.01 * (repeat - 0.5)


def make(root: Path, seeds: tuple[int, ...] = (0, 1, 2), lost: str = "") -> Resolver:
    """Return a campaign whose files exist; full data reaches 0.9; `lost` lacks its second network."""
    campaign = Campaign.model_validate({"tables": {"worth": {**TABLE, "seeds": seeds}}})
    resolver = Resolver(campaign, (), str(root / "results"), Path("config/small.yaml"))
    common = {"dataset": "digits", "network": "convnet", "split": "test", "selection": "last", "average": "raw"}
    common |= {"step_size": "learned", "loss": 1.0, "epochs": 5, "seconds": 1.0, "peak_memory_bytes": 7}
    for method in ACCURACY:
        for seed in seeds:
            rows = [
                {
                    **common,
                    "ipc": 1,
                    "method": method,
                    "seed": seed,
                    "repeat": repeat,
                    "labels": labels,
                    "labelled": "class" if labels == "hard" else OWN[method],
                    "augmented": augmented,
                    "accuracy": accuracy(method, 2 * (labels == "soft") + (augmented == "no"), seed, repeat),
                }
                for labels in ("hard", "soft")
                for augmented in ("yes", "no")
                for repeat in range(1 if method == lost else 2)
            ]
            write_rows(Path(resolver.layout.variants(Cell("digits", 1, method, seed), "convnet")), rows, EVALUATION, {})
    full = {**common, "ipc": 0, "method": "full-strong", "seed": 0, "labels": "hard", "labelled": "own"}
    rows = [
        {**full, "repeat": repeat, "augmented": "yes", "accuracy": 0.9 + 0.02 * (repeat - 0.5)} for repeat in (0, 1)
    ]
    write_rows(Path(resolver.layout.full("digits", "strong", "convnet")), rows, EVALUATION, {})
    return resolver


def interval(values: Any) -> tuple[float, float]:
    low, high = stats.t.interval(0.95, len(values) - 1, numpy.mean(values), stats.sem(values))
    return float(low), float(high)


def test_every_number_is_the_one_worked_out_from_the_rows(tmp_path: Path) -> None:
    frame = frame_of(make(tmp_path), "worth")
    assert list(frame.columns) == list(RobustnessTable.columns) and frame["method"].tolist() == [
        "random",
        "mtt",
        "datm",
    ]
    assert frame["own_labels"].tolist() == ["hard", "hard", "soft"]
    assert frame["soft_labels"].tolist() == ["teacher", "teacher", "own"]
    assert frame["full_mean"].tolist() == pytest.approx([0.9] * 3)
    assert frame[["networks", "seeds"]].to_numpy().tolist() == [[2, 3]] * 3
    shifts = numpy.array(list(SEEDS.values()))
    datm = frame.iloc[2]
    means = [0.70 + 2 * shift for shift in shifts]
    assert datm["soft_mean"] == pytest.approx(numpy.mean(means))
    assert (datm["soft_low"], datm["soft_high"]) == pytest.approx(interval(means))
    networks = [accuracy("datm", 2, seed, repeat) for seed in SEEDS for repeat in (0, 1)]
    assert datm["soft_std"] == pytest.approx(numpy.std(networks, ddof=1))
    gain, plain = 0.70 - 0.40 + shifts, 0.66 - 0.35 + shifts  # over random with soft labels, paired by seed
    gap = 0.9 - (0.50 + 2 * shifts)  # of hard labels
    assert datm["improvement_mean"] == pytest.approx(gain.mean())
    assert (datm["improvement_low"], datm["improvement_high"]) == pytest.approx(interval(gain))
    assert datm["improvement_plain_mean"] == pytest.approx(plain.mean())
    assert (datm["gap_mean"], datm["gap_low"]) == pytest.approx((gap.mean(), interval(gap)[0]))
    scores = [label_robust_score(one, two) for one, two in zip(gain, gap, strict=True)]
    assert (datm["lrs_mean"], datm["lrs_high"]) == pytest.approx((numpy.mean(scores), interval(scores)[1]))
    scores = [augmentation_robust_score(one, two) for one, two in zip(gain, plain, strict=True)]
    assert (datm["ars_mean"], datm["ars_low"]) == pytest.approx((numpy.mean(scores), interval(scores)[0]))
    mtt = frame.iloc[1]  # its own labels are hard: compared with random images with hard ones
    assert (mtt["improvement_mean"], mtt["improvement_plain_mean"]) == pytest.approx((0.30, 0.35))
    assert frame.iloc[0]["improvement_mean"] == pytest.approx(0) and frame.iloc[0]["gap_mean"] == pytest.approx(
        0.6 - shifts.mean()
    )


def test_with_one_seed_the_pairs_are_networks(tmp_path: Path) -> None:
    mtt = frame_of(make(tmp_path, seeds=(1,)), "worth").iloc[1]
    assert mtt["improvement_mean"] == pytest.approx(0.30) and mtt["improvement_high"] == pytest.approx(0.30)
    assert (mtt["hard_low"], mtt["hard_high"]) == pytest.approx(interval([0.595, 0.605]))


def test_what_cannot_be_paired_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"have different repeats \(\[0\] and \[0, 1\]\); evaluate both with the same"):
        frame_of(make(tmp_path, seeds=(1,), lost="mtt"), "worth")


def test_rows_of_another_kind_or_too_few_are_refused(tmp_path: Path) -> None:
    resolver = make(tmp_path)
    path = Path(resolver.layout.variants(Cell("digits", 1, "mtt", 1), "convnet"))
    whole = path.read_bytes()
    write_rows(path, read_rows(path, EVALUATION).to_dict("records")[:-1], EVALUATION, {})
    with pytest.raises(UsageError, match=r"mtt/seed-1/.* has different networks for the kinds of labels and augm"):
        frame_of(resolver, "worth")
    path.write_bytes(whole)
    Path(resolver.layout.full("digits", "strong", "convnet")).write_bytes(whole)
    with pytest.raises(UsageError, match=r"full/.* is of method mtt, expected full-strong; make it again"):
        frame_of(resolver, "worth")


def test_a_missing_file_names_the_command(tmp_path: Path) -> None:
    resolver = make(tmp_path)
    Path(resolver.layout.variants(Cell("digits", 1, "mtt", 2), "convnet")).unlink()
    command = "evaluate --what variants --config config/small.yaml --dataset digits --ipc 1 --method mtt --seed 2"
    with pytest.raises(UsageError, match=f"make it with: python -m satm {command} --network convnet$"):
        frame_of(resolver, "worth")
    Path(resolver.layout.full("digits", "strong", "convnet")).unlink()
    with pytest.raises(
        UsageError, match=r"--what full --config config/small.yaml --dataset digits --recipe strong --network convnet$"
    ):
        frame_of(resolver, "worth")


def test_a_table_without_its_baseline_is_refused() -> None:
    with pytest.raises(UsageError, match="methods lacks the baseline 'random'; add it, or name another"):
        parse(Campaign, {"tables": {"a": {**TABLE, "methods": ["mtt"]}}}, "small.yaml")


RUN = Path("results/tiny")
HAND = Path("results/hand/tiny")
"""Folder of runs with other options than the campaign's."""
CELL = ("--config", "tiny.yaml", "--dataset", "digits", "--ipc", "1", "--method", "satm")
DISTILLED = RUN / "distilled/digits/ipc-1/satm/seed-0/distilled.safetensors"
VARIANTS = RUN / "variants/digits/ipc-1/satm/seed-0/convnet.parquet"


def variants(made: DistilledDataset) -> pandas.DataFrame:
    save_distilled(DISTILLED, made)
    assert main(["evaluate", *CELL, "--what", "variants", "--overwrite"]) == 0
    return read_rows(VARIANTS, EVALUATION)


def outcomes(rows: pandas.DataFrame) -> list[Any]:
    return rows[["repeat", "accuracy", "loss"]].to_dict("records")


def test_a_set_with_hard_labels_gets_soft_ones_from_experts(campaign: Path) -> None:
    rows = variants(load_distilled(DISTILLED))
    kinds = [("hard", "class", "yes"), ("hard", "class", "no"), ("soft", "teacher", "yes"), ("soft", "teacher", "no")]
    found = rows[["labels", "labelled", "augmented"]].itertuples(index=False, name=None)
    assert list(found) == [kind for kind in kinds for _ in range(2)]
    assert rows["loss"].nunique() == 8
    own = read_rows(RUN / "evaluation/digits/ipc-1/satm/seed-0/convnet.parquet", EVALUATION)
    assert outcomes(rows[:2]) == outcomes(own), "its own labels, augmented: the same networks as the evaluation's"


def test_a_set_with_soft_labels_keeps_its_own(campaign: Path) -> None:
    made = load_distilled(DISTILLED)
    logits = torch.randn(10, 10, generator=torch_generator(0))
    soft = dataclasses.replace(made, labels=logits)
    rows = variants(soft)
    assert rows["labelled"].tolist() == ["class"] * 4 + ["own"] * 4
    assert main(["evaluate", *CELL, "--overwrite"]) == 0
    own = read_rows(RUN / "evaluation/digits/ipc-1/satm/seed-0/convnet.parquet", EVALUATION)
    assert outcomes(rows[4:6]) == outcomes(own)
    hard = variants(dataclasses.replace(made, labels=logits.argmax(1)))
    assert outcomes(hard[:4]) == outcomes(rows[:4]), "hard labels are the largest of the soft ones"


def test_the_searched_step_size_is_in_the_rows(campaign: Path) -> None:
    cell = [argument if argument != "digits" else "held" for argument in CELL]
    for first in (["data", "--dataset", "held"], ["experts", "--dataset", "held"]):
        assert main([*first, "--config", "tiny.yaml"]) == 0
    assert main(["distill", *cell]) == 0
    grid = ["--lr", "searched", "--lr-grid", "1e-6", "0.05", "--epochs", "15"]
    assert main(["evaluate", *cell, *grid]) == 0
    path = Path(HAND, "evaluation/held/ipc-1/satm/seed-0/convnet.parquet")
    rows = read_rows(path, EVALUATION)
    assert rows["step_size"].tolist() == ["searched"] * 2 and rows["rate"].tolist() == [0.05] * 2
    assert main(["evaluate", *cell, "--lr", "0.02", "--overwrite"]) == 0
    rows = read_rows(path, EVALUATION)
    assert rows["step_size"].tolist() == ["fixed"] * 2 and rows["rate"].tolist() == [0.02] * 2


def test_a_search_without_held_out_images_is_refused(campaign: Path, refused: Any) -> None:
    text = refused("evaluate", *CELL, "--lr", "searched")
    assert "dataset digits holds out no validation images; set its option validation above 0" in text
    assert main(["evaluate", *CELL, "--lr", "searched", "--lr-images", "train", "--lr-grid", "0.01"]) == 0


FULL = ("evaluate", "--config", "tiny.yaml", "--dataset", "digits", "--what", "full")


def test_real_images_by_two_recipes(campaign: Path) -> None:
    resolver = load_campaign(Path("tiny.yaml"))
    experts, strong = (resolver.full(recipe, "digits") for recipe in ("experts", "strong"))
    recipe = resolver.experts("sgd", "digits")
    assert (experts.lr, experts.epochs, experts.momentum, experts.weight_decay) == (recipe.lr, recipe.epochs, 0, 0)
    assert (experts.schedule, experts.decay_epoch) == ("step", None)
    assert (strong.lr, strong.momentum, strong.schedule, strong.epochs) == (0.1, 0.9, "cosine", 200)
    assert main([*FULL, "--recipe", "strong", "--epochs", "8", "--repeats", "1", "--network", "small"]) == 0
    rows = read_rows(HAND / "full/digits/strong/small.parquet", EVALUATION)
    assert rows[["method", "ipc", "labels", "step_size", "rate"]].values.tolist() == [
        ["full-strong", 0, "hard", "fixed", 0.1]
    ]
    assert rows["accuracy"].item() > 0.5
    few = read_rows(RUN / "evaluation/digits/ipc-1/satm/seed-0/convnet.parquet", EVALUATION)
    assert rows["accuracy"].item() > few["accuracy"].max()


def test_settings_that_name_the_recipe_change_it(tmp_path: Path) -> None:
    rows = [{"stage": "evaluate", "options": {"epochs": 7}}]
    rows += [{"stage": "evaluate", "method": "full-strong", "options": {"lr": 0.5}}]
    resolver = Resolver(parse(Campaign, {"settings": rows}, "x"), (), "results")
    assert (resolver.full("strong", "digits").lr, resolver.full("strong", "digits").epochs) == (0.5, 200)
    with pytest.raises(UsageError, match=r"unknown recipe .* 'stron'; known: experts, strong. Did you mean 'strong'"):
        resolver.full("stron", "digits")


def test_a_stopped_training_on_real_images_goes_on(campaign: Path) -> None:
    command = [*FULL, "--recipe", "experts", "--repeats", "1", "--epochs", "3", "--network", "small"]
    target = HAND / "full/digits/experts/small.parquet"
    assert main(command) == 0
    whole = outcomes(read_rows(target, EVALUATION))
    target.unlink()
    with stopped_after(1, "/small/.lock-"):
        assert main(command) == 75 and not target.exists()
    kept, content = read_tensors(HAND / "state/full/digits/experts/small/network-0.safetensors", "state")
    assert content["epoch"] == 1 and kept
    assert main(command) == 0
    assert outcomes(read_rows(target, EVALUATION)) == whole


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--what", "full", "--ipc", "1"), "--ipc has no effect with --what full; leave it out"),
        (("--what", "variants", "--ipc", "1"), "--what variants needs --ipc and --method, got no --method"),
        (("--what", "full", "--lr", "learned"), "real images have no learned step size, got lr 'learned'"),
        (("--ipc", "1", "--method", "satm", "--recipe", "experts"), "--recipe has no effect with --what set"),
    ],
)
def test_flags_that_do_not_fit_are_refused(campaign: Path, refused: Any, arguments: tuple[str, ...], text: str) -> None:
    assert text in refused("evaluate", "--config", "tiny.yaml", "--dataset", "digits", *arguments)


def test_the_commands_make_the_table(campaign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = Path("tiny.yaml").read_text()
    content += "  worth: {kind: robustness, datasets: {digits: [1]}, methods: [random, satm], full: experts}\n"
    Path("tiny.yaml").write_text(content)
    cell = ["--config", "tiny.yaml", "--dataset", "digits", "--ipc", "1"]
    assert main(["distill", *cell, "--method", "random"]) == 0
    for method in ("random", "satm"):
        assert main(["evaluate", *cell, "--method", method, "--what", "variants"]) == 0
    assert main([*FULL, "--recipe", "experts"]) == 0
    capsys.readouterr()
    assert main(["table", "--config", "tiny.yaml", "--name", "worth"]) == 0
    shown = capsys.readouterr().out
    assert "What images are worth" in shown and "satm" in shown
    frame = pandas.read_csv(RUN / "worth.csv")
    assert frame["method"].tolist() == ["random", "satm"] and frame["full_mean"].notna().all()
    text = (RUN / "worth.md").read_text()
    assert "Fewer than 5 networks or 3 sets" in text and "2 networks on each of 1 set" in text
    state = sorted((RUN / "state").rglob("*.json"))
    assert state == [], json.dumps([str(path) for path in state])
