"""Rows with their circumstances and synthetic sets: what is written is what is read, and broken files say so."""

import dataclasses
import json
import shutil
from pathlib import Path

import pandas
import pyarrow
import pytest
import torch
from drawing import torch_generator
from pyarrow import parquet
from tolerances import SINGLE_LOOPS
from torch.utils.data import DataLoader

import satm
from satm.data.images import Preprocessor
from satm.data.whitening import fit_whitening, save_whitening
from satm.errors import UsageError
from satm.results.circumstances import commit_of, run_metadata
from satm.results.columns import EVALUATION, METRICS
from satm.results.distilled import DistilledDataset, History, load_distilled, save_distilled
from satm.results.rows import METADATA_KEY, read_rows, read_rows_metadata, write_rows
from satm.storage.tensors import read_tensors, write_tensors

ROW = {
    "dataset": "digits",
    "ipc": 1,
    "method": "mtt",
    "seed": 0,
    "network": "convnet",
    "repeat": 0,
    "labels": "hard",
    "split": "test",
    "selection": "last",
    "average": "raw",
    "labelled": "own",
    "augmented": "yes",
    "step_size": "learned",
    "rate": 0.02,
    "accuracy": 0.875,
    "loss": 0.4,
    "epochs": 10,
    "train_steps": 10.0,
    "seconds": 1.5,
    "peak_memory_bytes": 2**33,
}
STEP = {"iteration": 0, "attempt": 0, "event": "", "seconds": 0.5, "peak_memory_bytes": 10}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.parquet"
    write_rows(path, [ROW, {**ROW, "repeat": 1, "accuracy": 0.75}], EVALUATION, run_metadata({"epochs": 10}))
    return path


def test_rows_come_back_in_order_and_typed(rows: Path) -> None:
    frame = read_rows(rows, EVALUATION)
    assert list(frame.columns) == list(EVALUATION.fields)
    assert frame.to_dict("records") == [ROW, {**ROW, "repeat": 1, "accuracy": 0.75}]
    assert frame["peak_memory_bytes"].dtype == "int64"


