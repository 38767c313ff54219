import dataclasses
import hashlib
import http.server
import io
import json
import os
import shutil
import socket
import tarfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from drawing import numpy_generator, torch_generator
from PIL import Image
from safetensors.torch import save_file
from tolerances import SINGLE_LOOPS, SUMS

from satm.config import BUILTIN_DATASETS, SOURCES, DatasetOptions, parse
from satm.config.source_files import SIZED, source_state
from satm.data import (
    DATASETS,
    FAMILIES,
    Augmentation,
    ImageData,
    Preprocessor,
    Split,
    fit_whitening,
    hold_out,
    load_dataset,
    load_images,
    save_images,
)
from satm.data.cifar import AUTHORS, Archive, list_cifar
from satm.data.decode import decode_part
from satm.data.images import CHUNK_NUMBERS
from satm.data.listing import Listing
from satm.data.sources import cifar10, cifar100
from satm.errors import RunError, UsageError
from satm.storage.tensors import hash_tensors, read_tensors


def needs_data(folder: str) -> pytest.MarkDecorator:
    """Skip a test where a folder of real images is not at hand."""
    there = "SATM_DATA" in os.environ and (Path(os.environ["SATM_DATA"]) / folder).is_dir()
    return pytest.mark.skipif(not there, reason=f"needs real images: set SATM_DATA to a folder that holds {folder}/")


