"""Images as people have them, and datasets that are not what they should be."""

import base64
import io
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzz_images import encode as saved
from fuzz_images import png
from PIL import Image
from test_data import encode, load, pixels, write_both, write_parquet

from satm.config import DatasetOptions, load_campaign, parse
from satm.data import ImageData, load_images, save_images
from satm.data.images import FIELDS
from satm.errors import UsageError
from satm.results.external import read_set
from satm.stages.data import make_images
from satm.storage.tensors import read_tensors, write_tensors

GREY = pixels(0, grey=True)
COLOUR = pixels(0)
ALPHA = pixels(1, grey=True)


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    alpha = alpha.reshape(*alpha.shape, *[1] * (colour.ndim - 2)).astype(int)
    return np.floor((colour * alpha + 255 * (255 - alpha)) / 255 + 0.5).astype(np.uint8)


def with_alpha(image: np.ndarray, alpha: np.ndarray) -> Image.Image:
    held = Image.fromarray(image)
    held.putalpha(Image.fromarray(alpha))
    return held


def with_palette(values: np.ndarray, table: np.ndarray) -> Image.Image:
    held = Image.fromarray(values, "P")
    held.putpalette(table.tobytes())
    return held


TABLE = np.random.default_rng(9).integers(0, 256, (256, 3), dtype=np.uint8)
INKS = np.dstack([COLOUR, ALPHA])
LIGHT = 255 - INKS[..., 3:].astype(int)
FULL = np.full_like(ALPHA, 255)
DEEP = np.random.default_rng(8).integers(0, 65536, (6, 6, 3))

RAMP = np.linspace(0, 65535, 36).reshape(6, 6).astype(int) >> 8
"""Grey values from black to white, of the two images that follow, in formats that Pillow does not write."""
TWELVE_BITS = (
    "|4;u>051Rl000060000600000000000000600006000000000000RpF0Sf^E3jqQDQUDA90003200aa80smY81VCW_WB?@q0Yh?S"
    "VRU6=AYyqSPjF>!N>D{dAa-SPb7^mGATlmBE-?R)015yA0000<00IA#-{9C1AK)t(428GLpgPmZQl3SFUy^3YX!(R=r?~XX)#i&;"
    "=MM7WezO$}`T1ucGo4B)S>3^~Pk?~`*#"
)
"""JPEG 2000 in RGB of 12 bits."""
TEN_BITS = (
    "0000WW^{RQVRmU|00000VRmU|ZE0pPZE0a<O+hh10002;ZDn*}000000000eXk=`10000000000aA{+7000000000000000Y-wU)"
    "c4=k+0000EaA|aH000000096103K;<Z({%e002Y)00962000010003R0001}0000eX=!d|000000096102*m-W@Q2Z00001003cj"
    "Ffl`KY;SS^0001LX>f9I0000>X>en20000KX>)L80000000006000060000GaA|mH000000}2WX0000CVRkV?fgnHt0000JV{dG7"
    "ZewhC0096E004jh000+haBX1#00000000310R#a8g9HEo0I+RjVRRAz3J5p|tz!WV03b4%0T2KHi`M<hT@c^;d50`lC20&{vM!f2"
    "bHQ<ms8Mpq=E|?J-T^k-{tPV<+R&3IrIr$uoxNlEi|(jX|NrDzQ^bF+9XN+|F_~bO{Pd@id*W6sd3KfqFp?LMPWBI_H%}Xvkg1DU"
    "=Q%ntsRs0a_TL_BLyo1mR5mg0<U`=bd#28d0GrlB>lF$pw=+*pZIOZnRWQdYQj`"
)
"""AVIF in RGB of 10 bits."""

