"""The source `tiny-imagenet`."""

from pathlib import Path

from satm.config import DatasetOptions
from satm.config.source_files import holds_parquet
from satm.data.listing import Listing, Walk, existing_folder, paths_part
from satm.data.sources import DATASETS
from satm.data.sources.parquet import parquet
from satm.errors import UsageError


@DATASETS.named("tiny-imagenet")
def tiny_imagenet(options: DatasetOptions) -> Listing:
    """List Tiny ImageNet: 64 x 64 pixels, 200 classes of 500 training and 50 validation images, used for testing.

    The files are its published folders (`wnids.txt`, `train/WNID/images/`, `val/images/`, `val/val_annotations.txt`) or
    image-parquet. Classes are named by their WordNet ids and sorted by them as text.
    """
    folder = existing_folder(options)
    listed = folder / "wnids.txt"
    if not listed.is_file():
        if holds_parquet(folder):
            return parquet(options)
        raise UsageError(
            f"{folder} holds neither wnids.txt of the published Tiny ImageNet nor parquet files; put one of them there"
        )
    names = tuple(sorted(_text(listed).split()))
    if unsafe := [name for name in names if Path(name).name != name]:
        raise UsageError(f"{listed} has the class {unsafe[0]!r}, which cannot be a folder's name; correct it")
    labels, walk = {name: label for label, name in enumerate(names)}, Walk()
    train = [
        (path, label) for name, label in labels.items() for path in walk.images(folder / "train" / name / "images")
    ]
    annotations = folder / "val" / "val_annotations.txt"
    if not annotations.is_file():
        raise UsageError(f"{annotations} does not exist; unpack the whole Tiny ImageNet")
    test = []
    for number, line in enumerate(_text(annotations).splitlines(), 1):
        fields = line.split()
        if len(fields) < 2 or fields[1] not in labels or Path(fields[0]).name != fields[0]:
            raise UsageError(
                f"{annotations} line {number}: expected an image and a class of wnids.txt, got {line!r}; correct it"
            )
        test.append((folder / "val" / "images" / fields[0], labels[fields[1]]))
    return Listing(paths_part(train), paths_part(test), names, walk.left_out, tuple(walk.faults))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not a text file ({error}), so it is damaged; unpack it again") from error