def pixels(seed: int, height: int = 6, width: int = 6, grey: bool = False) -> np.ndarray:
    shape = (height, width) if grey else (height, width, 3)
    return numpy_generator(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(image: np.ndarray | Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, kind)
    return file.getvalue()


def write_parquet(
    path: Path,
    images: Sequence[bytes | None],
    labels: Sequence[int | None],
    names: Sequence[str] | None = None,
    columns: tuple[str, str] = ("image", "label"),
    **more: Any,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array([{"bytes": image, "path": f"{index}.png"} for index, image in enumerate(images)], kind)
    table = pa.table({columns[0]: rows, columns[1]: pa.array(labels, more.pop("label_type", pa.int64())), **more})
    if names is not None:
        label = {"names": list(names), "_type": "ClassLabel"}
        features = {columns[0]: {"_type": "Image"}, columns[1]: label}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=3)


def write_both(folder: Path, **changed: Any) -> list[np.ndarray]:
    """Write six training and three test images of three classes; return their pixels in that order."""
    raw = [pixels(seed) for seed in range(9)]
    train = {"images": [encode(image) for image in raw[:6]], "labels": [0, 1, 2, 0, 1, 2], "names": ["a", "b", "c"]}
    write_parquet(folder / "train.parquet", **{**train, **changed})
    write_parquet(folder / "test.parquet", [encode(image) for image in raw[6:]], [2, 1, 0], train["names"])
    return raw


def load(folder: Path, source: str = "parquet", **options: Any) -> ImageData:
    return load_dataset("mine", DatasetOptions(source=source, path=str(folder), **options))


def as_tensor(images: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


# Sources


def test_every_source_is_registered_under_its_files_name() -> None:
    assert list(DATASETS) == list(SOURCES) and {each.source for each in BUILTIN_DATASETS.values()} < set(SOURCES)
    assert all(source.__doc__ for source in DATASETS.values())
    with pytest.raises(UsageError, match=r"^x: source: expected one of 'cifar10', .*, 'tiny-imagenet', got 'digit'$"):
        parse(DatasetOptions, {"source": "digit"}, "x")


def test_digits_are_split_with_held_out_images() -> None:
    data = load_dataset("digits", DatasetOptions(source="digits", validation=5, split_seed=1))
    assert (data.channels, data.size, data.classes) == (1, 8, 10)
    assert (len(data.train), len(data.validation), len(data.test)) == (1387, 50, 360)
    assert data.train.images.dtype == torch.uint8 and data.train.images.max() == 255
    assert data.test.labels.bincount().tolist() == [36] * 10
    other = load_dataset("digits", DatasetOptions(source="digits", split_seed=2))
    assert torch.equal(other.test.images, data.test.images) and len(other.train) == 1437 and other.hash != data.hash


def test_parquet_gives_the_pixels_labels_and_names(tmp_path: Path) -> None:
    raw = write_both(tmp_path)
    data = load(tmp_path)
    assert torch.equal(data.train.images, as_tensor(raw[:6])) and torch.equal(data.test.images, as_tensor(raw[6:]))
    assert data.train.labels.tolist() == [0, 1, 2, 0, 1, 2] and data.test.labels.tolist() == [2, 1, 0]
    assert (data.class_names, data.name, data.channels, data.size) == (("a", "b", "c"), "mine", 3, 6)
    assert data.train.images.is_contiguous() and len(data.validation) == 0
    splits = (data.train, data.validation, data.test)
    assert data.hash == hash_tensors(*(tensor for split in splits for tensor in (split.images, split.labels)))


def test_parquet_in_shards_with_other_column_names(tmp_path: Path) -> None:
    raw = [pixels(seed) for seed in range(5)]
    images = [encode(image) for image in raw]
    more = {"index": pa.array([1, 2])}
    write_parquet(tmp_path / "data/train-00001.parquet", images[2:4], [1, 0], columns=("img", "fine_label"), **more)
    write_parquet(tmp_path / "data/train-00000.parquet", images[:2], [0, 1], columns=("img", "fine_label"), **more)
    write_parquet(tmp_path / "data/val-0.parquet", images[4:], [1], columns=("img", "fine_label"))
    data = load(tmp_path, train="data/train-*.parquet", test="data/{test,valid,val}*.parquet")
    assert torch.equal(data.train.images, as_tensor(raw[:4])) and data.train.labels.tolist() == [0, 1, 1, 0]
    assert data.class_names == ("0", "1")


def test_folder_patterns_take_the_first_alternative_that_matches(tmp_path: Path) -> None:
    write_both(tmp_path)
    write_parquet(tmp_path / "validation.parquet", [encode(pixels(9))], [0], ["a", "b", "c"])
    write_parquet(tmp_path / "lossless_sample.parquet", [encode(pixels(9, 4, 4))], [0])
    assert len(load(tmp_path).test) == 3
    assert len(load(tmp_path, test="{validation,test}.parquet").test) == 1
    assert len(load(tmp_path, test="{none,t}{no,est,rain}.parquet").test) == 3


def test_classes_are_kept_and_renumbered_in_the_given_order(tmp_path: Path) -> None:
    raw = write_both(tmp_path)
    data = load(tmp_path, classes=(2, 0))
    assert data.class_names == ("c", "a")
    assert data.train.labels.tolist() == [1, 0, 1, 0] and data.test.labels.tolist() == [0, 1]
    assert torch.equal(data.train.images, as_tensor([raw[index] for index in (0, 2, 3, 5)]))


def test_folders_of_classes_are_read(tmp_path: Path) -> None:
    for seed, place in enumerate(("train/cat/1.png", "train/cat/2.jpg", "train/ant/1.png", "valid/cat/1.png")):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(pixels(seed), "JPEG" if path.suffix == ".jpg" else "PNG"))
    (tmp_path / "train/cat/.hidden").write_text("not an image")
    data = load(tmp_path, "folder")
    assert data.class_names == ("ant", "cat") and data.train.labels.tolist() == [0, 1, 1]
    assert data.test.labels.tolist() == [1] and torch.equal(data.test.images, as_tensor([pixels(3)]))
    (tmp_path / "valid/dog").mkdir()
    with pytest.raises(UsageError, match=r"1 of 5 images cannot be used: valid/dog \(not a class of train/\); convert"):
        load(tmp_path, "folder")
    (tmp_path / "valid/dog").rename(tmp_path / "train/cat/deeper")
    with pytest.raises(UsageError, match=r"train/cat/deeper \(a folder among images\)"):
        load(tmp_path, "folder")
    with pytest.raises(UsageError, match=r"needs the folders train/CLASS and test/CLASS"):
        load(tmp_path / "train", "folder")


def write_tiny(folder: Path) -> Path:
    """Write two classes as Tiny ImageNet is published; return its list of validation images."""
    names = ["n02", "n01"]
    (folder / "wnids.txt").write_text("\n".join(names))
    for index, name in enumerate(names):
        (folder / f"train/{name}/images").mkdir(parents=True)
        (folder / f"train/{name}/{name}_boxes.txt").write_text("")
        for number in range(2):
            content = encode(pixels(10 * index + number), "JPEG")
            (folder / f"train/{name}/images/{name}_{number}.JPEG").write_bytes(content)
    (folder / "val/images").mkdir(parents=True)
    (folder / "val/images/val_0.JPEG").write_bytes(encode(pixels(50), "JPEG"))
    annotations = folder / "val/val_annotations.txt"
    annotations.write_text("val_0.JPEG\tn02\t0\t0\t5\t5\n")
    return annotations


def test_tiny_imagenet_in_its_published_folders(tmp_path: Path) -> None:
    annotations = write_tiny(tmp_path)
    data = load(tmp_path, "tiny-imagenet")
    assert data.class_names == ("n01", "n02") and data.train.labels.tolist() == [0, 0, 1, 1]
    assert data.test.labels.tolist() == [1]
    annotations.write_text("val_0.JPEG\tn02\t0\nval_1.JPEG\tn09\t0\n")
    with pytest.raises(UsageError, match=r"val_annotations.txt line 2: expected an image and a class of wnids.txt"):
        load(tmp_path, "tiny-imagenet")
    annotations.write_text("val_1.JPEG\tn01\t0\n")
    with pytest.raises(UsageError, match=r"val/images/val_1.JPEG \(cannot be read: .*No such file"):
        load(tmp_path, "tiny-imagenet")
    annotations.unlink()
    with pytest.raises(UsageError, match=r"val_annotations.txt does not exist; unpack"):
        load(tmp_path, "tiny-imagenet")
    (tmp_path / "wnids.txt").unlink()
    with pytest.raises(UsageError, match=r"holds neither wnids.txt of the published Tiny ImageNet nor parquet files"):
        load(tmp_path, "tiny-imagenet")


@pytest.mark.parametrize("source", ["cifar10", "cifar100", "tiny-imagenet"])
def test_named_sources_take_parquet_where_there_is_some(tmp_path: Path, source: str) -> None:
    write_both(tmp_path)
    assert len(load(tmp_path, source).train) == 6


def state(folder: Path, source: str) -> dict[str, Any] | None:
    return source_state(DatasetOptions(source=source, path=str(folder)))


@pytest.mark.parametrize("source", ["cifar10", "cifar100", "tiny-imagenet", "parquet"])
def test_the_files_of_a_source_are_those_that_it_reads(tmp_path: Path, source: str) -> None:
    write_both(tmp_path)
    before = state(tmp_path, source)
    assert before is not None and before["files"] == 2
    assert before["bytes"] == sum(path.stat().st_size for path in tmp_path.rglob("*.parquet"))
    (tmp_path / "results").mkdir()
    shutil.copy(next(tmp_path.rglob("train*.parquet")), tmp_path / "results/train.parquet")
    assert state(tmp_path, source) == before
    shutil.copy(next(tmp_path.rglob("train*.parquet")), tmp_path / "train-more.parquet")
    assert state(tmp_path, source) not in (None, before)


def test_the_files_of_tiny_imagenet_are_images_and_lists(tmp_path: Path) -> None:
    annotations = write_tiny(tmp_path)
    before = state(tmp_path, "tiny-imagenet")
    assert before is not None and before["files"] == 4 + 1 + 2
    (tmp_path / "train/n01/n01_boxes.txt").write_text("others")
    assert state(tmp_path, "tiny-imagenet") == before
    annotations.write_text("val_0.JPEG\tn01\t0\t0\t5\t50\n")
    assert state(tmp_path, "tiny-imagenet") != before
    annotations.unlink()
    assert state(tmp_path, "tiny-imagenet") not in (None, before)


def test_sources_without_files_that_may_change_have_no_state(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"its hash is known")
    assert [state(tmp_path, source) for source in ("digits", "cifar10", "folder", "parquet")] == [None] * 4
    assert state(tmp_path / "absent", "folder") is None
    assert source_state(DatasetOptions(source="folder", path="$SATM_NO_SUCH_VARIABLE/x")) is None


def test_of_very_many_files_names_alone_are_compared(tmp_path: Path) -> None:
    folder = tmp_path / "train/cat"
    folder.mkdir(parents=True)
    for number in range(SIZED):
        (folder / f"{number}.png").touch()
    before = state(tmp_path, "folder")
    (folder / "0.png").write_bytes(b"larger")
    assert state(tmp_path, "folder") != before
    (folder / "one-more.png").touch()
    beyond = state(tmp_path, "folder")
    assert beyond is not None and (beyond["files"], beyond["bytes"]) == (SIZED + 1, None)
    (folder / "0.png").write_bytes(b"larger again")
    assert state(tmp_path, "folder") == beyond
    (folder / "0.png").rename(folder / "0.jpg")
    assert state(tmp_path, "folder") != beyond


ARCHIVES = {"cifar10": cifar10, "cifar100": cifar100}


def small_archive(source: str, extra: Sequence[str] = ()) -> tuple[Archive, bytes, np.ndarray]:
    """Return an archive as the authors', of two images a file; its bytes, and its images."""
    there = ARCHIVES[source].ARCHIVE
    held, raw = io.BytesIO(), numpy_generator(0).integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
    with tarfile.open(fileobj=held, mode="w:gz") as archive:

        def add(name: str, content: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))

        for index, name in enumerate([*there.train, there.test]):
            labels = [[9] * (there.labels - 1) + [label] for label in (0, 1)]
            rows = [np.append(np.uint8(labels[row]), raw[2 * index + row].ravel()) for row in (0, 1)]
            add(name, np.stack(rows).tobytes())
        add(there.names, b"plane\ncar\n\n")
        for name in extra:
            add(name, b"x")
    content = held.getvalue()
    small = dataclasses.replace(there, size=len(content), sha256=hashlib.sha256(content).hexdigest())
    return small, content, raw[: 2 * len(there.train) + 2]


