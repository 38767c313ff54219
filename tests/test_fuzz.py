"""A sample of the cases of `tests/stress/fuzz.py`, and proof that the fuzzers can fail."""

import datetime
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import fuzz
import pytest
import torch
from fuzz_configs import bomb, check_config, configs, same, twice, written
from fuzz_files import Case, Goldens, cases, check_file, parse_case
from fuzz_images import CASES, check_images
from fuzzing import Wrong, bounded, command, quick
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from satm.config import Campaign, load_yaml, parse
from satm.data import convert, datasets
from satm.storage.tensors import TensorFile

SOME = (
    *("collect", "distill", "evaluate", "whitened", "table", "overview", "sets", "resumed experts", "resumed distill"),
    *("resumed evaluate", "foreign foreign/images_best.pt", "encoded"),
)
"""Readers that are tried here; the script tries all."""

AS_DRAWN = {"phases": [Phase.generate], "suppress_health_check": list(HealthCheck)}
"""Shrinking would take minutes; the script's command repeats what went wrong."""


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("configs")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="session")
def goldens(tmp_path_factory: pytest.TempPathFactory) -> Goldens:
    return Goldens(tmp_path_factory.mktemp("files"), SOME)


@settings(max_examples=60, **AS_DRAWN)
@given(raw=configs())
def test_a_campaign_is_refused_in_one_line_or_planned_as_it_is_written(base: Path, raw: bytes) -> None:
    with bounded(), quick():
        check_config(raw, base)


@settings(max_examples=60, **AS_DRAWN)
@given(data=st.data())
def test_a_damaged_file_is_refused_in_one_line_or_changes_nothing(goldens: Goldens, data: st.DataObject) -> None:
    case = data.draw(cases(goldens))
    with bounded(), quick():
        check_file(case, goldens)


@settings(max_examples=60, **AS_DRAWN)
@given(case=CASES)
def test_a_dataset_of_odd_images_is_refused_with_all_names_or_stored_as_it_is(pictures: Path, case: int) -> None:
    with bounded(), quick():
        check_images(case, pictures)


@pytest.mark.parametrize("kind", ["list", "map", "merge"])
def test_a_small_file_that_stands_for_much_is_refused(base: Path, kind: str) -> None:
    with bounded(seconds=20, most=2**30), quick():
        assert check_config(bomb(kind, 30, 10), base) == "refused"


TABLE = {"tables": {"one": {"datasets": {"digits": [1]}, "methods": ["mtt"], "seeds": [0, 3]}}}


def test_a_whole_campaign_is_planned(base: Path) -> None:
    with quick():
        assert check_config(written(TABLE), base) == "planned"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({**TABLE, "title": "it"}, "written .*'title'"),
        ({"tables": {"one": {**TABLE["tables"]["one"], "seeds": [0, 4]}}}, r"seeds.1: written 4, read 3"),
        ({"tables": {"one": {**TABLE["tables"]["one"], "seeds": [False, 3]}}}, "written False, read 0"),
        ({"tables": {"one": {**TABLE["tables"]["one"], "seeds": [0]}}}, r"written \[0\], read \(0, 3\)"),
    ],
)
def test_what_is_read_as_something_else_is_found(content: dict[str, Any], text: str) -> None:
    read = parse(Campaign, TABLE, "it")
    same(TABLE, read, "")
    with pytest.raises(Wrong, match=text):
        same(content, read, "")


def test_a_name_that_stands_twice_is_found() -> None:
    twice(b"a: {b: [{c: 1}, {c: 2}], d: 1}\ne: {b: 1}")
    with pytest.raises(Wrong, match="'c' stands there twice"):
        twice(b"a: {b: [{c: 1, d: {c: 1}, c: 2}]}")


def test_hangs_and_hunger_are_found() -> None:
    with pytest.raises(Wrong, match="a hang"), bounded(seconds=0.3):
        while True:
            pass
    with pytest.raises(Wrong, match="GiB of memory"), bounded(most=2**28):
        bytearray(2**30)


