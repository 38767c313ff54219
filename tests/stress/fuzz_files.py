"""Files that are not what they were: what a tiny campaign leaves, and what it is fed with, damaged before it is read.

A case is a command, one of the files that it reads, and the damage. The command must refuse the file in one line, or
end with the result that it has without the damage.
"""

import contextlib
import functools
import io
import json
import os
import re
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy
import pandas
import pyarrow
import torch
from fuzzing import Wrong, command, inside, quick
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from PIL import Image
from pyarrow import parquet
from safetensors import safe_open
from safetensors.torch import save_file

from satm.errors import RunError
from satm.stages import checkpoint

CAMPAIGN = """
datasets:
  digits: {source: digits, augment: crop_scale_rotate, classes: [0, 1, 2], validation: 5}
  white: {source: digits, zca: true, augment: crop_scale_rotate, classes: [0, 1, 2]}
  other: {source: digits, zca: true, augment: crop_scale_rotate, classes: [3, 4, 5]}
  pictures: {source: folder, path: pictures}
  tiny: {source: tiny-imagenet, path: tiny}
  encoded: {source: parquet, path: encoded}
experts:
  sgd: {count: 2, epochs: 3, lr: 0.05, batch_size: 64, per_job: 1, difficulty_count: 2}
  again: {count: 2, epochs: 3, lr: 0.04, batch_size: 64, per_job: 1}
  curriculum: {count: 1, epochs: 2, lr: 0.05, batch_size: 64, order: curriculum, difficulty: sgd}
methods:
  boosted: {method: bptt, iterations: 2, inner_steps: 3, snapshots: 2, labels: learned, ema: 0.5}
  twin: {method: satm}
settings:
  - {stage: network, network: convnet, options: {depth: 1, width: 3}}
  - {stage: evaluate, options: {repeats: 2, epochs: 2, decay_epoch: 2}}
  - {stage: evaluate, method: full-strong, options: {repeats: 1, epochs: 1}}
  - {stage: analyse, options: {segments: 2, count: 1, starts: [0, 2], samples: 3, divisors: [2]}}
  - method: [mtt, satm]
    options: {iterations: 12, inner_steps: 3, expert_epochs: 1, max_start_epoch: 2, lr_images: 1, step_size: 0.05}
  - {method: satm, options: {snapshots: 2}}
  - {method: satm, options: {rho: 0.05, gamma: 0.001, keep_divisor: 2}}
tables:
  table2: {datasets: {digits: [1]}, methods: [random, satm], seeds: [0, 1], sharpness: [satm], full: [strong]}
  worth: {kind: robustness, datasets: {digits: [1]}, methods: [random, satm]}
  few:
    kind: search
    datasets: {digits: [1]}
    methods: [satm]
    sample: 2
    width_factor: 0.05
    proxy: {repeats: 1, epochs: 1}
    real: {repeats: 1, epochs: 1}
  two: {kind: continual, datasets: {digits: [1]}, methods: [satm], steps: 2, orders: 1, repeats: 1}
  costs:
    kind: run-metrics
    datasets: {digits: [1]}
    methods: [satm]
    measures: [iterations_to_converge, hypergradient_norm_mean]
  begun: {kind: late-start, datasets: {digits: [1]}, methods: [satm]}
figures:
  losses: {kind: iterations, datasets: {digits: [1]}, methods: [satm], quantities: [loss]}
  sets: {kind: images, datasets: {digits: [1]}, methods: [satm, boosted], start: true}
"""

CONFIG = ("--config", "f.yaml")
DIGITS = (*CONFIG, "--dataset", "digits")
CELL = (*DIGITS, "--ipc", "1", "--method")
ROOT = "results/f"
RUN = "digits/ipc-1/satm/seed-0"
EXPERTS, SET, BOOSTED = (
    f"{ROOT}/experts/digits/sgd",
    f"{ROOT}/distilled/{RUN}",
    f"{ROOT}/distilled/digits/ipc-1/boosted",
)