class Server:
    """A web server of this machine that gives some bytes, or breaks off in the middle of them."""

    def __init__(self) -> None:
        self.content, self.breaks, self.asked = b"", False, 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.write(b"%x\r\n%b\r\n" % (len(outer.content), outer.content))
                self.wfile.write(b"99\r\n" if outer.breaks else b"0\r\n\r\n")

            def log_message(self, *args: object) -> None:
                """Print nothing."""

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def offers(self, archive: Archive, content: bytes, breaks: bool = False) -> Archive:
        """Give these bytes from now on; return the archive at its address."""
        self.content, self.breaks = content, breaks
        return dataclasses.replace(archive, url=f"{self.url}/{archive.name}")


@pytest.fixture
def server() -> Iterator[Server]:
    held = Server()
    thread = threading.Thread(target=held.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield held
    held.http.shutdown()
    thread.join()
    held.http.server_close()


def listed(folder: Path, archive: Archive) -> Listing:
    return list_cifar(DatasetOptions(source="cifar10", path=str(folder)), archive)


@pytest.mark.parametrize("source", ["cifar10", "cifar100"])
def test_the_authors_archive_of_cifar_is_downloaded_once(tmp_path: Path, server: Server, source: str) -> None:
    small, content, raw = small_archive(source)
    archive = server.offers(small, content)
    for _ in range(2):
        listing = listed(tmp_path / "new", archive)
    assert server.asked == 1 and small.url == f"{AUTHORS}/{archive.name}"
    assert [path.name for path in (tmp_path / "new").iterdir()] == [archive.name]
    for part, pixels in ((listing.train, raw[:-2]), (listing.test, raw[-2:])):
        split = decode_part(part, (0, 1), None, None).split
        assert torch.equal(split.images, torch.from_numpy(pixels))
        assert split.labels.tolist() == [0, 1] * (len(pixels) // 2)
    assert listing.class_names == ("plane", "car")


def test_nothing_of_an_archive_is_unpacked(tmp_path: Path) -> None:
    archive, content, _ = small_archive("cifar10", ["../outside", "/tmp/outside"])
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / archive.name).write_bytes(content)
    listed(folder, archive)
    assert [path.name for path in tmp_path.rglob("*")] == ["data", archive.name]


def test_an_archive_with_another_hash_is_not_read(tmp_path: Path, server: Server) -> None:
    small, content, _ = small_archive("cifar10")
    archive = server.offers(small, content[:-1] + b"?")
    with pytest.raises(RunError, match=r"10-binary.tar.gz is not the published file: got the SHA-256 .*, expected "):
        listed(tmp_path, archive)
    assert not list(tmp_path.iterdir())
    (tmp_path / archive.name).write_bytes(content)
    with pytest.raises(UsageError, match=f"expected {cifar10.ARCHIVE.sha256}: it was cut short or changed; delete it"):
        load(tmp_path, "cifar10")


def test_a_connection_that_breaks_off_leaves_nothing(tmp_path: Path, server: Server) -> None:
    small, content, _ = small_archive("cifar10")
    with pytest.raises(RunError, match=r"cannot download cifar10 to .* \(IncompleteRead.*connect to the network"):
        listed(tmp_path, server.offers(small, content, breaks=True))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("wnids.txt", "n01\n../../n02\n", "has the class '../../n02', which cannot be a folder's name"),
        ("val/val_annotations.txt", "../../x.JPEG\tn01\n", "line 1: expected an image and a class of wnids.txt"),
        ("wnids.txt", b"\xff\xfe", "wnids.txt is not a text file"),
        ("val/val_annotations.txt", b"\xff\xfe", "val_annotations.txt is not a text file"),
    ],
)
def test_unsafe_or_unreadable_lists_are_refused(tmp_path: Path, name: str, content: str | bytes, text: str) -> None:
    write_tiny(tmp_path)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=text):
        load(tmp_path, "tiny-imagenet")