def test_rows_carry_the_run(rows: Path) -> None:
    found = read_rows_metadata(rows, EVALUATION)
    assert found["options"] == {"epochs": 10}
    assert found["versions"]["torch"] == torch.__version__ and found["versions"]["satm"] == satm.__version__
    assert found["device"] == "cpu" and set(found) == {"options", "commit", "versions", "device", "host", "time"}


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_rows(tmp_path / name, [ROW], EVALUATION, {"time": "now"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_metrics_may_have_more_floats_and_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.parquet"
    write_rows(path, [{**STEP, "loss": float("nan")}, {**STEP, "loss": 0.5, "gap": 2}], METRICS, {})
    frame = read_rows(path, METRICS)
    assert list(frame.columns) == [*METRICS.fields, "gap"]
    assert frame["gap"].isna().tolist() == [True, False] and frame["gap"].iloc[1] == 2.0
    assert parquet.read_table(path)["sharpness"].null_count == 2
    write_rows(path, [], METRICS, {})
    assert len(read_rows(path, METRICS)) == 0


def test_a_row_with_wrong_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no columns \['acuracy'\]"):
        write_rows(tmp_path / "x", [{**ROW, "acuracy": 1.0}], EVALUATION, {})
    with pytest.raises(ValueError, match="without 'loss'"):
        write_rows(tmp_path / "x", [{**ROW, "loss": None}], EVALUATION, {})
    assert list(tmp_path.iterdir()) == []


def unhashed(table: pyarrow.Table) -> pyarrow.Table:
    """Return rows as earlier versions stored them, without hashes."""
    return table.replace_schema_metadata({METADATA_KEY: "{}"})


def test_rows_from_before_sets_were_averaged_are_of_raw_sets(tmp_path: Path) -> None:
    path = tmp_path / "old.parquet"
    fields = {name: kind for name, kind in EVALUATION.fields.items() if name not in EVALUATION.since}
    old = dataclasses.replace(EVALUATION, fields=fields, since={}, optional=frozenset())
    row = {name: value for name, value in ROW.items() if name in fields}
    write_rows(path, [row, {**row, "repeat": 1}], old, {})
    frame = read_rows(path, EVALUATION)
    filled = {**ROW, "augmented": "", "step_size": "", "train_steps": 0.02}
    assert frame[["rate", "train_steps"]].isna().all(axis=None)
    assert frame.fillna(0.02).to_dict("records") == [filled, {**filled, "repeat": 1}]
    assert list(frame.columns) == list(EVALUATION.fields)
    table = parquet.read_table(path)
    parquet.write_table(unhashed(table.drop_columns("loss")), path)  # another column is missing too
    with pytest.raises(UsageError, match=r"has the columns dataset.*expected dataset"):
        read_rows(path, EVALUATION)
    write_rows(path, [], old, {})
    assert list(read_rows(path, EVALUATION).columns) == list(EVALUATION.fields)


def test_a_change_of_any_byte_of_rows_is_noticed(rows: Path) -> None:
    whole, before = rows.read_bytes(), read_rows(rows, EVALUATION)
    circumstances, told = read_rows_metadata(rows, EVALUATION), set()
    for place in range(0, len(whole), 3):
        rows.write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        try:
            found, metadata = read_rows(rows, EVALUATION), read_rows_metadata(rows, EVALUATION)
        except UsageError as error:
            assert "\n" not in str(error) and rows.name in str(error)
            told.add("was changed" in str(error))
        else:  # what nobody reads, such as the statistics of a column
            pandas.testing.assert_frame_equal(found, before, check_exact=True)
            assert metadata == circumstances
    assert told == {True, False}


@pytest.mark.parametrize("gone", [{"rows_sha256"}, {b"satm_sha256"}, {"rows_sha256", b"satm_sha256"}])
def test_hashes_of_rows_are_missed_unless_both_are_gone(rows: Path, gone: set[object]) -> None:
    table = parquet.read_table(rows)
    held = {name: text for name, text in table.schema.metadata.items() if name not in gone}
    stated = json.loads(held[METADATA_KEY])
    held[METADATA_KEY] = json.dumps({name: value for name, value in stated.items() if name not in gone})
    parquet.write_table(table.replace_schema_metadata(held), rows)
    if len(gone) == 2:  # as earlier versions wrote them
        assert len(read_rows(rows, EVALUATION)) == len(table)
    else:
        with pytest.raises(UsageError, match="was changed: it does not have the hash that it states"):
            read_rows(rows, EVALUATION)


@pytest.mark.parametrize("text", ["[1]", "{", "[" * 100_000, b"\xff"])
def test_damaged_circumstances_are_refused(rows: Path, text: str | bytes) -> None:
    table = parquet.read_table(rows)
    parquet.write_table(table.replace_schema_metadata({METADATA_KEY: text}), rows)
    with pytest.raises(UsageError, match=r"damaged metadata|metadata is a list, expected a dict"):
        read_rows_metadata(rows, EVALUATION)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"class_names": "ab"}, "class_names is a str, expected a list"),
        ({"class_names": [1, 2]}, "class_names and whitening_path must be text"),
        ({"whitening_path": 3}, "class_names and whitening_path must be text"),
        ({"preprocessing": {}}, "lacks space"),
        ({"seed": None}, "seed is a NoneType, expected a int"),
        ({"options": []}, "options is a list, expected a dict"),
    ],
)
def test_set_with_contradictory_metadata_is_refused(
    raw: torch.Tensor, tmp_path: Path, change: dict[str, object], text: str
) -> None:
    path = tmp_path / "it.safetensors"
    save_distilled(path, plain(raw))
    tensors, metadata = read_tensors(path, "synthetic set")
    write_tensors(path, tensors, {**metadata, "of a later version": 1})
    assert load_distilled(path).seed == plain(raw).seed
    write_tensors(path, tensors, {**metadata, **change})
    with pytest.raises(UsageError, match=text):
        load_distilled(path)


def test_a_history_or_step_size_of_another_shape_is_refused(raw: torch.Tensor, tmp_path: Path) -> None:
    path, held = tmp_path / "it.safetensors", plain(raw)
    images = torch.stack([held.images, held.images])
    history = History(torch.tensor([0, 9]), images, torch.stack([held.labels] * 2), torch.tensor([0.1, 0.2]))
    save_distilled(path, dataclasses.replace(held, history=history))
    tensors, metadata = read_tensors(path, "synthetic set")
    for name, tensor in (("images", images[:, 1:]), ("iterations", torch.tensor([0])), ("labels", images)):
        write_tensors(path, {**tensors, f"history.{name}": tensor}, metadata)
        with pytest.raises(UsageError, match="its history does not fit its images"):
            load_distilled(path)
    write_tensors(path, {**tensors, "step_size": torch.zeros(2)}, metadata)
    with pytest.raises(UsageError, match=r"needs one number as step size|its history does not fit"):
        load_distilled(path)