CONVERTED: dict[str, tuple[bytes, np.ndarray, str]] = {
    "RGBA": (encode(with_alpha(COLOUR, ALPHA)), over_white(COLOUR, ALPHA), "with transparency: put over white"),
    "LA": (encode(with_alpha(GREY, ALPHA)), over_white(GREY, ALPHA), "with transparency"),
    "opaque": (encode(with_alpha(COLOUR, FULL)), COLOUR, "with an opaque alpha channel"),
    "RGBA TIFF": (encode(with_alpha(COLOUR, ALPHA), "TIFF"), over_white(COLOUR, ALPHA), "with transparency"),
    "palette": (encode(with_palette(GREY, TABLE)), TABLE[GREY], "with a palette"),
    "grey palette": (encode(with_palette(GREY, TABLE[:, :1].repeat(3, 1))), TABLE[GREY, 0], "with a palette"),
    "GIF": (encode(with_palette(GREY, TABLE), "GIF"), TABLE[GREY], "with a palette"),
    "palette with a transparent entry": (
        saved(with_palette(GREY, TABLE), transparency=int(GREY[2, 2])),
        np.where((GREY[2, 2] == GREY)[..., None], 255, TABLE[GREY]).astype(np.uint8),
        "with transparency",
    ),
    "transparent grey": (
        saved(Image.fromarray(GREY), transparency=int(GREY[2, 2])),
        np.where(GREY[2, 2] == GREY, 255, GREY),
        "with transparency",
    ),
    "transparent grey of 2 bits": (
        png(GREY[..., None] >> 6, 2, 0, b"\0\1"),
        np.where(GREY >> 6 == 1, 255, (GREY >> 6) * 85),
        "with transparency",
    ),
    "transparent bit": (
        png((GREY[..., None] > 99).astype(np.uint8), 1, 0, b"\0\0"),
        np.full_like(GREY, 255),
        "with transparency",
    ),
    "1 bit": (encode(Image.fromarray(GREY > 99)), (GREY > 99).astype(np.uint8) * 255, "of 1 bit"),
    "CMYK": (
        encode(Image.fromarray(INKS, "CMYK"), "TIFF"),
        np.round(LIGHT * (1 - INKS[..., :3] / 255) - 1e-9).astype(np.uint8),
        "in CMYK",
    ),
    "16-bit grey": (png(DEEP[..., :1], 16, 0), DEEP[..., 0] >> 8, "of more than 8 bits"),
    "16-bit grey TIFF": (
        encode(Image.fromarray(DEEP[..., 0].astype(np.uint16)), "TIFF"),
        DEEP[..., 0] >> 8,
        "of more than 8",
    ),
    "16-bit RGB": (png(DEEP, 16, 2), DEEP >> 8, "of more than 8 bits"),
    "PGM up to 100": (b"P5 6 6 100\n" + (GREY % 101).tobytes(), np.round(GREY % 101 / 100 * 255), "in grey"),
    "16-bit PPM": (b"P6 6 6 65535\n" + DEEP.astype(">u2").tobytes(), np.round(DEEP / 65535 * 255), "of more than 8"),
    "16-bit grey JPEG 2000": (
        encode(Image.fromarray(DEEP[..., 0].astype(np.uint16)), "JPEG2000"),
        DEEP[..., 0] >> 8,
        "of more than 8 bits",
    ),
    "10-bit AVIF": (base64.b85decode(TEN_BITS), np.stack([RAMP] * 3, -1), "of more than 8 bits"),
}


@pytest.mark.parametrize("layout", ["parquet", "folder"])
@pytest.mark.parametrize("kind", list(CONVERTED))
def test_images_with_one_meaning_are_converted_and_counted(tmp_path: Path, kind: str, layout: str) -> None:
    content, expected, note = CONVERTED[kind]
    rest = [pixels(seed) for seed in range(10, 15)]
    if layout == "parquet":
        write_both(tmp_path, images=[content, *map(encode, rest)])
    else:
        write_folders(tmp_path, {"train/a/0.PNG": content, "train/a/1.png": encode(rest[0])})
    data = load(tmp_path, layout)
    shown = expected if expected.ndim == 3 else np.stack([expected] * 3, -1)
    tolerance = 1 if kind in ("CMYK", "10-bit AVIF") else 0  # Pillow's integers round twice
    assert np.abs(data.train.images[0].numpy().transpose(1, 2, 0).astype(int) - shown.astype(int)).max() <= tolerance
    assert any(text.startswith(f"1 of {len(data.train) + len(data.test)} images {note}") for text in data.notes)
    assert not data.doubts or kind == "transparent bit"  # which is white all over