MADE: tuple[tuple[str, ...], ...] = (
    *(("data", *CONFIG, "--dataset", name) for name in ("digits", "white", "other")),
    ("experts", *DIGITS),
    ("experts", *DIGITS, "--experts", "again"),
    ("experts", *DIGITS, "--measure-difficulty"),
    ("experts", *DIGITS, "--experts", "curriculum"),
    *(("distill", *CELL, *one) for one in (["satm"], ["satm", "--seed", "1"], ["random"], ["random", "--seed", "1"])),
    ("distill", *CELL, "boosted"),
    *(("evaluate", *CELL, method, "--seed", seed) for method in ("satm", "random") for seed in ("0", "1")),
    *(("evaluate", *CELL, method, "--what", "variants") for method in ("satm", "random")),
    ("evaluate", *DIGITS, "--what", "full"),
    ("nas", *CELL, "satm", "--search", "few"),
    ("nas", *DIGITS, "--search", "few", "--real"),
    ("continual", *CELL, "satm", "--protocol", "two"),
    *(("analyse", *CELL, "satm", "--what", what) for what in ("sharpness", "trajectory", "bounds")),
    ("analyse", *CELL, "satm", "--seed", "1", "--what", "sharpness"),
    ("analyse", *DIGITS, "--what", "expert-sharpness", "--experts", "sgd"),
)
"""Commands that make everything which others read."""


@dataclass(frozen=True)
class Reader:
    """A command and what it reads.

    Args:
        arguments: of the command.
        files: patterns of what it reads.
        stopped: after how many writes of its state an earlier start was stopped; that state is what it reads. 0: never.
        loose: whether what it reads carries no hash, so that another result may be right.
    """

    arguments: tuple[str, ...]
    files: tuple[str, ...]
    stopped: int = 0
    loose: bool = False


DISTILLED = f"{SET}/distilled.safetensors"
STATE = ("results/hand/f/state/**/*",)
IMAGES = f"{ROOT}/data/digits/images.safetensors"
SHARDS = (f"{EXPERTS}/manifest.json", f"{EXPERTS}/expert-*.safetensors")
DISTIL = ("distill", *CELL, "satm", "--seed", "2", "--iterations", "25", "--checkpoint-seconds", "0")

AGAIN = "--overwrite"
"""Flag of commands whose result is finished, so that they read their inputs."""

