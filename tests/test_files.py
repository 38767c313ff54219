"""Files that are whole or absent, locks, seeds, and the texts of errors."""

import errno
import json
import os
import stat
from pathlib import Path

import pytest
import torch
from resuming import audited, unwritable
from safetensors import safe_open
from safetensors.torch import save_file

from satm.errors import RunError, UsageError, pick, short, suggest
from satm.run.disk import patiently
from satm.seeds import derive_seed, make_generator
from satm.storage.files import atomic_path, explain_disk, read_record, write_record
from satm.storage.identity import hash_file
from satm.storage.tensors import hash_tensors, open_tensors, read_tensors, write_tensors


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(KeyError), atomic_path(path) as part:
        part.write_text("half")
        raise KeyError
    assert path.read_text() == "old" and listed(tmp_path) == ["file.txt"]
    with atomic_path(path) as part:
        part.write_text("new")
        assert path.read_text() == "old" and part.parent == path.parent
    assert path.read_text() == "new" and listed(tmp_path) == ["file.txt"]


def test_folders_are_made_and_others_may_read(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file.json"
    before = os.umask(0o022)
    try:
        write_record(path, {"b": 1, "a": [2]})
    finally:
        os.umask(before)
    assert path.read_text().startswith('{\n  "a": [\n    2\n  ],\n  "b": 1,\n  "sha256": "')
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.ENOSPC, "No space left on device; free some space"),
        (errno.EACCES, "Permission denied; name a folder that you may write to"),
    ],
)
def test_a_full_or_closed_disk_is_told(tmp_path: Path, number: int, text: str) -> None:
    write_record(tmp_path / "file.json", {"old": 1})
    with audited(unwritable(number)), pytest.raises(RunError, match=f"cannot write .*file.json: {text}") as caught:
        write_record(tmp_path / "file.json", {"new": 1})
    assert "\n" not in str(caught.value)
    assert read_record(tmp_path / "file.json", "it", {"old": int}) == {"old": 1} and listed(tmp_path) == ["file.json"]


def test_a_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*; .*/file is no folder, nor a link to one; remove it"):
        write_record(tmp_path / "file" / "below.json", {})


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1', b"\xff\xfe", b"[1]", b"3"])
def test_json_that_is_half_or_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.json"
    with pytest.raises(UsageError, match=r"thing .*file.json does not exist; make it first"):
        read_record(path, "thing", {})
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"thing .*file.json .*make it again"):
        read_record(path, "thing", {})


def some_tensors(path: Path) -> dict[str, torch.Tensor]:
    tensors = {"weights": torch.randn(3, 4), "labels": torch.arange(5), "number": torch.tensor(0.5)}
    write_tensors(path, tensors, {"kind": "it", "nested": {"b": None, "a": [1, 2.5]}})
    return tensors