def write_folders(folder: Path, files: dict[str, bytes], tested: bool = True) -> None:
    """Write files by path, and a test image of each class."""
    for index, (name, content) in enumerate(files.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        if tested and name.startswith("train/"):
            test = folder / "test" / Path(name).parts[1] / "0.png"
            test.parent.mkdir(parents=True, exist_ok=True)
            test.write_bytes(encode(pixels(100 + index)))


def images(*seeds: int) -> dict[str, bytes]:
    """Return images of a class a by path."""
    return {f"train/a/{seed}.png": encode(pixels(seed)) for seed in seeds}


ORIENTED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    0: lambda x: x,
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: lambda x: np.rot90(x),
    9: lambda x: x,
}


@pytest.mark.parametrize("tag", list(ORIENTED))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_images_are_turned_upright_by_their_exif_tag(tmp_path: Path, kind: str, tag: int) -> None:
    exif, image = Image.Exif(), io.BytesIO()
    exif[0x0112] = tag
    Image.fromarray(pixels(3, 4, 8)).save(image, kind, exif=exif)
    plain = encode(pixels(3, 4, 8), kind)
    write_folders(tmp_path, {"train/a/0.x": image.getvalue(), "train/a/1.png": encode(pixels(1))})
    data = load(tmp_path, "folder", size=4)
    upright = ORIENTED[tag](np.asarray(Image.open(io.BytesIO(plain))))
    top, left = (side // 2 - 2 for side in upright.shape[:2])
    assert np.array_equal(data.train.images[0].permute(1, 2, 0), upright[top : top + 4, left : left + 4])
    assert [note for note in data.notes if "EXIF" in note] == (
        ["1 of 3 images with an EXIF tag of orientation: turned upright"] if 2 <= tag <= 8 else []
    )


def test_damaged_exif_tags_change_nothing(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.fromarray(COLOUR).save(content, "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xffjunk")
    write_folders(tmp_path, {**images(1), "train/a/0.png": content.getvalue()})
    assert np.array_equal(load(tmp_path, "folder").train.images[0].permute(1, 2, 0), COLOUR)


def several(kind: str) -> bytes:
    file = io.BytesIO()
    first, second = (Image.fromarray(pixels(seed)) for seed in (1, 2))
    first.save(file, kind, save_all=True, append_images=[second])
    return file.getvalue()


def test_the_first_picture_of_a_phones_jpeg_is_taken(tmp_path: Path) -> None:
    write_folders(tmp_path, {"train/a/0.jpg": several("MPO"), **images(5)})
    data = load(tmp_path, "folder")
    first = np.asarray(Image.open(io.BytesIO(encode(pixels(1), "JPEG"))))
    assert np.abs(data.train.images[0].permute(1, 2, 0).numpy().astype(int) - first).max() <= 1 and not data.notes


def without_marker() -> bytes:
    """Return a JPEG in CMYK without Adobe's marker."""
    content = encode(Image.fromarray(INKS, "CMYK"), "JPEG")
    place = content.index(b"\xff\xee")
    return content[:place] + content[place + 2 + int.from_bytes(content[place + 2 : place + 4], "big") :]


UNUSABLE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "an empty file"),
    "LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
        "a pointer of Git LFS: .*`git lfs pull`",
    ),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC, which Pillow does not read"),
    "web page": (b"<!doctype html><title>404</title>", "a web page or SVG"),
    "noise": (b"no image at all", "not an image, or of an unknown format"),
    "cut JPEG": (encode(pixels(0, 64, 64), "JPEG")[:900], "cannot be read: .*truncated"),
    "cut PNG": (encode(pixels(0, 64, 64))[:900], "cannot be read: "),
    "bomb": (b"P6 50000 50000 255\n", "cannot be read: .*decompression bomb"),
    "animated GIF": (several("GIF"), "several frames or pages, expected one"),
    "animated WebP": (several("WEBP"), "several frames"),
    "APNG": (several("PNG"), "several frames"),
    "pages": (several("TIFF"), "several frames or pages"),
    "float": (
        encode(Image.fromarray(GREY.astype(np.float32)), "TIFF"),
        "mode F, expected 8-bit or 16-bit grey or colours",
    ),
    "32 bits": (encode(Image.fromarray(GREY.astype(np.int32)), "TIFF"), "32 bits per pixel, expected 8 or 16"),
    "LAB": (encode(Image.fromarray(COLOUR).convert("LAB"), "TIFF"), "mode LAB"),
    "EPS": (encode(COLOUR, "EPS"), "format EPS, expected JPEG, PNG"),
    "CMYK without marker": (without_marker(), "CMYK without Adobe's marker"),
    "12-bit JPEG 2000": (base64.b85decode(TWELVE_BITS), "JPEG 2000 in colour of more than 8 bits per channel"),
    "16-bit transparent colour": (png(DEEP, 16, 2, bytes(6)), "a transparent colour of 16 bits"),
    "one pixel": (encode(pixels(1, 1, 1)), "1 x 1 pixels, expected at least 4 x 4"),
}