def ends(code: int, line: str) -> int:
    print(line, file=sys.stderr)
    return code


@pytest.mark.parametrize(
    ("stage", "text"),
    [
        (lambda arguments: 1 / 0, "a traceback: ZeroDivisionError"),
        (lambda arguments: ends(1, "Traceback (most recent call last)"), "a traceback in the output"),
        (lambda arguments: ends(1, "satm: error: out of memory"), "all of the memory"),
        (lambda arguments: ends(3, "satm: error: it is wrong"), "exit code 3"),
        (lambda arguments: ends(2, "it is wrong"), "exit code 2 and no clear line"),
    ],
)
def test_other_ends_than_one_clear_line_are_found(stage: Callable[[object], int], text: str) -> None:
    with pytest.raises(Wrong, match=text):
        command("data", run=stage)


def test_a_result_of_a_change_that_nobody_notices_is_found(goldens: Goldens) -> None:
    """Without the comparison of hashes the network would be trained on other images."""
    name = "results/f/distilled/digits/ipc-1/satm/seed-0/distilled.safetensors"
    raw = (goldens.whole / name).read_bytes()
    case = Case("evaluate", name, ("flip", [[raw.rfind(b"\0") - 400, 64]]))
    with bounded(), quick():
        assert check_file(case, goldens) == "refused, 2"
        unchecked = mock.patch.object(TensorFile, "get_tensor", lambda self, name: self._file.get_tensor(name))
        with unchecked, pytest.raises(Wrong, match=r"a wrong result was accepted: .*satm/seed-0/convnet\.parquet"):
            check_file(case, goldens)


def test_other_pixels_and_unnamed_images_are_found(pictures: Path) -> None:
    over_white = convert._over_white

    def dropped(image: Image.Image) -> tuple[Image.Image, list[str]]:
        return image.convert("RGB"), over_white(image)[1]

    with (
        quick(),
        mock.patch.object(convert, "_over_white", dropped),
        pytest.raises(Wrong, match="other pixels than expected"),
    ):
        for case in range(40):
            check_images(case, pictures)
    silent = mock.patch.object(datasets, "describe_faults", lambda faults, total: "something is wrong")
    with quick(), silent, pytest.raises(Wrong, match=r"\d+ faults, 0 of them named"):
        for case in range(40):
            check_images(case, pictures)


def test_a_case_is_repeated_by_its_text() -> None:
    case = Case("evaluate", "it's.json", ("flip", [[3, 1]]))
    assert parse_case(str(case)) == case


def test_odd_values_become_yaml(tmp_path: Path) -> None:
    path = tmp_path / "it.yaml"
    path.write_bytes(written({"a": [float("inf"), "\0", "a\nb"], "b": 10**30}))
    assert load_yaml(path) == {"a": [float("inf"), "\0", "a\nb"], "b": 10**30}
    assert b"2001-01-01" in written({"a": datetime.date(2001, 1, 1)})


def test_the_script_counts_and_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = ["configs", "--count", "5", "--seed", "3", "--kept", str(tmp_path / "kept")]
    some += ["--messages", str(tmp_path / "met" / "messages.txt")]
    threads = torch.get_num_threads()
    assert fuzz.main(some) == 0
    assert "configs: 5 cases of seed 3" in (told := capsys.readouterr().out) and "5 in all, 0 wrong" in told
    messages = (tmp_path / "met" / "messages.txt").read_text().splitlines()
    counts = [int(found[1]) for line in messages if (found := re.match(r" +(\d+) satm: error: ", line))]
    assert counts and counts == sorted(counts, reverse=True)

    def fail(raw: bytes, base: Path) -> str:
        raise Wrong("it is wrong")

    assert fuzz.main(some, fail) == 1
    told = capsys.readouterr().out
    kept = sorted((tmp_path / "kept").iterdir())
    assert told.count("WRONG: it is wrong") == len(kept) == 5 and f"configs --case {kept[0]}" in told
    assert fuzz.main(["configs", "--case", str(kept[0])], fail) == 1
    assert torch.get_num_threads() == threads