def test_pages_of_parquet_are_compared_with_their_checksums(tmp_path: Path) -> None:
    write_both(tmp_path)
    path = next(tmp_path.glob("train*.parquet"))
    pq.write_table(pq.read_table(path), path, compression="none", write_page_checksum=True)
    load(tmp_path, "parquet")
    raw = path.read_bytes()
    place = raw.find(b"\x89PNG") + 50
    path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
    with pytest.raises(UsageError, match=r"is not a whole parquet file .*CRC"):
        load(tmp_path, "parquet")


def test_unreachable_server_is_explained(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]  # nobody listens there
    archive = dataclasses.replace(cifar10.ARCHIVE, url=f"http://127.0.0.1:{port}/{cifar10.ARCHIVE.name}")
    text = r"cannot download cifar10 to .* \(.*refused.*\); connect to the network, or put .* SATM_DATA"
    with pytest.raises(RunError, match=text) as caught:
        listed(tmp_path / "absent", archive)
    assert "\n" not in str(caught.value)


# Images: modes and sizes


def test_grey_among_colour_becomes_colour(tmp_path: Path) -> None:
    grey = pixels(7, grey=True)
    images = [encode(grey, "PNG"), *(encode(pixels(seed)) for seed in range(5))]
    write_both(tmp_path, images=images)
    data = load(tmp_path)
    assert data.channels == 3
    assert torch.equal(data.train.images[0], torch.from_numpy(grey).expand(3, 6, 6))