def test_missing_truncated_and_foreign_rows_are_explained_in_one_line(rows: Path, tmp_path: Path) -> None:
    whole = rows.read_bytes()
    foreign = tmp_path / "foreign.parquet"
    table = parquet.read_table(rows)
    parquet.write_table(table.replace_schema_metadata({}), foreign)
    typed = tmp_path / "typed.parquet"
    parquet.write_table(unhashed(table.set_column(1, "ipc", table["ipc"].cast("string"))), typed)
    lacking = tmp_path / "lacking.parquet"
    nothing = table.set_column(1, table.schema.field("ipc"), pyarrow.nulls(len(table), table["ipc"].type))
    parquet.write_table(unhashed(nothing), lacking)
    for path, text in [
        (lacking, "lacking.parquet lacks values of ipc; delete it and make it again"),
        (tmp_path / "none.parquet", "evaluation .*none.parquet does not exist; make it first"),
        (foreign, "was not written by satm"),
        (typed, "values of an unexpected type in ipc"),
    ]:
        with pytest.raises(UsageError, match=text):
            read_rows(path, EVALUATION)
    for size in (0, 3, len(whole) // 2, len(whole) - 1):
        rows.write_bytes(whole[:size])
        with pytest.raises(UsageError, match="is not a whole parquet file") as caught:
            read_rows(rows, EVALUATION)
        assert "\n" not in str(caught.value)
    write_rows(rows, [STEP], METRICS, {})
    with pytest.raises(UsageError, match=r"has the columns iteration.*expected dataset"):
        read_rows(rows, EVALUATION)


def test_the_commit_of_another_checkout_is_not_taken(tmp_path: Path) -> None:
    checkout = tmp_path / "elsewhere"
    (checkout / "satm").mkdir(parents=True)
    assert commit_of(checkout) is None
    (checkout / ".git").mkdir()  # not a repository: git fails, the run does not
    assert commit_of(checkout) is None


@pytest.fixture
def raw() -> torch.Tensor:
    generator = torch_generator(0)
    return torch.randint(0, 256, (40, 3, 4, 4), generator=generator, dtype=torch.uint8)


def distilled(raw: torch.Tensor, preprocessor: Preprocessor, **changes: object) -> DistilledDataset:
    values = {
        "images": preprocessor.apply(raw[:4]),
        "labels": torch.tensor([0, 0, 1, 1]),
        "step_size": torch.tensor(0.01),
        "preprocessing": preprocessor.identity,
        "class_names": ("cat", "dog"),
        "dataset": "pets",
        "ipc": 2,
        "method": "mtt",
        "seed": 0,
        "options": {"iterations": 5},
        "iteration": 5,
        "selection": "last",
    }
    return DistilledDataset(**{**values, **changes})  # type: ignore[arg-type]


def plain(raw: torch.Tensor) -> DistilledDataset:
    return distilled(raw, Preprocessor((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), None))


def test_a_synthetic_set_is_described_in_one_line_and_its_folder_is_no_set(raw: torch.Tensor, tmp_path: Path) -> None:
    assert repr(plain(raw)) == "<DistilledDataset: mtt on pets, ipc 2, seed 0, images [4, 3, 4, 4], iteration 5>"
    with pytest.raises(UsageError, match="is a folder; name the file in it"):
        load_distilled(tmp_path)


def test_a_synthetic_set_comes_back_whole(raw: torch.Tensor, tmp_path: Path) -> None:
    made = plain(raw)
    save_distilled(tmp_path / "a.safetensors", made)
    save_distilled(tmp_path / "b.safetensors", made)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    found = load_distilled(tmp_path / "a.safetensors")
    for field in dataclasses.fields(DistilledDataset):
        one, two = getattr(made, field.name), getattr(found, field.name)
        assert torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two, field.name
    images, labels = next(iter(DataLoader(found, batch_size=4)))
    assert torch.equal(images, made.images) and torch.equal(labels, made.labels)
    torch.testing.assert_close(found.pixels(), raw[:4] / 255)


def test_soft_labels_come_back_and_name_classes(raw: torch.Tensor, tmp_path: Path) -> None:
    soft = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
    save_distilled(tmp_path / "a.safetensors", dataclasses.replace(plain(raw), labels=soft))
    found = load_distilled(tmp_path / "a.safetensors")
    assert torch.equal(found.labels, soft) and found.classes.tolist() == [0, 0, 1, 1]


def test_whitened_images_are_shown_with_the_stored_whitening(raw: torch.Tensor, tmp_path: Path) -> None:
    whitening = fit_whitening(raw)
    stored = tmp_path / "one" / "data" / "zca.safetensors"
    path = tmp_path / "one" / "distilled" / "deep" / "distilled.safetensors"
    save_whitening(stored, whitening)
    preprocessor = Preprocessor((0.5,) * 3, (0.2,) * 3, whitening)
    save_distilled(path, distilled(raw, preprocessor, whitening_path=stored))
    assert path.stat().st_size < stored.stat().st_size
    torch.testing.assert_close(load_distilled(path).pixels(), raw[:4] / 255, atol=SINGLE_LOOPS, rtol=0)

    shutil.move(tmp_path / "one", tmp_path / "two")  # the tree moves as a whole
    moved = tmp_path / "two" / "distilled" / "deep" / "distilled.safetensors"
    torch.testing.assert_close(load_distilled(moved).pixels(), raw[:4] / 255, atol=SINGLE_LOOPS, rtol=0)

    stored = tmp_path / "two" / "data" / "zca.safetensors"
    save_whitening(stored, fit_whitening(raw[:30]))
    with pytest.raises(UsageError, match="were made with whitening"):
        load_distilled(moved).pixels()
    stored.unlink()
    with pytest.raises(UsageError, match="satm data --dataset pets --make zca"):
        load_distilled(moved).pixels()
    torch.testing.assert_close(load_distilled(moved).pixels(whitening), raw[:4] / 255, atol=SINGLE_LOOPS, rtol=0)


def test_missing_truncated_and_foreign_sets_are_explained_in_one_line(raw: torch.Tensor, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(UsageError, match=r"synthetic set .*does not exist"):
        load_distilled(path)
    save_distilled(path, plain(raw))
    whole = path.read_bytes()
    for size in (0, 5, 200, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UsageError, match="not a whole safetensors file") as caught:
            load_distilled(path)
        assert "\n" not in str(caught.value)
    save_whitening(path, fit_whitening(raw))
    with pytest.raises(UsageError, match="holds whitening, expected a synthetic set"):
        load_distilled(path)


def soft(raw: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return torch.randn(4, 2, generator=torch_generator(seed))


def test_an_averaged_set_comes_back_with_its_raw_one(raw: torch.Tensor, tmp_path: Path) -> None:
    made = plain(raw)
    more = {"average": "ema", "raw_images": made.images + 1, "raw_labels": soft(raw, 1), "labels": soft(raw)}
    averaged = dataclasses.replace(made, **more)  # type: ignore[arg-type]
    save_distilled(tmp_path / "a.safetensors", averaged)
    found = load_distilled(tmp_path / "a.safetensors")
    assert found.average == "ema" and torch.equal(found.images, made.images) and torch.equal(found.labels, soft(raw))
    itself = found.unaveraged()
    assert (itself.average, itself.raw_images, itself.raw_labels) == ("raw", None, None)
    assert torch.equal(itself.images, made.images + 1) and torch.equal(itself.labels, soft(raw, 1))
    assert itself.unaveraged() is itself and (itself.method, itself.iteration) == (made.method, made.iteration)
    hard = dataclasses.replace(made, average="ema", raw_images=made.images + 1, raw_labels=made.labels)
    save_distilled(tmp_path / "b.safetensors", hard)  # raw and averaged labels are one tensor
    assert torch.equal(load_distilled(tmp_path / "b.safetensors").unaveraged().labels, made.labels)
    shared = dataclasses.replace(hard, raw_labels=None)
    assert torch.equal(shared.unaveraged().labels, made.labels)
    save_distilled(tmp_path / "c.safetensors", dataclasses.replace(made, average="ema"))
    with pytest.raises(UsageError, match="raw images were not kept"):
        load_distilled(tmp_path / "c.safetensors").unaveraged()


def test_what_images_are_computed_from_is_stored_and_counted(raw: torch.Tensor, tmp_path: Path) -> None:
    made = plain(raw)  # 4 images of 3 x 4 x 4
    basis, weights = torch.randn(3, 3, 2, 2), torch.randn(4, 3)
    parts = dataclasses.replace(made, stored={"weights": weights, "basis": basis})
    save_distilled(tmp_path / "a.safetensors", parts)
    save_distilled(tmp_path / "b.safetensors", dataclasses.replace(parts, stored={"basis": basis, "weights": weights}))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    found = load_distilled(tmp_path / "a.safetensors")
    assert set(found.stored) == {"basis", "weights"} and torch.equal(found.stored["basis"], basis)
    assert torch.equal(found.stored["weights"], weights)
    assert made.stored_numbers == 4 * 48 and found.stored_numbers == 3 * 12 + 4 * 3
    assert dataclasses.replace(made, labels=soft(raw)).stored_numbers == 4 * 48 + 4 * 2
    assert dataclasses.replace(found, labels=soft(raw)).stored_numbers == 48 + 8
    averaged = dataclasses.replace(found, average="ema", raw_images=made.images)
    assert averaged.stored_numbers == 4 * 48 and averaged.unaveraged().stored_numbers == 48
    save_distilled(tmp_path / "c.safetensors", dataclasses.replace(made, stored={"images": made.images}))
    assert torch.equal(load_distilled(tmp_path / "c.safetensors").stored["images"], made.images)


def test_a_file_from_before_averages_is_a_raw_set(raw: torch.Tensor, tmp_path: Path) -> None:
    path = tmp_path / "old.safetensors"
    save_distilled(path, plain(raw))
    tensors, metadata = read_tensors(path, "synthetic set")
    assert set(tensors) == {"images", "labels", "step_size"}
    del metadata["average"]
    write_tensors(path, tensors, metadata)
    found = load_distilled(path)
    assert (found.average, found.raw_images, found.raw_labels, dict(found.stored)) == ("raw", None, None, {})
    assert torch.equal(found.images, plain(raw).images)
    del metadata["ipc"]
    write_tensors(path, tensors, metadata)
    with pytest.raises(UsageError, match="lacks ipc"):
        load_distilled(path)
    write_tensors(path, {**tensors, "other": torch.zeros(1)}, metadata)
    with pytest.raises(UsageError, match="expected a synthetic set"):
        load_distilled(path)


def test_the_first_images_of_each_class_are_a_set(raw: torch.Tensor) -> None:
    preprocessor = Preprocessor((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), None)
    images = preprocessor.apply(raw[:12])
    labels = torch.arange(3).repeat_interleave(4)
    whole = distilled(raw, preprocessor, images=images, labels=labels, ipc=4, class_names=("a", "b", "c"))
    two = whole.first(2)
    assert (len(two), two.ipc, two.labels.tolist()) == (6, 2, [0, 0, 1, 1, 2, 2])
    assert torch.equal(two.images, images[[0, 1, 4, 5, 8, 9]]) and two.options == whole.options
    assert torch.equal(two.first(1).images, images[[0, 4, 8]]) and torch.equal(whole.first(4).images, images)
    logits = torch.randn(12, 3, generator=torch_generator(0))
    averaged = dataclasses.replace(whole, labels=logits, average="ema", raw_images=-images, raw_labels=2 * logits)
    one = averaged.first(1)
    assert torch.equal(one.labels, logits[[0, 4, 8]]) and torch.equal(one.unaveraged().labels, 2 * one.labels)
    assert torch.equal(one.unaveraged().images, -one.images)
    for ipc in (0, 5):
        with pytest.raises(UsageError, match=rf"has 4 images per class, got {ipc}; ask for 1 to 4"):
            whole.first(ipc)
    for labels in (torch.arange(3).repeat(4), torch.tensor([0] * 5 + [1] * 3 + [2] * 4)):
        with pytest.raises(UsageError, match="with the same number of each; these 12 images of 3 classes"):
            dataclasses.replace(whole, labels=labels).first(1)
    with pytest.raises(UsageError, match="these 12 images of 5 classes are not"):
        dataclasses.replace(whole, class_names=tuple("abcde")).first(1)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"average": "mean"}, "are raw or ema, got average 'mean'"),
        ({"raw_images": torch.zeros(4, 3, 4, 4)}, "belong to an average, got average 'raw'; leave them out"),
        ({"average": "ema", "raw_images": torch.zeros(3, 3, 4, 4)}, r"float32 \(4, 3, 4, 4\), got .*\(3, 3, 4, 4\)"),
        ({"average": "ema", "raw_labels": torch.zeros(4, 2)}, r"int64 \(4,\), got torch.float32 \(4, 2\)"),
        ({"labels": torch.tensor([0, 0, 1, 2])}, "must be 0 to 1, got 0 to 2"),
        ({"labels": torch.tensor([0, -1, 1, 1])}, "must be 0 to 1, got -1 to 1"),
        ({"labels": torch.tensor([0, 1])}, r"needs labels int64 \[4\]"),
        ({"images": torch.zeros(4, 3, 4, 4, dtype=torch.float64)}, "needs float32 images"),
    ],
)
def test_a_set_whose_parts_do_not_fit_is_refused(raw: torch.Tensor, changes: dict[str, object], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        dataclasses.replace(plain(raw), **changes)  # type: ignore[arg-type]


def test_metadata_is_one_json_text(rows: Path) -> None:
    metadata = parquet.read_schema(rows).metadata
    assert set(metadata) == {METADATA_KEY, b"satm_sha256"}
    assert json.loads(metadata[METADATA_KEY])["options"] == {"epochs": 10}
