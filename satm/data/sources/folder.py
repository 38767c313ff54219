"""The source `folder`."""

from pathlib import Path

from satm.config import DatasetOptions
from satm.data.listing import Listing, class_name, entries, existing_folder, files_in, paths_part
from satm.data.sources import DATASETS
from satm.errors import UsageError


@DATASETS.named("folder")
def folder(options: DatasetOptions) -> Listing:
    """List image files `path/train/CLASS/image`, and test images in `path/test/`, else `path/valid/` or `path/val/`.

    Classes are in the order of the training folders' names. Hidden files are left out.
    """
    path = existing_folder(options)
    test = next((path / name for name in ("test", "valid", "val") if (path / name).is_dir()), None)
    if not (path / "train").is_dir() or test is None:
        raise UsageError(f"{path} needs the folders train/CLASS and test/CLASS (or valid, val); create them")
    names = tuple(entry.name for entry in entries(path / "train") if entry.is_dir())

    def items(part: Path) -> list[tuple[Path, int]]:
        for entry in entries(part):
            if entry.name not in names:
                known = ", ".join(names)
                raise UsageError(f"{entry} is not a class: train/ has the class folders {known}; move it")
        return [(file, label) for label, name in enumerate(names) for file in files_in(part / name)]

    class_names = tuple(class_name(path / name) for name in names)
    return Listing(paths_part(items(path / "train")), paths_part(items(test)), class_names)