READERS: dict[str, Reader] = {
    "zca": Reader(
        ("data", *CONFIG, "--dataset", "white", "--make", "zca", AGAIN), (f"{ROOT}/data/white/images.safetensors",)
    ),
    "experts": Reader(("experts", *DIGITS, AGAIN), (f"{EXPERTS}/*[0-9].safetensors", f"{EXPERTS}/*.json")),
    "collect": Reader(("experts", *DIGITS, "--collect"), (f"{EXPERTS}/part-*.json", IMAGES)),
    "difficulty": Reader(("experts", *DIGITS, "--measure-difficulty", AGAIN), SHARDS),
    "curriculum": Reader(
        ("experts", *DIGITS, "--experts", "curriculum", AGAIN), (f"{EXPERTS}/difficulty.safetensors",)
    ),
    "distill": Reader(("distill", *CELL, "satm", AGAIN), (*SHARDS, IMAGES)),
    "whitened": Reader(
        ("distill", *CONFIG, "--dataset", "white", "--ipc", "1", "--method", "random", AGAIN), (f"{ROOT}/data/white/*",)
    ),
    "evaluate": Reader(("evaluate", *CELL, "satm", AGAIN), (DISTILLED, IMAGES)),
    "averaged": Reader(("evaluate", *CELL, "boosted", AGAIN), (f"{BOOSTED}/seed-0/*.safetensors",)),
    "variants": Reader(("evaluate", *CELL, "satm", "--what", "variants", AGAIN), (DISTILLED, *SHARDS)),
    "nas": Reader(("nas", *CELL, "satm", "--search", "few", AGAIN), (DISTILLED,)),
    "continual": Reader(("continual", *CELL, "satm", "--protocol", "two", AGAIN), (DISTILLED,)),
    "sharpness": Reader(("analyse", *CELL, "satm", AGAIN), (DISTILLED, *SHARDS)),
    "trajectory": Reader(("analyse", *CELL, "satm", "--what", "trajectory", AGAIN), (DISTILLED, *SHARDS)),
    "expert-sharpness": Reader(("analyse", *DIGITS, "--what", "expert-sharpness", "--experts", "sgd", AGAIN), SHARDS),
    "table": Reader(
        ("table", *CONFIG, "--name", "table2"),
        tuple(
            f"{ROOT}/{name}.parquet" for name in ("evaluation/**/*", "distilled/**/metrics", "analysis/**/sharpness")
        ),
    ),
    "worth": Reader(
        ("table", *CONFIG, "--name", "worth"), (f"{ROOT}/variants/**/*.parquet", f"{ROOT}/full/**/*.parquet")
    ),
    "few": Reader(("table", *CONFIG, "--name", "few"), (f"{ROOT}/nas/**/*.parquet",)),
    "two": Reader(("table", *CONFIG, "--name", "two"), (f"{ROOT}/continual/**/*.parquet",)),
    "costs": Reader(("table", *CONFIG, "--name", "costs"), (f"{SET}/metrics.parquet",)),
    "begun": Reader(("table", *CONFIG, "--name", "begun"), (f"{ROOT}/analysis/{RUN}/trajectory.parquet",)),
    "overview": Reader(("table", *CONFIG, "--name", "overview"), (f"{ROOT}/**/*.parquet",)),
    "accounting": Reader(
        ("table", *CONFIG, "--name", "accounting"),
        (f"{ROOT}/logs/**/*.json", f"{ROOT}/**/*.parquet", f"{ROOT}/benchmarks/**/*.tsv"),
        loose=True,
    ),
    "losses": Reader(("figure", *CONFIG, "--name", "losses"), (f"{SET}/metrics.parquet",)),
    "sets": Reader(("figure", *CONFIG, "--name", "sets"), (DISTILLED, f"{BOOSTED}/seed-0/*.safetensors")),
    "resumed experts": Reader(("experts", *DIGITS, "--seed", "3"), STATE, stopped=3),
    "resumed distill": Reader(DISTIL, STATE, stopped=2),
    "resumed evaluate": Reader(("evaluate", *CELL, "satm", "--epochs", "3"), STATE, stopped=6),
    "resumed nas": Reader(("nas", *CELL, "satm", "--search", "few", "--epochs", "3"), STATE, stopped=6),
    "resumed continual": Reader(("continual", *CELL, "satm", "--protocol", "two", "--epochs", "3"), STATE, stopped=6),
    "pictures": Reader(("data", *CONFIG, "--dataset", "pictures"), ("pictures/**/*.png",), loose=True),
    "tiny": Reader(("data", *CONFIG, "--dataset", "tiny"), ("tiny/*.txt", "tiny/val/*.txt"), loose=True),
    "encoded": Reader(("data", *CONFIG, "--dataset", "encoded"), ("encoded/*",), loose=True),
    "pace": Reader(("cost", *CONFIG, "--pace", "pace.parquet"), ("pace.parquet",), loose=True),
    **{
        f"foreign {name}": Reader(("distill", *CELL, "files", "--images", name), (reads,), loose=True)
        for name, reads in (
            ("foreign/images_best.pt", "foreign/*_best.pt"),
            ("foreign/images.safetensors", "foreign/*.safetensors"),
            ("foreign/some.parquet", "foreign/*.parquet"),
            ("pictures/test", "pictures/test/**/*.png"),
        )
    },
}


