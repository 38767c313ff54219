"""Stored states that do not fit name everything that differs: of distillations, rows, networks, experts."""

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Refuse
from resuming import stopped_after

from satm.cli import main
from satm.config import REVISIONS
from satm.experts import Snapshot
from satm.run.lock import exclusive
from satm.stages.checkpoint import ExpertState, Generations, NetworkState

CELL = ("--config", "tiny.yaml", "--dataset", "digits", "--ipc", "1")
DISTILL = ("distill", *CELL, "--method", "dm", "--iterations", "31", "--checkpoint-seconds", "0")
EVALUATE = ("evaluate", *CELL, "--method", "satm")

NETWORK, IMAGES = "network.width: expected 5, found 4", r"the dataset's images, data: expected \w{8}…, found \w{8}…"
REVISION, OPTIONS = (
    "the version of the computation, revision: expected 2, found 1",
    r"options.lr_images: expected .*, found",
)


def change(campaign: Path, old: str, new: str) -> None:
    text = (campaign / "tiny.yaml").read_text()
    assert old in text
    (campaign / "tiny.yaml").write_text(text.replace(old, new))


def change_network(campaign: Path) -> None:
    change(campaign, "{depth: 1, width: 4}}\n  - {stage: evaluate", "{depth: 1, width: 5}}\n  - {stage: evaluate")


def change_images(campaign: Path) -> None:
    change(campaign, "digits: {source: digits,", "digits: {source: digits, validation: 5,")
    assert main(["data", "--config", "tiny.yaml", "--dataset", "digits", "--overwrite"]) == 0


@pytest.fixture
def begun(campaign: Path) -> Path:
    """The campaign with the checkpoint of a distillation."""
    with stopped_after(2, "/checkpoint-"):
        assert main(list(DISTILL)) == 75
    return campaign


def warning(capsys: pytest.CaptureFixture[str], refused: Refuse, *arguments: str) -> str:
    """Run a stage to its end, which it refuses without --overwrite, and return its first line on another run."""
    told = refused(*arguments)
    assert "has the state of an unfinished run that differs (" in told and "add --overwrite to discard it" in told
    assert main([*arguments, "--overwrite"]) == 0
    line, *_ = (line for line in capsys.readouterr().out.splitlines() if "belongs to another run" in line)
    assert line.endswith("; starting from the beginning")
    return line