@pytest.mark.parametrize("kind", list(UNUSABLE))
def test_images_without_one_meaning_are_refused(tmp_path: Path, kind: str) -> None:
    content, why = UNUSABLE[kind]
    write_folders(tmp_path, {**images(1, 2), "train/a/odd one.JPG": content})
    with pytest.raises(UsageError, match=rf"1 of 4 images cannot be used: train/a/odd one.JPG \({why}") as caught:
        load(tmp_path, "folder")
    assert "\n" not in str(caught.value)


def test_all_unusable_images_of_both_parts_are_refused_at_once(tmp_path: Path) -> None:
    odd = {f"train/a/{kind}.x": content for kind, (content, _) in UNUSABLE.items()}
    write_folders(tmp_path, {"train/a/!.png": encode(COLOUR), **odd, "test/a/!.x": b"", "train/a/~/deep.png": b"?"})
    (tmp_path / "train/a/~loop").symlink_to("~loop")
    with pytest.raises(UsageError, match=rf"{len(odd) + 3} of {len(odd) + 5} images cannot be used: ") as caught:
        load(tmp_path, "folder")
    assert str(caught.value).count("train/a/") == 10 and f"and {len(odd) - 7} more; convert" in str(caught.value)


def test_a_row_without_an_image_is_one_of_the_unusable(tmp_path: Path) -> None:
    raw = [encode(pixels(seed)) for seed in range(4)]
    write_both(tmp_path, images=[raw[0], None, b"", *raw[1:]])
    text = r"2 of 9 images .*train.parquet row 1 \(no bytes: .*\), train.parquet row 2 \(an empty file\); convert"
    with pytest.raises(UsageError, match=text):
        load(tmp_path)


def test_long_thin_images_are_not_blown_up(tmp_path: Path) -> None:
    write_folders(tmp_path, {**images(1), "train/a/thin.png": encode(np.zeros((1, 100_000), np.uint8))})
    with pytest.raises(UsageError, match=r"thin.png \(1 x 100000 pixels, too long and thin to resize to 64 x 64"):
        load(tmp_path, "folder", size=64)


def test_enlarged_images_are_counted(tmp_path: Path) -> None:
    write_folders(tmp_path, {**images(1), "train/a/small.png": encode(pixels(2, 1, 1))})
    data = load(tmp_path, "folder", size=6)
    assert data.notes == ("1 of 3 images smaller than `size`: enlarged",)
    assert data.doubts == ("1 of 2 training images have one colour only: train/a/small.png",)


def test_junk_beside_images_is_left_out_and_counted(tmp_path: Path) -> None:
    write_folders(tmp_path, {**images(1, 2), "train/b/1.png": encode(pixels(3))})
    before = load(tmp_path, "folder")
    assert before.notes == before.doubts == ()
    junk = ["train/a/Thumbs.db", "train/b/thumbs.db", "train/.DS_Store", "test/a/desktop.ini", "train/a/notes.TXT"]
    junk += ["train/labels.csv", "test/a/meta.json", "train/__MACOSX/a/._1.png", "train/b/@eaDir/1.png/thumb.jpg"]
    write_folders(tmp_path, dict.fromkeys(junk, b"?"), tested=False)
    data = load(tmp_path, "folder")
    assert (data.hash, data.class_names) == (before.hash, ("a", "b"))
    assert data.notes == (
        "left out, as no images: 9, namely 1 .DS_Store, 1 @eaDir, 1 Thumbs.db, 1 __MACOSX, 1 desktop.ini, "
        "1 labels.csv, 1 meta.json, 1 notes.TXT, 1 thumbs.db",
    )