class Goldens:
    """Whole folders by the name of a reader, and what each reader makes of its own when nothing is damaged.

    Args:
        base: an empty folder of ours.
        readers: those that are wanted.
    """

    def __init__(self, base: Path, readers: Sequence[str] = ()) -> None:
        self.base, self.readers = base, sorted(readers or READERS)
        self.whole = base / "whole"
        self.whole.mkdir()
        with inside(self.whole), quick():
            Path("f.yaml").write_text(CAMPAIGN)
            _inputs()
            for arguments in MADE:
                code, told = command(*arguments)
                assert code == 0, (arguments, told)
            Path(ROOT, "benchmarks/data/digits").mkdir(parents=True)
            Path(ROOT, "benchmarks/data/digits/images.tsv").write_text("s\tmax_rss\tcpu_time\n1.5\t100.25\t3.0\n")
        self._stopped: dict[str, Path] = {}
        self._expected: dict[str, dict[str, str]] = {}
        for reader in self.readers:
            self.expected(reader)

    def folder(self, reader: str) -> Path:
        """Return the folder in which a reader starts."""
        if not READERS[reader].stopped:
            return self.whole
        if reader not in self._stopped:
            folder = self.base / reader.replace(" ", "-")
            shutil.copytree(self.whole, folder)
            with inside(folder), stopping(READERS[reader].stopped), quick():
                if reader == "resumed experts":
                    shutil.rmtree(EXPERTS)
                code, told = command(*READERS[reader].arguments)
                assert code == 1 and "stopped here" in told, told
            self._stopped[reader] = folder
        return self._stopped[reader]

    def files(self, reader: str) -> list[str]:
        """Return the files that a reader reads, relative to the folder."""
        folder = self.folder(reader)
        found = {path for pattern in READERS[reader].files for path in folder.glob(pattern) if path.is_file()}
        names = sorted(str(path.relative_to(folder)) for path in found)
        return [name for name in names if not Path(name).name.startswith(".")]

    def expected(self, reader: str) -> dict[str, str]:
        """Return what lies there after an undisturbed run, as `listed`."""
        if reader not in self._expected:
            work = self.base / "undisturbed"
            with restored(self.folder(reader), work), often(), quick():
                code, told = command(*READERS[reader].arguments)
                assert code == 0, told
                self._expected[reader] = listed(work)
        return self._expected[reader]