def test_tensors_come_back_with_their_metadata(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    tensors = some_tensors(path)
    found, metadata = read_tensors(path, "thing")
    assert metadata == {"kind": "it", "nested": {"b": None, "a": [1, 2.5]}}
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
    write_tensors(tmp_path / "other.safetensors", dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    assert (tmp_path / "other.safetensors").read_bytes() == path.read_bytes()
    write_tensors(path, {"part": tensors["weights"].T[1:]}, {})  # strided views are made whole
    assert torch.equal(read_tensors(path, "thing")[0]["part"], tensors["weights"].T[1:])


def test_safetensors_cut_anywhere_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    some_tensors(path)
    whole = path.read_bytes()
    for length in [*range(0, 40), *range(40, len(whole), 17), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(UsageError, match=r"thing .*file.safetensors .*make it again") as caught:
            read_tensors(path, "thing")
        assert "\n" not in str(caught.value)
    path.write_bytes(whole + b"x")
    with pytest.raises(UsageError):
        read_tensors(path, "thing")


def test_a_change_of_any_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    tensors = some_tensors(path)
    whole = path.read_bytes()
    told = set()
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 0x15
        path.write_bytes(content)
        try:
            found, metadata = read_tensors(path, "thing")
        except UsageError as error:
            assert "\n" not in str(error) and "file.safetensors" in str(error)
            told.add(str(error).partition("file.safetensors ")[2].split(":")[0])
        else:  # a space of the head
            assert metadata == {"kind": "it", "nested": {"b": None, "a": [1, 2.5]}}
            assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert {"was changed"} < told


def test_one_tensor_is_compared_without_the_others(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    tensors = some_tensors(path)
    content = path.read_bytes()
    held = tensors["weights"].numpy().tobytes()
    path.write_bytes(content.replace(held, held[:-1] + bytes([held[-1] ^ 1])))
    with open_tensors(path, "thing") as file:
        assert torch.equal(file.get_tensor("labels"), tensors["labels"])
        with pytest.raises(UsageError, match="was changed: its tensor 'weights' does not have the hash that it states"):
            file.get_tensor("weights")


def test_hashes_that_are_cut_out_are_missed_unless_all_of_them_are(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    tensors = some_tensors(path)
    with safe_open(path, framework="pt") as file:
        stated = json.loads(file.metadata()["satm"])
    names = {"tensors_sha256", "metadata_sha256"}
    assert names < set(stated)
    for gone in ({"tensors_sha256"}, {"metadata_sha256"}, names):
        kept = {name: held for name, held in stated.items() if name not in gone}
        save_file(tensors, path, metadata={"satm": json.dumps(kept)})
        if gone == names:  # as earlier versions wrote it
            assert read_tensors(path, "thing")[1] == {"kind": "it", "nested": {"b": None, "a": [1, 2.5]}}
        else:
            with pytest.raises(UsageError, match="its metadata do not have the hash that they state"):
                read_tensors(path, "thing")
    for name in ("labels", "weights"):
        others = {other: tensor for other, tensor in tensors.items() if other != name}
        save_file(others, path, metadata={"satm": json.dumps(stated)})
        with pytest.raises(UsageError, match="it holds other tensors than it states"):
            read_tensors(path, "thing")


@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", "{", "3"])
def test_metadata_that_are_no_object_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata={"satm": text})
    with pytest.raises(UsageError, match="has damaged metadata"):
        read_tensors(path, "thing")
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(UsageError, match="make it again"):
        read_record(tmp_path / "file.json", "thing", {})


FIELDS = {"name": str, "numbers": list, "count": int, "share": float}


def test_a_record_comes_back_and_any_change_of_it_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    content = {"count": 3, "name": "it", "numbers": [1, 2.5, float("nan")], "share": 1}
    write_record(path, content)
    assert repr(read_record(path, "thing", FIELDS)) == repr(content)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        with pytest.raises(UsageError, match=r"file\.json") as caught:
            read_record(path, "thing", FIELDS)
        assert "\n" not in str(caught.value)
    path.write_text(json.dumps(content))  # as earlier versions wrote it
    assert read_record(path, "thing", FIELDS)["name"] == "it"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"count": "3"}, "count is a str, expected a int"),
        ({"count": True}, "count is a bool, expected a int"),
        ({"share": None}, "share is a NoneType, expected a float"),
        (
            {"more": 1},
            "holds 'count', 'more', 'name', 'numbers', 'share', expected 'count', 'name', 'numbers', 'share'",
        ),
    ],
)
def test_a_record_of_other_values_is_refused(tmp_path: Path, change: dict[str, object], text: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(json.dumps({"name": "it", "numbers": [], "count": 3, "share": 0.5, **change}))
    with pytest.raises(UsageError, match=text):
        read_record(path, "thing", FIELDS)


def test_errors_are_one_line_whatever_they_quote() -> None:
    assert str(UsageError("the name a\r\n  b\u2028c\x1b[31m  d")) == "the name a b c\\x1b[31m  d"
    assert str(RunError("cannot write x\ny")) == "cannot write x y"
    assert len(short("x" * 1000)) < 210 and short([1]) == "[1]"


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    with pytest.raises(UsageError, match="does not exist; make it first"), open_tensors(path, "thing"):
        pass
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(UsageError, match="was not written by satm"):
        read_tensors(path, "thing")


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert hash_file(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    one = torch.arange(6)
    assert hash_tensors(one) == hash_tensors(torch.arange(12)[::2] // 2)
    for other in (one.view(2, 3), one.int(), one + 1):
        assert hash_tensors(other) != hash_tensors(one)
    assert hash_tensors(one[:3], one[3:]) != hash_tensors(one)
    assert len(hash_tensors(torch.tensor(1.0))) == 64


def test_the_nearest_known_name() -> None:
    known = {"cifar10": 1, "digits": 2}
    assert pick("digits", known, "dataset") == 2
    with pytest.raises(UsageError, match=r"unknown dataset 'digit'; known: cifar10, digits\. Did you mean 'digits'\?"):
        pick("digit", known, "dataset")
    assert suggest("zzz", known) == ""


def test_seeds_come_from_names() -> None:
    expected = int.from_bytes(__import__("hashlib").sha256(b'["distill", "digits", 1]').digest()[:8], "big") >> 1
    assert derive_seed("distill", "digits", 1) == expected < 2**63
    different = [("a", "b"), ("b", "a"), ("ab",), ("a", "b", 0), ("a", "b", "0"), ("a", "b", 1)]
    assert len({derive_seed(*axes) for axes in different}) == len(different)
    draws = [torch.rand(3, generator=make_generator("a", 1)) for _ in range(2)]
    assert torch.equal(*draws) and not torch.equal(draws[0], torch.rand(3, generator=make_generator("a", 2)))
    assert json.loads(json.dumps(derive_seed("a"))) == derive_seed("a")


def test_a_finished_result_waits_for_space(caplog: pytest.LogCaptureFixture) -> None:
    tries: list[int] = []

    def write(works_at: int | None, number: int = errno.ENOSPC) -> None:
        tries.append(1)
        if len(tries) != works_at:
            with explain_disk(Path("there")):
                raise OSError(number, os.strerror(number))

    patiently(lambda: write(3), 0.5)
    assert len(tries) == 3 and caplog.text.count("trying again for 0.5 s") == 1
    with pytest.raises(RunError, match="cannot write there: No space left on device; free some space"):
        patiently(lambda: write(None), 0.5)
    tries.clear()
    with pytest.raises(RunError, match="Permission denied"):
        patiently(lambda: write(None, errno.EACCES), 0.5)
    assert len(tries) == 1
