"""The source `folder`."""

from pathlib import Path

from satm.config import DatasetOptions
from satm.data.listing import Listing, entries, existing_folder, files_in, natural_order, paths_part
from satm.data.sources import DATASETS
from satm.errors import UsageError


@DATASETS.named("folder")
def folder(options: DatasetOptions) -> Listing:
    """List image files `path/train/CLASS/image`, and test images in `path/test/`, else `path/valid/` or `path/val/`.

    Classes are in the order of the training folders' names, numbers in them by value: 0, 1, 2, …, 10. Hidden files are
    left out.
    """
    path = existing_folder(options)
    test = next((path / name for name in ("test", "valid", "val") if (path / name).is_dir()), None)
    if not (path / "train").is_dir() or test is None:
        raise UsageError(f"{path} needs the folders train/CLASS and test/CLASS (or valid, val); create them")
    names = tuple(sorted((entry.name for entry in entries(path / "train") if entry.is_dir()), key=natural_order))

    def items(part: Path) -> list[tuple[Path, int]]:
        for entry in entries(part):
            if entry.name not in names:
                known = ", ".join(names)
                raise UsageError(f"{entry} is not a class: train/ has the class folders {known}; move it")
        return [(file, label) for label, name in enumerate(names) for file in files_in(part / name)]

    return Listing(paths_part(items(path / "train")), paths_part(items(test)), names)