def test_names_of_images_are_relative_to_the_folder_of_the_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folders(Path("data"), {"train/my data/1.png": b"", "train/data/2.png": encode(COLOUR), "train/data/3": b""})
    with pytest.raises(
        UsageError, match=r" in data: 2 of 5 .*: train/data/3, train/my data/1.png \(an empty file\); c"
    ):
        load(Path("data"), "folder")


def test_names_and_links_as_people_have_them(tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere.jpg"
    outside.write_bytes(encode(pixels(7)))
    folder = tmp_path / "data"
    named = {"train/Käse mit Brot/Bild 1.PNG": encode(pixels(1)), "train/a.txt/0": encode(pixels(2))}
    write_folders(folder, {**named, "train/日本/x.tar.jpg": encode(pixels(3), "PNG")})
    (folder / "train/a.txt/link.png").symlink_to(outside)
    (folder / "train/linked").symlink_to(tmp_path / "class", target_is_directory=True)
    write_folders(tmp_path, {"class/0.png": encode(pixels(8))})
    write_folders(folder, {"test/linked/0.png": encode(pixels(9))})
    data = load(folder, "folder")
    assert data.class_names == ("Käse mit Brot", "a.txt", "linked", "日本") and len(data.train) == 5
    assert np.array_equal(data.train.images[2].permute(1, 2, 0), pixels(7)) and data.notes == data.doubts == ()


def test_everything_in_the_way_is_refused_at_once(tmp_path: Path) -> None:
    write_folders(tmp_path, {**images(1), "train/a/deep/1.png": b"", "train/loose.png": b"", "test/A/1.png": b""})
    (tmp_path / "train/a/gone.png").symlink_to("nowhere")
    (tmp_path / "train/a/loop.png").symlink_to("loop.png")
    (tmp_path / "train/a/up").symlink_to("..")
    (tmp_path / "train/round").symlink_to("round")
    os.mkfifo(tmp_path / "train/a/pipe.png")
    (tmp_path / "train" / os.fsdecode(b"\xff")).mkdir()
    with pytest.raises(
        UsageError, match=r"1 of 2 classes have no training images: .*; 10 of 12 images cannot be used: "
    ) as caught:
        load(tmp_path, "folder")
    for fault in (
        *("train/a/deep (a folder among images)", "train/loose.png (not in a class folder)"),
        "test/A, test/loose.png (not a class of train/)",
        "train/round, train/a/gone.png, train/a/loop.png (a link to nothing or to itself)",
        "train/a/up (a link to a folder)",
        *("train/a/pipe.png (not a file)", r"train/\udcff (its name is not UTF-8)"),
    ):
        assert fault in str(caught.value), fault


def test_a_set_from_elsewhere_is_converted_alike(tmp_path: Path) -> None:
    write_folders(tmp_path, {"a/0.png": CONVERTED["RGBA"][0], "b/0.gif": CONVERTED["GIF"][0], "b/Thumbs.db": b"?"})
    held = read_set(tmp_path)
    assert np.array_equal(held.images.permute(0, 2, 3, 1), np.stack([CONVERTED["RGBA"][1], CONVERTED["GIF"][1]]))
    write_folders(tmp_path, {"a/1.png": b"", "a/2.gif": several("GIF"), "b/c/0.png": b""})
    with pytest.raises(UsageError, match=r"3 of 4 images cannot be used: .*a folder among images.*several frames"):
        read_set(tmp_path)


# Parquet


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
@pytest.mark.parametrize("plain", [False, True])
def test_columns_of_bytes_of_every_type_are_read(tmp_path: Path, kind: pa.DataType, plain: bool) -> None:
    raw = write_both(tmp_path)
    hash = load(tmp_path).hash
    for path in tmp_path.glob("*.parquet"):
        table = pq.read_table(path)
        column = pa.array([row["bytes"] for row in table["image"].to_pylist()], kind)
        if not plain:
            column = pa.StructArray.from_arrays([column, pa.array([None] * len(table), pa.string())], ["bytes", "path"])
        table = table.set_column(0, "image", column).append_column("note", pa.array(["x"] * len(table)))
        pq.write_table(table, path)
    data = load(tmp_path)
    assert data.hash == hash and np.array_equal(data.train.images[0].permute(1, 2, 0), raw[0])


def test_a_struct_comes_before_other_columns_of_bytes(tmp_path: Path) -> None:
    write_both(tmp_path)
    hash = load(tmp_path).hash
    for path in tmp_path.glob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.append_column("embedding", pa.array([b"x"] * len(table), pa.binary())), path)
    assert load(tmp_path).hash == load(tmp_path, image_column="image").hash == hash
    with pytest.raises(UsageError, match=r"9 of 9 images .*row 0, .*\(not an image"):
        load(tmp_path, image_column="embedding")