def test_grey_only_keeps_one_channel(tmp_path: Path) -> None:
    grey = [pixels(seed, grey=True) for seed in range(6)]
    for name, images in (("train", grey[:3]), ("test", grey[3:])):
        write_parquet(tmp_path / f"{name}.parquet", [encode(image) for image in images], [0, 1, 2])
    data = load(tmp_path)
    assert torch.equal(data.train.images[:, 0], torch.from_numpy(np.stack(grey[:3]))) and data.channels == 1
    write_parquet(tmp_path / "test.parquet", [encode(pixels(1))], [0])
    assert load(tmp_path).channels == 3


def test_size_resizes_the_shorter_side_and_crops_the_centre(tmp_path: Path) -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200  # the middle third is the square that is left
    images = [encode(wide), *(encode(pixels(seed, 9, 5)) for seed in range(5))]
    write_both(tmp_path, images=images)
    data = load(tmp_path, size=10)
    assert data.train.images.shape == (6, 3, 10, 10) and data.size == 10
    assert (data.train.images[0, :, :, 1:-1] == 200).all()  # the outermost columns blend over the edge
    raw = write_both(tmp_path)
    assert torch.equal(load(tmp_path, size=6).train.images, as_tensor(raw[:6]))


@pytest.mark.parametrize(("height", "width"), [(20, 60), (60, 20), (9, 5), (4, 7)])
def test_squashing_resizes_both_sides(tmp_path: Path, height: int, width: int) -> None:
    raw = [pixels(seed, height, width) for seed in range(6)]
    write_both(tmp_path, images=[encode(image) for image in raw])
    found = load(tmp_path, size=10, resize="squash").train.images
    whole = torch.nn.functional.interpolate(
        as_tensor(raw).double(), (10, 10), mode="bilinear", antialias=True, align_corners=False
    )
    assert found.shape == (6, 3, 10, 10)
    assert (found - whole).abs().max() < 1.5  # Pillow rounds to whole grey values after each of the two directions
    assert not torch.equal(found, load(tmp_path, size=10).train.images)


def test_squashing_changes_nothing_in_square_images(tmp_path: Path) -> None:
    write_both(tmp_path, images=[encode(pixels(seed, 9, 9)) for seed in range(6)])
    squashed, cropped = (load(tmp_path, size=6, resize=how).train.images for how in ("squash", "crop"))
    assert torch.equal(squashed, cropped)


def test_images_of_two_sizes_are_refused(tmp_path: Path) -> None:
    images = [encode(pixels(seed, *(6, 6) if seed != 4 else (7, 7))) for seed in range(6)]
    write_both(tmp_path, images=images)
    text = r"1 of 9 .*train.parquet row 4 \(7 x 7 pixels, expected 6 x 6 like the others\); .* the dataset's `size`"
    with pytest.raises(UsageError, match=text):
        load(tmp_path)
    write_both(tmp_path, images=[encode(pixels(seed, 5, 5)) for seed in range(6)])
    with pytest.raises(UsageError, match=r"test.parquet row 0, .* row 2 \(6 x 6 pixels, expected 5 x 5"):
        load(tmp_path)
    write_both(tmp_path, images=[encode(pixels(seed, 4, 6)) for seed in range(6)])
    with pytest.raises(UsageError, match=r"row 5 \(4 x 6 pixels, expected a square image\)"):
        load(tmp_path)


# Parquet files and labels


