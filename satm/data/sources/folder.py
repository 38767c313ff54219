"""The source `folder`."""

from pathlib import Path

from satm.config import DatasetOptions
from satm.config.source_files import test_folder
from satm.data.listing import BROKEN, Fault, Listing, Walk, class_name, existing_folder, natural_order, paths_part
from satm.data.sources import DATASETS
from satm.errors import UsageError, suggest


@DATASETS.named("folder")
def folder(options: DatasetOptions) -> Listing:
    """List image files `path/train/CLASS/image`, and test images in `path/test/`, else `path/valid/` or `path/val/`.

    Classes are in the order of the training folders' names, numbers in them by value: 0, 1, 2, …, 10. Hidden files,
    junk of systems and notes are left out.
    """
    path, walk = existing_folder(options), Walk()
    test = test_folder(path)
    if not (path / "train").is_dir() or test is None:
        raise UsageError(f"{path} needs the folders train/CLASS and test/CLASS (or valid, val); create them")
    inside = {part: walk.entries(part) for part in (path / "train", test)}
    folders = [entry for entry in inside[path / "train"] if entry.is_dir()]
    folders.sort(key=lambda folder: natural_order(class_name(folder)))
    names = tuple(map(class_name, folders))

    def items(part: Path) -> list[tuple[Path, int]]:
        for entry in inside[part]:
            if not entry.is_dir():
                walk.faults.append(Fault(str(entry), "not in a class folder" if entry.exists() else BROKEN))
            elif (name := class_name(entry)) not in names:
                near = suggest(name, list(names))
                walk.faults.append(Fault(str(entry), f"not a class of train/{near and f'.{near}'}"))
            elif "\\udc" in ascii(name):
                walk.faults.append(Fault(str(entry), "its name is not UTF-8"))
        return [(file, label) for label, folder in enumerate(folders) for file in walk.images(part / folder.name)]

    parts = paths_part(items(path / "train")), paths_part(items(test))
    return Listing(*parts, names, walk.left_out, tuple(walk.faults))