# Data that is wrong


def copied(folder: Path, train: list[int], test: list[int], classes: int = 2, **options: Any) -> ImageData:
    """Load images by the seeds of their pixels, in classes by turns."""
    for part, seeds in (("train", train), ("test", test)):
        labels = [index % classes for index in range(len(seeds))]
        write_parquet(folder / f"{part}.parquet", [encode(pixels(seed)) for seed in seeds], labels)
    return load(folder, **options)


def test_training_images_among_the_test_images_are_refused(tmp_path: Path) -> None:
    seeds = list(range(20))
    text = (
        r"dataset 'mine' in .*: 2 of 5 test images are training images too: test.parquet row 1 = train.parquet row 3, "
        r"test.parquet row 4 = train.parquet row 0; correct this, or .* `allow: \[train-in-test\]`"
    )
    with pytest.raises(UsageError, match=text):
        copied(tmp_path, seeds, [30, 3, 31, 32, 0])
    data = copied(tmp_path, seeds, [30, 3, 31, 32, 0], allow=["train-in-test"])
    assert data.doubts[0].startswith("2 of 5 test images are training images too: test.parquet row 1 = ")


def test_copies_of_training_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"2 of 6 training images are copies of another one: .*row 2 = train.parquet row 0"
    ):
        copied(tmp_path, [1, 2, 1, 3, 1, 4], [20, 21])
    data = copied(tmp_path, [1, 2, 1, 3, 1, 4], [20, 21], allow=["duplicates"])
    assert len(data.train) == 6 and len(data.doubts) == 1


def test_copies_of_both_kinds_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"`allow: \[train-in-test, duplicates\]`"):
        copied(tmp_path, [1, 2, 1, 3], [1, 21])


def test_a_hundredth_of_copies_is_only_warned_of(tmp_path: Path) -> None:
    data = copied(tmp_path, [*range(99), 5], [*range(200, 299), 7])
    assert [doubt.split(":")[0] for doubt in data.doubts] == [
        "1 of 100 test images are training images too",
        "1 of 100 training images are copies of another one",
    ]
    with pytest.raises(UsageError, match=r"2 of 101 test images are training images too"):
        copied(tmp_path, [*range(99), 5], [*range(200, 299), 7, 8])


def test_the_same_pixels_count_however_they_are_encoded(tmp_path: Path) -> None:
    write_folders(tmp_path, {**images(1, 2), "test/a/9.bmp": encode(pixels(1), "BMP")})
    with pytest.raises(UsageError, match=r"1 of 2 test images .*: test/a/9.bmp = train/a/1.png"):
        load(tmp_path, "folder")


def test_only_the_kept_classes_are_compared(tmp_path: Path) -> None:
    labels, raw = [0, 1, 0, 2, 2], [encode(pixels(seed)) for seed in (1, 2, 3, 4, 4)]
    write_parquet(tmp_path / "train.parquet", raw, labels)
    write_parquet(tmp_path / "test.parquet", [encode(pixels(9)), encode(pixels(8)), raw[4]], [0, 1, 2])
    assert load(tmp_path, classes=(0, 1)).doubts == ()
    with pytest.raises(UsageError, match=r"`allow: \[train-in-test, duplicates\]`"):
        load(tmp_path)


def test_contradicting_labels_and_copies_among_test_images_are_warned_of(tmp_path: Path) -> None:
    data = copied(tmp_path, [1, 1, 2, 3], [20, 20, 20], allow=["duplicates"])
    assert data.doubts == (
        "1 of 4 training images are copies of another one: train.parquet row 1 = train.parquet row 0",
        "2 of 3 test images are copies of another one: test.parquet row 1 = test.parquet row 0, "
        "test.parquet row 2 = test.parquet row 0",
        "images of different classes have the same pixels, 2 times: train.parquet row 1 = train.parquet row 0, "
        "test.parquet row 1 = test.parquet row 0",
    )