def test_damaged_parquet_is_refused(tmp_path: Path) -> None:
    write_both(tmp_path)
    path = tmp_path / "train.parquet"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"PAR1 nothing else"):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"train.parquet is not a whole parquet file .*fetch it again") as caught:
            load(tmp_path)
        assert "\n" not in str(caught.value)
    data = pq.ParquetFile(io.BytesIO(whole)).metadata.row_group(1).column(0)
    start = data.dictionary_page_offset or data.data_page_offset
    path.write_bytes(whole[:start] + bytes(data.total_compressed_size) + whole[start + data.total_compressed_size :])
    with pytest.raises(UsageError, match=r"train.parquet is not a whole parquet file"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        (
            {"labels": [0, 1, 2, 0, 7, 2]},
            r"1 of 9 labels are out of range, expected 0 to 2: train.parquet row 4 \(7\); correct",
        ),
        ({"labels": [0, 1, 2, -1, 1, 2]}, r"labels are out of range, expected 0 to 2: train.parquet row 3 \(-1\)"),
        ({"labels": [0, 1, 2, None, 1, 2]}, r"train.parquet: column 'label' has no label in 1 of 6 rows: 3"),
        ({"labels": [0, 1, 0, 0, 1, 0]}, r"'mine' in .*: 1 of 3 classes have no training images: 2 \(c\)"),
        ({"labels": [0.0] * 6, "label_type": pa.float64()}, r"column 'label' holds double, expected integer labels"),
        ({"columns": ("image", "target")}, r"has no column 'label', only \['image', 'target'\]; .* `label_column`"),
        ({"images": [None] * 6}, r"6 of 9 images .* train.parquet row 5 \(no bytes: store the images themselves"),
        ({"images": [], "labels": []}, r"'mine' in .*: there are no training images; check files and options"),
        ({"names": ["a", "b", "x"]}, r"test.parquet and .*train.parquet have different class names"),
    ],
)
def test_unusable_parquet_is_refused(tmp_path: Path, changed: dict[str, Any], text: str) -> None:
    write_both(tmp_path, **changed)
    if "names" in changed:
        write_parquet(tmp_path / "test.parquet", [encode(pixels(1))], [0], ["a", "b", "c"])
    with pytest.raises(UsageError, match=text):
        load(tmp_path)


def test_labels_without_names_are_checked_by_number(tmp_path: Path) -> None:
    write_both(tmp_path, names=None)
    write_parquet(tmp_path / "test.parquet", [encode(pixels(1))], [3])
    with pytest.raises(UsageError, match=r"labels are out of range, expected 0 to 2: test.parquet row 0 \(3\)"):
        load(tmp_path)
    images = [encode(pixels(seed)) for seed in range(6)]
    write_parquet(tmp_path / "train.parquet", images, [0, 1, 2, 0, 1, 2_000_000_000])
    with pytest.raises(UsageError, match=r"train.parquet row 5 \(2000000000\)"):
        load(tmp_path)


def test_row_is_counted_within_its_file(tmp_path: Path) -> None:
    write_both(tmp_path)
    write_parquet(tmp_path / "train-b.parquet", [encode(pixels(1)), b"?"], [0, 1], ["a", "b", "c"])
    (tmp_path / "train.parquet").rename(tmp_path / "train-a.parquet")
    with pytest.raises(UsageError, match=r"train-b.parquet row 1 \(not an image"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"train": "other*.parquet"}, r"no file in .* matches 'other\*.parquet', the pattern of `train`; put"),
        ({"train": "*.parquet"}, r"test.parquet matches the patterns of both `train` and `test`"),
        ({"train": ""}, r"the pattern '' of `train` cannot be used"),
        ({"train": "../*.parquet"}, r"the pattern '../\*.parquet' of `train` leads out of"),
        ({"train": "/x/*.parquet"}, r"cannot be used .*; give one relative to `path`"),
        (
            {"image_column": "img"},
            r"train.parquet, .*test.parquet: `image_column` is 'img', .* struct of bytes and path, are \['image'\]",
        ),
        ({"label_column": "image"}, r"column 'image' holds struct.*, expected integer labels"),
        ({"classes": (0, 3)}, r"`classes` has class 3, expected 0 to 2"),
        ({"classes": (0, -1)}, r"`classes` has class -1"),
        ({"classes": (1, 1)}, r"`classes` is \[1, 1\], expected different labels"),
        ({"classes": ()}, r"`classes` is \[\], expected different labels"),
        ({"validation": 2}, r"hold out 2 validation images of class 0, which has 2 training images; .* at most 1"),
        ({"mean": (0.5,)}, r"`mean` has 1 values, expected 3, one per channel"),
        ({"std": (0.5, 0.0, 0.5)}, r"the std of a channel is 0.0, expected above 0"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path: Path, options: dict[str, Any], text: str) -> None:
    write_both(tmp_path)
    with pytest.raises(UsageError, match=text) as caught:
        load(tmp_path, **options)
    assert "\n" not in str(caught.value)