@pytest.mark.parametrize(
    "changed", [(NETWORK,), (IMAGES,), (REVISION,), (OPTIONS,), (NETWORK, IMAGES, REVISION, OPTIONS)]
)
def test_a_distillations_checkpoint_names_all_that_differs(
    begun: Path,
    changed: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    refused: Refuse,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if NETWORK in changed:
        change_network(begun)
    if IMAGES in changed:
        change_images(begun)
    if REVISION in changed:
        monkeypatch.setitem(REVISIONS, "distill", 2)
    line = warning(capsys, refused, *DISTILL, *(("--lr-images", "0.5") if OPTIONS in changed else ()))
    for part in (NETWORK, IMAGES, REVISION, OPTIONS):
        assert bool(re.search(part, line)) == (part in changed), (part, line)


def test_experts_refuse_the_state_of_others_before_the_first_part(
    campaign: Path, refused: Refuse, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(campaign / "results/tiny/experts")
    state = campaign / "results/tiny/state/experts/digits/sgd/part-1-1/expert-001"
    ExpertState(state, {"recipe": {"lr": 0.1}}).save(Snapshot(0, torch.zeros(3), None, float("nan")))
    told = refused("experts", *CELL[:4])
    assert "part-1-1 has the state of an unfinished run that differs (augmentation: expected" in told
    assert not (campaign / "results/tiny/experts").exists()
    assert main(["experts", *CELL[:4], "--overwrite"]) == 0
    assert "state of an expert belongs to another run" in capsys.readouterr().out


@pytest.mark.parametrize("saved", [False, True])
def test_a_process_that_was_killed_before_it_saved_anything_is_told(
    campaign: Path, saved: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if saved:
        with stopped_after(2, "/checkpoint-"):
            assert main(list(DISTILL)) == 75
    folder = campaign / "results/hand/tiny/state/distill/digits/ipc-1/dm/seed-0"
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder, "it"):
        owner = json.loads((folder / ".lock-000001").read_text())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".lock-000001").write_text(json.dumps({**owner, "began": "another process of this number"}))
    assert main(list(DISTILL)) == 0
    told = capsys.readouterr().out
    assert ("an earlier process was killed here before it saved anything" in told) == (not saved)
    assert ("resuming after iteration" in told) == saved


def test_another_number_of_threads_is_told_and_gone_on_with(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main([*DISTILL, "--threads", "3"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"resuming with cpu, 3 threads, torch \S+ a run begun with cpu, \d threads, torch", told)
    assert re.search(r"resuming after iteration 2\d", told) and "another run" not in told


def test_rows_of_another_schedule_and_images_are_not_taken(
    campaign: Path, capsys: pytest.CaptureFixture[str], refused: Refuse
) -> None:
    with stopped_after(1, "/rows-"):
        assert main([*EVALUATE, "--repeats", "3"]) == 75
    change_network(campaign)
    for stage in ("experts", "distill"):
        method = ("--method", "satm", *CELL[4:]) if stage == "distill" else ()
        assert main([stage, *CELL[:4], *method, "--overwrite"]) == 0
    line = warning(capsys, refused, *EVALUATE, "--repeats", "3", "--epochs", "4")
    assert NETWORK in line and "options.epochs: expected 4, found 3" in line and "data" not in line


def test_rows_of_another_backend_are_told_and_taken(campaign: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with stopped_after(1, "/rows-"):
        assert main([*EVALUATE, "--repeats", "3"]) == 75
    capsys.readouterr()
    assert main([*EVALUATE, "--repeats", "3", "--threads", "3"]) == 0
    told = capsys.readouterr().out
    assert "rounding will differ from that of an uninterrupted run" in told and "another run" not in told


def tensors() -> dict[str, torch.Tensor]:
    return {"weights": torch.randn(3)}


def test_networks_in_training_are_told_apart_and_other_runs_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    identity = {"network": {"width": 4}, "data": "one"}
    NetworkState(tmp_path, identity, [[1], 0], every=0).save(5, tensors)
    caplog.set_level(logging.WARNING)
    assert NetworkState(tmp_path, identity, [[2], 1]).load() is None and not caplog.messages  # the next network
    found = NetworkState(tmp_path, identity, [[1], 0]).load()
    assert found is not None and found[0] == 5 and not caplog.messages
    assert NetworkState(tmp_path, {"network": {"width": 5}, "data": "two"}, [[1], 0]).load() is None
    assert caplog.messages == [
        "the existing network state belongs to another run (the dataset's images, data: expected 'two', found 'one'; "
        "network.width: expected 5, found 4); starting from the beginning"
    ]


def test_an_experts_state_names_what_differs_and_where_it_was_begun(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    ExpertState(tmp_path / "it", {"recipe": {"lr": 0.1}}, "here").save(Snapshot(0, torch.zeros(3), None, float("nan")))
    assert ExpertState(tmp_path / "it", {"recipe": {"lr": 0.1}}, "here").load() is not None and not caplog.messages
    assert ExpertState(tmp_path / "it", {"recipe": {"lr": 0.1}}, "there").load() is not None
    assert "resuming with there a run begun with here" in caplog.messages[0]
    assert ExpertState(tmp_path / "it", {"recipe": {"lr": 0.2}}, "here").load() is None
    assert "state of an expert belongs to another run (recipe.lr: expected 0.2, found 0.1)" in caplog.messages[1]


@pytest.mark.parametrize(("found", "told"), [([[1], 0, {}], "is of an earlier version"), ({}, None)])
def test_states_of_earlier_versions(
    tmp_path: Path, found: Any, told: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Networks had another form; none but distillations stated their backend."""
    caplog.set_level(logging.WARNING)
    Generations(tmp_path, "network", found).save(tensors(), {"epoch": 5})
    state = NetworkState(tmp_path, {}, backend="here").load()
    assert (state is None) == (told is not None)
    assert [told in message for message in caplog.messages if told] == [True] * (told is not None)


def test_a_long_list_of_differences_is_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    Generations(tmp_path, "rows", {str(number): 0 for number in range(30)}).save({}, {})
    assert Generations(tmp_path, "rows", {str(number): 1 for number in range(30)}).load() is None
    assert caplog.messages[0].count("expected") == 8 and " and 22 more)" in caplog.messages[0]


def test_a_refusal_says_that_the_state_beside_a_finished_result_would_go_too(begun: Path, refused: Refuse) -> None:
    """A result is finished, a run of other options that is to replace it is not; then comes a third."""
    assert main(list(DISTILL)) == 0
    longer = [*DISTILL, "--overwrite"]
    longer[longer.index("31")] = "40"
    with stopped_after(2, "/checkpoint-"):
        assert main(longer) == 75
    assert main(list(DISTILL)) == 0, "the finished result is still there"
    third = ["50" if each == "31" else each for each in DISTILL]
    told = refused(*third)
    assert "options.iterations: expected 50, found 31; add --overwrite" in told
    assert "; --overwrite also discards the state of an unfinished run, results/hand/" in told