SHARDS = ["train-00000-of-00003", "train-00001-of-00003", "train-00002-of-00003"]


@pytest.mark.parametrize(
    ("files", "text"),
    [
        (SHARDS, None),
        (SHARDS[::2], r"1 of the 3 files .*train-\*-of-00003 are missing: train-00001"),
        (SHARDS[1:2], r"2 of the 3 files .* are missing: train-00000, train-00002"),
        ([f"{shard}-0123456789abcdef" for shard in SHARDS[:2]], "1 of the 3 files .* are missing: train-00002"),
        (["train-1-of-2", "train-2-of-2"], None),
        (["train-2-of-2"], "1 of the 2 files .* are missing: train-1"),
        (["train_00-of-99999999"], "99999998 of the 99999999 files .* are missing: .* and 99999988 more"),
        (["train-a", "train-b"], None),
    ],
)
def test_missing_shards_are_refused(tmp_path: Path, files: list[str], text: str | None) -> None:
    for index, file in enumerate(files):
        raw = [encode(pixels(10 * index + label)) for label in (0, 1)]
        write_parquet(tmp_path / f"{file}.parquet", raw, [0, 1])
    write_parquet(tmp_path / "test-00000-of-00001.parquet", [encode(pixels(seed)) for seed in (98, 99)], [0, 1])
    if text is None:
        assert load(tmp_path).doubts == ()
        return
    with pytest.raises(UsageError, match=rf"{text}; correct this, or .* `allow: \[missing-shards\]`"):
        load(tmp_path)
    assert len(load(tmp_path, allow=["missing-shards"]).doubts) == 1


def test_gaps_between_numbered_files_are_warned_of(tmp_path: Path) -> None:
    for number in (1, 2, 5):
        raw = [encode(pixels(10 * number + label)) for label in (0, 1)]
        write_parquet(tmp_path / f"train-{number:02d}.parquet", raw, [0, 1])
    write_parquet(tmp_path / "test-7.parquet", [encode(pixels(seed)) for seed in (98, 99)], [0, 1])
    assert load(tmp_path).doubts == ("2 numbers are missing among the files train-*, between 1 and 5",)


@pytest.mark.parametrize(
    ("part", "column", "values", "text"),
    [
        (
            "train",
            "split",
            ["train", "train", "test", "test", "train", "train"],
            "2 of 6 training rows .* are test rows",
        ),
        ("train", "Split", ["TEST"] * 6, "6 of 6 training rows .* are test rows: train.parquet"),
        ("test", "subset", ["test", "training", None], "1 of 3 test rows .* are train rows"),
        ("train", "partition", ["train", "val", "train", "train", "train", "train"], None),
        ("train", "split", ["easy", "hard"] * 3, None),
        ("train", "split", [0, 1, 2, 0, 1, 2], None),
        ("train", "comment", ["test"] * 6, None),
    ],
)
def test_rows_of_another_split_are_refused(
    tmp_path: Path, part: str, column: str, values: list[object], text: str | None
) -> None:
    write_both(tmp_path)
    path = tmp_path / f"{part}.parquet"
    table = pq.read_table(path)
    pq.write_table(table.append_column(column, pa.array(values)), path)
    if text is None:
        doubts = load(tmp_path).doubts
        warned = "1 of 6 training rows state in their file that they are validation rows: train.parquet (1)"
        assert doubts == ((warned,) if column == "partition" else ())
        return
    with pytest.raises(UsageError, match=rf"{text}.*; correct this, or .* `allow: \[other-split\]`"):
        load(tmp_path)
    assert len(load(tmp_path, allow=["other-split"]).doubts) == 1


def test_classes_without_test_images_and_tiny_ones_are_warned_of(tmp_path: Path) -> None:
    files = {
        f"train/{name}/{index}.png": encode(pixels(100 * place + index))
        for place, (name, count) in enumerate((("a", 20), ("b", 2), ("c", 20)))
        for index in range(count)
    }
    write_folders(tmp_path, {**files, "test/a/0.png": encode(pixels(999))}, tested=False)
    assert load(tmp_path, "folder").doubts == (
        "2 of 3 classes have no test images: b, c",
        "1 of 3 classes have few training images, the median is 20: b (2)",
    )