def test_kept_classes_without_test_images_are_refused(tmp_path: Path) -> None:
    write_both(tmp_path)
    write_parquet(tmp_path / "test.parquet", [encode(pixels(1))], [0], ["a", "b", "c"])
    with pytest.raises(UsageError, match=r"no test images of the classes \[1, 2\]"):
        load(tmp_path, classes=(1, 2))


def test_absent_folder_is_refused(tmp_path: Path) -> None:
    for source in ("parquet", "folder", "tiny-imagenet"):
        with pytest.raises(UsageError, match=r"folder .*absent does not exist; create it, or set `path` or SATM_DATA"):
            load(tmp_path / "absent", source)


# Held-out part, statistics, file


def test_hold_out_takes_the_same_number_of_each_class_by_seed() -> None:
    labels = torch.tensor([0, 1, 2] * 10)
    split = Split(torch.arange(30, dtype=torch.uint8).view(30, 1, 1, 1).expand(30, 1, 2, 2), labels)
    train, held = hold_out(split, 3, 0)
    assert held.labels.bincount().tolist() == [3, 3, 3] and train.labels.bincount().tolist() == [7, 7, 7]
    number = torch.cat([train.images, held.images])[:, 0, 0, 0]
    assert sorted(number.tolist()) == list(range(30))
    assert torch.equal(labels[held.images[:, 0, 0, 0].long()], held.labels)
    again, other = hold_out(split, 3, 0)[1], hold_out(split, 3, 1)[1]
    assert torch.equal(again.images, held.images) and not torch.equal(other.images, held.images)
    assert len(hold_out(split, 0, 0)[1]) == 0


def test_statistics_are_those_of_the_training_images(tmp_path: Path) -> None:
    write_both(tmp_path)
    data = load(tmp_path, validation=1)
    x = data.train.images.double() / 255
    assert data.mean == pytest.approx(x.mean((0, 2, 3)).tolist(), abs=SUMS)
    assert data.std == pytest.approx(x.std((0, 2, 3), correction=0).tolist(), abs=SUMS)
    fixed = load(tmp_path, mean=(0.1, 0.2, 0.3), std=(1, 2, 3))
    assert (fixed.mean, fixed.std) == ((0.1, 0.2, 0.3), (1, 2, 3))