@contextlib.contextmanager
def restored(source: Path, work: Path) -> Iterator[None]:
    """Make a copy of a folder the current one."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(source, work)
    with inside(work):
        yield


@contextlib.contextmanager
def often() -> Iterator[None]:
    """Let the state of networks be kept after each epoch."""
    with mock.patch.object(checkpoint.NetworkState.__init__, "__defaults__", (0.0,)):
        yield


@contextlib.contextmanager
def stopping(after: int) -> Iterator[None]:
    """Let a command fail once it has written so many files of state, so that they stay."""
    replace, written = os.replace, []

    def counted(source: Any, target: Any) -> None:
        replace(source, target)
        if "/state/" in str(target):
            written.append(target)
            if len(written) >= after:
                raise RunError("stopped here")

    with often(), mock.patch.object(os, "replace", counted):
        yield


def _inputs() -> None:
    """Write what is not made by commands: pictures, encoded images, sets of others, a measured pace."""
    generator = numpy.random.default_rng(1)

    def encoded(shade: int) -> bytes:
        held = io.BytesIO()
        pixels = generator.integers(0, 255, (8, 8), dtype=numpy.uint8) // 2 + shade
        Image.fromarray(pixels.astype(numpy.uint8)).save(held, "png")
        return held.getvalue()

    for part, count in (("train", 3), ("test", 1)):
        rows = []
        for label in range(3):
            folder = Path(f"pictures/{part}/{label}")
            folder.mkdir(parents=True)
            for index in range(count):
                rows.append({"image": {"bytes": encoded(40 * label), "path": None}, "label": label})
                (folder / f"{index}.png").write_bytes(rows[-1]["image"]["bytes"])
        Path("encoded").mkdir(exist_ok=True)
        Path("foreign").mkdir(exist_ok=True)
        kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        schema = pyarrow.schema([("image", kind), ("label", pyarrow.int64())])
        parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), f"encoded/{part}.parquet")
        if part == "test":
            shutil.copy("encoded/test.parquet", "foreign/some.parquet")
    for label in range(3):
        shutil.copytree(f"pictures/train/{label}", f"tiny/train/n0{label}/images")
        shutil.copytree(f"pictures/test/{label}", "tiny/val/images", dirs_exist_ok=True)
    Path("tiny/wnids.txt").write_text("n00\nn01\nn02\n")
    Path("tiny/val/val_annotations.txt").write_text("0.png\tn00\t0\t0\n0.png\tn02\t0\t0\n")
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.save(images, "foreign/images_best.pt")
    torch.save(torch.randn(3, 3, generator=torch.Generator().manual_seed(2)), "foreign/labels_best.pt")
    torch.save(torch.tensor(0.02), "foreign/lr_best.pt")
    save_file({"images": images, "labels": torch.arange(3), "lr": torch.tensor(0.02)}, "foreign/images.safetensors")
    pace = Path(__file__).parent.parent.parent / "results" / "reference" / "pace" / "h200.parquet"
    shutil.copy(pace, "pace.parquet")


MEASURED = ["seconds", "peak_memory_bytes"]


def listed(folder: Path) -> dict[str, str]:
    """Return the content of each result by its name; of rows without what is measured of the machine.

    Of pages and pictures without what they state of the files that they show, whose bytes may differ.
    """
    found = {}
    for path in sorted((folder / "results").rglob("*")):
        name = str(path.relative_to(folder))
        passing = {"logs", "state"} & set(path.relative_to(folder).parts)
        if path.is_file() and not passing and path.suffix != ".pdf":
            try:
                if path.suffix == ".png":
                    with Image.open(path) as image:
                        found[name] = image.tobytes().hex()
                    continue
                frame = pandas.read_parquet(path)
                frame = frame.drop(columns=[name for name in MEASURED if name in frame])
                found[name] = repr(list(frame.columns)) + repr(frame.to_dict("list"))
            except (pyarrow.ArrowException, OSError, ValueError):  # no such rows, or damaged
                found[name] = re.sub(rb"<meta name=.satm.[^>]*>", b"", path.read_bytes()).hex()
    return found


# Damage


Damage = tuple[Any, ...]
"""What is done to a file: its kind, then values of it, as JSON has them."""


@dataclass(frozen=True)
class Case:
    """A command, one of the files that it reads, and the damage."""

    reader: str
    file: str
    damage: Damage

    def __str__(self) -> str:
        return json.dumps([self.reader, self.file, *self.damage])


def parse_case(text: str) -> Case:
    """Return the case of `str`."""
    reader, file, *damage = json.loads(text)
    return Case(reader, file, tuple(damage))


ANYTHING: list[Any] = [None, True, -1, 0, 10**30, 1.5, "", "x", "../../x", [], [1], {}, {"a": 1}]
HEADS: dict[str, list[Any]] = {
    "dtype": ["F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "F4", "C64", "X"],
    "shape": [[], [0], [1, 1], [-1], [2**40, 2**40], "x", [1.5]],
    "data_offsets": [[0, 0], [8, 0], [0, 2**40], [-1, 4], [], "x"],
}
"""What the head of a safetensors file may wrongly say of a tensor."""


@st.composite
def cases(draw: DrawFn, goldens: Goldens) -> Case:
    """Draw a case."""
    reader = draw(st.sampled_from(goldens.readers))
    folder, files = goldens.folder(reader), goldens.files(reader)
    file = draw(st.sampled_from(files))
    raw = (folder / file).read_bytes()
    places = st.integers(0, max(0, len(raw) - 1))
    beside = [name for name in goldens.files(reader) if name != file and not name.startswith(EPOCHS)]
    kinds: list[SearchStrategy[Damage]] = [
        st.tuples(st.just("cut"), places),
        st.tuples(st.just("flip"), st.lists(st.tuples(places, st.integers(1, 255)), min_size=1, max_size=4)),
        st.tuples(st.just("flip"), st.lists(st.tuples(places, st.just(1)), min_size=1, max_size=1)),
        st.tuples(st.just("zero"), places, st.sampled_from([1, 8, 64, 512, 4096])),
        st.tuples(st.just("noise"), places, st.binary(min_size=1, max_size=40).map(bytes.hex)),
        st.tuples(st.sampled_from(["empty", "text", "folder", "gone", "longer"])),
        st.tuples(st.just("swap"), st.sampled_from([*beside, *SWAPS])),
    ]
    if special := SPECIAL.get(Path(file).suffix):
        kinds += [special(raw, st.booleans())] * 3
    return parse_case(str(Case(reader, file, draw(st.one_of(*kinds)))))


EPOCHS = f"{ROOT}/state/experts/"
"""Files that are not put in place of each other: the state of an expert does not say which epoch a file is of."""

SWAPS = [
    *(IMAGES, f"{ROOT}/data/white/zca.safetensors", f"{ROOT}/data/other/zca.safetensors"),
    *(f"{ROOT}/data/other/images.safetensors", DISTILLED, f"{SET}/metrics.parquet"),
    *(f"{EXPERTS}/manifest.json", f"{EXPERTS}/expert-001.safetensors", f"{EXPERTS}/part-1-1.json"),
    *(f"{ROOT}/experts/digits/again/{name}" for name in ("manifest.json", "expert-000.safetensors", "part-0-0.json")),
    f"{EXPERTS}/difficulty.safetensors",
    f"{ROOT}/distilled/digits/ipc-1/random/seed-1/distilled.safetensors",
    *(f"{ROOT}/evaluation/digits/ipc-1/{one}/convnet.parquet" for one in ("random/seed-0", "satm/seed-1")),
    *("f.yaml", "pictures/test/0/0.png", "foreign/images_best.pt", "encoded/train.parquet"),
]
"""Files that are put in place of others."""


def _header(raw: bytes) -> dict[str, Any]:
    length = int.from_bytes(raw[:8], "little")
    held: dict[str, Any] = json.loads(raw[8 : 8 + length])
    return held


def _tensor_damage(raw: bytes, old: SearchStrategy[bool]) -> SearchStrategy[Damage]:
    header = _header(raw)
    stated = json.loads(header.get("__metadata__", {}).get("satm", "{}"))
    names = st.sampled_from(sorted(set(header) - {"__metadata__"}) or ["none"])
    fields = st.sampled_from(sorted(stated) or ["none"])
    lengths = st.sampled_from([0, 1, 2**31, 2**40, 2**63, 2**64 - 1]) | st.integers(0, len(raw))
    ways = ["more", "other type", "longer", "reshaped", "away", "nan", "twice"]
    return st.one_of(
        st.tuples(st.just("length"), lengths),
        *(st.tuples(st.just("head"), names, st.just(what), st.sampled_from(some)) for what, some in HEADS.items()),
        st.tuples(st.just("stated"), old, fields, st.sampled_from(ANYTHING)),
        st.tuples(st.just("unstated"), old, fields),
        st.tuples(st.just("tensor"), old, names, st.sampled_from(ways)),
        st.just(("strange",)),
    )


def _json_damage(raw: bytes, old: SearchStrategy[bool]) -> SearchStrategy[Damage]:
    ways: list[list[Any]] = []

    def walk(held: Any, path: list[Any]) -> None:
        for key, value in held.items() if isinstance(held, dict) else enumerate(held) if isinstance(held, list) else ():
            ways.append([*path, key])
            walk(value, [*path, key])

    walk(json.loads(raw), [])
    way = st.sampled_from(ways)
    return st.one_of(
        st.tuples(st.just("json"), old, way, st.sampled_from(ANYTHING)),
        st.tuples(st.just("json away"), old, way),
    )


def _parquet_damage(raw: bytes, old: SearchStrategy[bool]) -> SearchStrategy[Damage]:
    columns = parquet.read_schema(pyarrow.BufferReader(raw)).names
    ways = ["row away", "row twice", "column away", "other type", "other value", "null", "stated", "unstated"]
    ways.append("no text")
    return st.tuples(st.just("rows"), old, st.sampled_from(ways), st.sampled_from(columns))


SPECIAL: dict[str, Callable[[bytes, SearchStrategy[bool]], SearchStrategy[Damage]]] = {
    ".safetensors": _tensor_damage,
    ".json": _json_damage,
    ".parquet": _parquet_damage,
}
"""Further damage by the ending of a file."""

HASHES = ("sha256", "tensors_sha256", "metadata_sha256", "rows_sha256")


def damage_file(folder: Path, whole: Path, case: Case) -> bool:
    """Damage a file; say whether it states no hash afterwards, as those of earlier versions, or the same as before.

    Args:
        folder: of the file.
        whole: of all files, where another one comes from that the folder does not have.
        case: what is done.
    """
    path, (kind, *values) = folder / case.file, case.damage
    raw = path.read_bytes()
    if kind in ("cut", "flip", "zero", "noise", "empty", "text", "longer", "length"):
        path.write_bytes(_bytes(raw, kind, *values))
    elif kind in ("folder", "gone"):
        path.unlink()
        if kind == "folder":
            path.mkdir()
    elif kind == "swap":
        other = folder / values[0]
        shutil.copy(other if other.is_file() else whole / values[0], path.with_name("swapped"))
        path.with_name("swapped").replace(path)
    elif kind in ("json", "json away"):
        return _damage_json(path, kind, *values)
    elif kind == "rows":
        return _damage_rows(path, *values)
    else:
        return _damage_tensors(path, raw, kind, *values)
    return False


def _bytes(raw: bytes, kind: str, *values: Any) -> bytes:
    held = bytearray(raw)
    if kind == "cut":
        return raw[: values[0]]
    if kind == "flip":
        for place, mask in values[0]:
            if held:
                held[place] ^= mask
    elif kind == "zero":
        held[values[0] : values[0] + values[1]] = bytes(len(held[values[0] : values[0] + values[1]]))
    elif kind == "noise":
        new = bytes.fromhex(values[1])
        held[values[0] : values[0] + len(new)] = new
    elif kind == "length":
        held[:8] = struct.pack("<Q", values[0])
    return {"empty": b"", "text": b"anything else\n", "longer": raw + b"\0"}.get(kind, bytes(held))


def _damage_json(path: Path, kind: str, old: bool, way: list[Any], value: Any = None) -> bool:
    content = json.loads(path.read_text())
    if old:
        content.pop("sha256", None)
    try:
        holder = functools.reduce(lambda held, key: held[key], way[:-1], content)
        if kind == "json":
            holder[way[-1]] = value
        else:
            del holder[way[-1]]
    except (KeyError, IndexError):
        pass
    path.write_text(json.dumps(content))
    return old


def _damage_rows(path: Path, old: bool, way: str, column: str) -> bool:
    table = parquet.read_table(path, partitioning=None)
    held = dict(table.schema.metadata or {})
    if old and b"satm" in held:
        held.pop(b"satm_sha256", None)
        stated = json.loads(held[b"satm"])
        held[b"satm"] = json.dumps({name: one for name, one in stated.items() if name not in HASHES}).encode()
    place = table.column_names.index(column)
    values = table[column]
    if way == "row away" and len(table):
        table = table.slice(1)
    elif way == "row twice":
        table = pyarrow.concat_tables([table, table.slice(0, 1)])
    elif way == "column away":
        table = table.drop_columns(column)
    elif way == "other type":
        table = table.set_column(place, column, pyarrow.array([[1]] * len(table)))
    elif way == "null":
        table = table.set_column(place, column, pyarrow.nulls(len(table), values.type))
    elif way == "other value" and len(table):
        other = {"i": 7, "d": 0.125, "s": "x"}.get(str(values.type)[0]) if "struct" not in str(values.type) else None
        changed = pyarrow.array([other, *values.to_pylist()[1:]], values.type)
        table = table.set_column(place, column, changed)
    elif way == "stated":
        held[b"satm"] = json.dumps({**json.loads(held.get(b"satm", b"{}")), "options": 3}).encode()
    elif way == "unstated":
        held = {}
    elif way == "no text":
        held[b"satm"] = b"\xff{"
    parquet.write_table(table.replace_schema_metadata(held), path)
    return old


def _damage_tensors(path: Path, raw: bytes, kind: str, *values: Any) -> bool:
    if kind in ("head", "strange"):
        header, same = _header(raw), False
        if kind == "head" and values[0] in header:
            same = header[values[0]].get(values[1]) == values[2]  # it says what it said, in other bytes
            header[values[0]][values[1]] = values[2]
        if kind == "strange":
            header["__metadata__"] = {"satm": "[" * 100_000}
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + int.from_bytes(raw[:8], "little") :])
        return same
    old, name, *rest = values
    with safe_open(path, framework="pt") as file:
        tensors = {one: file.get_tensor(one) for one in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata() or {})
    stated = json.loads(metadata.get("satm", "{}"))
    if old:
        stated = {one: held for one, held in stated.items() if one not in HASHES}
    if kind == "stated":
        stated[name] = rest[0]
    elif kind == "unstated":
        stated.pop(name, None)
    elif name in tensors:
        _change_tensor(tensors, name, rest[0])
    path.unlink()
    tensors = {one: tensor.contiguous() for one, tensor in tensors.items()}
    save_file(tensors, path, metadata={"satm": json.dumps(stated)})
    return bool(old)


def _change_tensor(tensors: dict[str, torch.Tensor], name: str, way: str) -> None:
    held = tensors[name]
    if way == "more":
        flat = held.clone().reshape(-1)
        flat[:1] += 1
        tensors[name] = flat.reshape(held.shape)
    elif way == "other type":
        tensors[name] = held.to(torch.float64 if held.dtype == torch.float32 else torch.float32)
    elif way == "longer":
        tensors[name] = torch.cat([held.reshape(-1), held.reshape(-1)[:1]])
    elif way == "reshaped":
        tensors[name] = held.reshape(1, *held.shape)
    elif way == "nan" and held.is_floating_point():
        tensors[name] = torch.full_like(held, float("nan"))
    elif way == "away":
        del tensors[name]
    elif way == "twice":
        tensors[f"{name}.more"] = held.clone()


def _json(path: Path) -> Any:
    """Return what a file of JSON says; None: nothing, it is none."""
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None


def check_file(case: Case, goldens: Goldens) -> str:
    """Try a case; return in a word what came of it.

    Raises:
        Wrong: what must never be.
    """
    reader, work = READERS[case.reader], goldens.base / "work"
    expected = goldens.expected(case.reader)
    with restored(goldens.folder(case.reader), work), often():
        free = damage_file(work, goldens.whole, case) or reader.loose
        before = (work / case.file).read_bytes() if (work / case.file).is_file() else None
        code, told = command(*reader.arguments)
        if code:
            if not free and Path(case.file).name not in told and str(Path(case.file).parent) not in told:
                raise Wrong(f"exit code {code}, and the file is not named: {told!r}")
            lost = [name for name in listed(goldens.folder(case.reader)) if not (work / name).exists()]
            if lost := [name for name in lost if name != case.file]:
                raise Wrong(f"refused, and files are gone: {lost}")
            return f"refused, {code}"
        found = listed(work)
        if free:
            return "accepted, without a hash"
        overview = work / f"{ROOT}/overview.md"
        if case.reader == "overview" and (case.damage[0] in ("gone", "folder") or case.file in overview.read_text()):
            return "accepted, as not run yet"
        # What a command does not make stays as the damage has left it.
        kept = before is not None and (work / case.file).is_file() and (work / case.file).read_bytes() == before
        makes = case.reader in ("experts", "collect") and not case.file.endswith("images.safetensors")
        golden = goldens.folder(case.reader) / case.file
        same = kept and case.file.endswith(".json") and _json(golden) == _json(work / case.file)  # in other bytes
        skip = {case.file} if kept and (same or not makes) else set()
        names = (set(found) | set(expected)) - skip
        different = sorted(name for name in names if found.get(name) != expected.get(name))
        if different and not (different == [case.file] and before is None):
            raise Wrong(f"a wrong result was accepted: {different}")
        return "the same result"