def test_all_classes_without_training_images_are_named(tmp_path: Path) -> None:
    write_folders(tmp_path, images(1))
    for name in ("b", "c"):
        (tmp_path / "train" / name).mkdir()
    with pytest.raises(UsageError, match=r"2 of 3 classes have no training images: 1 \(b\), 2 \(c\); add some"):
        load(tmp_path, "folder")


def test_all_labels_out_of_range_are_counted(tmp_path: Path) -> None:
    write_both(tmp_path, labels=[0, 1, 2, 3, -1, 9])
    with pytest.raises(
        UsageError, match=r"3 of 9 labels are out of range, .*row 3 \(3\), .*row 4 \(-1\), .*row 5 \(9\)"
    ):
        load(tmp_path)


def test_blank_and_dark_images_are_warned_of(tmp_path: Path) -> None:
    shade = [np.full((6, 6, 3), value, np.uint8) for value in (3, 7)]
    dark = {f"train/a/{seed}.png": encode(pixels(seed) // 8) for seed in range(3)}
    write_folders(tmp_path, {**dark, "train/a/blank.png": encode(shade[0]), "test/a/blank.png": encode(shade[1])})
    assert load(tmp_path, "folder").doubts == (
        "1 of 4 training images have one colour only: train/a/blank.png",
        "1 of 2 test images have one colour only: test/a/blank.png",
        "the training images are dark: no value is above 31 of 255; were they scaled?",
    )


def test_classes_with_similar_names_are_warned_of(tmp_path: Path) -> None:
    names = ["Cat", "cat", "Ka\u0308se", "K\u00e4se", "dog"]
    write_folders(tmp_path, {f"train/{name}/0.png": encode(pixels(index)) for index, name in enumerate(names)})
    data = load(tmp_path, "folder")
    assert len(data.class_names) == 5
    assert data.doubts == (
        "names of classes differ in case or Unicode form only: Cat and cat, Ka\u0308se and K\u00e4se",
    )


def test_what_is_allowed_changes_no_number_and_no_parameter(tmp_path: Path) -> None:
    write_both(tmp_path)
    allowed = DatasetOptions(source="parquet", path=str(tmp_path), allow=("duplicates", "missing-shards"))
    assert load(tmp_path, allow=allowed.allow).hash == load(tmp_path).hash
    assert allowed.model_dump() == DatasetOptions(source="parquet", path=str(tmp_path)).model_dump()
    with pytest.raises(UsageError, match=r"x: allow.0: input should be 'train-in-test', 'duplicates'"):
        parse(DatasetOptions, {"source": "folder", "allow": ["everything"]}, "x")


def test_notes_and_doubts_are_stored_and_files_without_them_are_read(tmp_path: Path) -> None:
    write_folders(
        tmp_path / "data", {**images(1, 2), "train/a/Thumbs.db": b"?", "test/a/9.bmp": encode(pixels(2), "BMP")}
    )
    data, path = load(tmp_path / "data", "folder", allow=["train-in-test"]), tmp_path / "images.safetensors"
    assert len(data.notes) == len(data.doubts) == 1
    save_images(path, data)
    stored = load_images(path)
    assert (stored.notes, stored.doubts) == (data.notes, data.doubts)
    tensors, metadata = read_tensors(path, "images")
    assert str(tmp_path) not in json.dumps(metadata)
    write_tensors(path, tensors, {name: value for name, value in metadata.items() if name not in ("notes", "doubts")})
    assert load_images(path).doubts == () and set(FIELDS) >= {"notes", "doubts"}


def test_notes_and_doubts_are_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folders(
        tmp_path / "data", {**images(1, 2), "train/a/3.gif": CONVERTED["GIF"][0], "train/b/0.png": encode(GREY)}
    )
    (tmp_path / "data/test/b/0.png").unlink()
    (tmp_path / "f.yaml").write_text("datasets: {mine: {source: folder, path: data}}")
    with caplog.at_level(logging.INFO, logger="satm"):
        make_images(load_campaign(Path("f.yaml")), "mine")
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert ("INFO", "mine: 1 of 5 images with a palette, converted to its colours") in said
    assert ("WARNING", "mine: 1 of 2 classes have no test images: b") in said