def test_normalisation_and_back() -> None:
    images = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8, generator=torch_generator(0))
    preprocessor = Preprocessor((0.1, 0.2, 0.3), (0.5, 1.0, 2.0), None)
    x = preprocessor.apply(images)
    expected = (images / 255 - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor([0.5, 1, 2])[:, None, None]
    torch.testing.assert_close(x, expected)
    torch.testing.assert_close(preprocessor.apply(images.double() / 255), x)
    torch.testing.assert_close(preprocessor.to_pixels(x), images / 255)
    beyond = preprocessor.to_pixels(x * 100)
    assert beyond.min() == 0 and beyond.max() == 1
    assert preprocessor.identity == {
        "space": "normalised",
        "mean": [0.1, 0.2, 0.3],
        "std": [0.5, 1.0, 2.0],
        "whitening_hash": None,
    }
    same = Preprocessor.from_identity(json.loads(json.dumps(preprocessor.identity)), None)
    assert torch.equal(same.apply(images), x) and same.identity == preprocessor.identity
    with pytest.raises(UsageError, match=r"made with whitening abc, got whitening None; give the whitening"):
        Preprocessor.from_identity({**preprocessor.identity, "whitening_hash": "abc"}, None)
    with pytest.raises(UsageError, match=r"expected images \[n, 3, H, W\] because mean and std have 3 channels, got"):
        preprocessor.apply(images[:, :1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_preprocessing_and_augmentation_on_a_gpu() -> None:
    images = torch.randint(0, 256, (9, 3, 8, 8), dtype=torch.uint8, generator=torch_generator(0))
    for whitening in (None, fit_whitening(images), fit_whitening(images, per_image=True, relative=True)):
        preprocessor = Preprocessor((0.4,) * 3, (0.3,) * 3, whitening)
        on_cpu, on_gpu = preprocessor.apply(images), preprocessor.to("cuda").apply(images)
        torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=SINGLE_LOOPS, atol=SINGLE_LOOPS)
        shown = preprocessor.to("cuda").to_pixels(on_gpu).cpu()
        torch.testing.assert_close(shown, preprocessor.to_pixels(on_cpu), rtol=0, atol=SINGLE_LOOPS)
        if whitening is None or not whitening.per_image:
            torch.testing.assert_close(shown, images / 255, rtol=0, atol=SINGLE_LOOPS)
    for family in FAMILIES:
        augmentation = Augmentation(family, "image")
        draw = augmentation.draw(torch_generator(1), 9, 8)
        changed = augmentation.apply(on_gpu, draw)
        torch.testing.assert_close(
            changed.cpu(), augmentation.apply(on_cpu, draw), rtol=SINGLE_LOOPS, atol=SINGLE_LOOPS
        )


def test_chunks_do_not_change_the_result() -> None:
    generator = torch_generator(0)
    images = torch.randint(0, 256, (525_000, 1, 4, 4), dtype=torch.uint8, generator=generator)
    assert images.numel() > CHUNK_NUMBERS
    preprocessor, parts = Preprocessor((0.4,), (0.3,), None), images.split(175_000)
    assert torch.equal(preprocessor.apply(images), torch.cat([preprocessor.apply(part) for part in parts]))
    whitening = fit_whitening(images[:7], per_image=True, relative=True)
    whitened = Preprocessor((0.4,), (0.3,), whitening)
    expected = torch.cat([whitened.apply(part) for part in parts])
    torch.testing.assert_close(whitened.apply(images), expected)
    torch.testing.assert_close(whitened.to_pixels(expected), whitening.invert(expected).clamp(0, 1))
    assert preprocessor.apply(images[:0]).shape == (0, 1, 4, 4)


def test_saved_images_come_back(tmp_path: Path) -> None:
    write_both(tmp_path)
    data, path = load(tmp_path, validation=1), tmp_path / "images.safetensors"
    save_images(path, data)
    loaded = load_images(path)
    assert (loaded.name, loaded.class_names, loaded.mean, loaded.std, loaded.hash) == (
        data.name,
        data.class_names,
        data.mean,
        data.std,
        data.hash,
    )
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(loaded, part).images, getattr(data, part).images)
        assert torch.equal(getattr(loaded, part).labels, getattr(data, part).labels)


def test_changed_or_damaged_file_is_refused(tmp_path: Path) -> None:
    write_both(tmp_path)
    data, path = load(tmp_path), tmp_path / "images.safetensors"
    save_images(path, data)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UsageError, match=r"was changed: its tensor '.*' does not have the hash that it states"):
        load_images(path)
    path.write_bytes(whole)
    tensors, metadata = read_tensors(path, "images")
    tensors["train.labels"] = tensors["train.labels"].flip(0)
    save_file(tensors, path, metadata={"satm": json.dumps(metadata)})  # as earlier versions wrote it
    with pytest.raises(UsageError, match=r"were changed: their hash is .*, it states .*; make them again"):
        load_images(path)
    path.write_bytes(whole[:-100])
    with pytest.raises(UsageError, match="not a whole safetensors file"):
        load_images(path)
    path.unlink()
    with pytest.raises(UsageError, match="does not exist; make it first"):
        load_images(path)


# Real images


@needs_data("cifar10")
def test_real_cifar10() -> None:
    data = load_dataset("cifar10", DatasetOptions(source="cifar10"))
    assert data.train.images.shape == (50_000, 3, 32, 32) and data.test.images.shape == (10_000, 3, 32, 32)
    assert data.train.labels.bincount().tolist() == [5000] * 10 and data.class_names[0] == "airplane"
    # As others state them; some average over images first, which lowers the deviation.
    assert data.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=1e-3)
    assert data.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=3e-3)


@needs_data("tiny-imagenet-subset")
def test_real_tiny_imagenet_has_grey_images_among_colour() -> None:
    options = DatasetOptions(source="tiny-imagenet", path="$SATM_DATA/tiny-imagenet-subset", classes=tuple(range(20)))
    data = load_dataset("tiny-imagenet", options)
    assert data.train.images.shape == (1000, 3, 64, 64) and data.test.images.shape == (200, 3, 64, 64)
    x = data.train.images
    assert ((x[:, 0] == x[:, 1]) & (x[:, 1] == x[:, 2])).flatten(1).all(1).any()


@needs_data("imagenette-128-subset")
def test_real_imagenette_by_a_few_lines_of_options() -> None:
    options = DatasetOptions(source="parquet", path="$SATM_DATA/imagenette-128-subset", size=64, classes=(0, 9))
    data = load_dataset("imagenette", options)
    assert data.train.images.shape == (200, 3, 64, 64) and data.class_names == ("tench", "parachute")
