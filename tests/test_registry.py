"""Registries: everything is found without a list of imports, and without torch where the workflow reads it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import satm
from satm.methods import METHODS
from satm.methods.recipe import SELECTED, recipe
from satm.registry import Registry

NETWORK = '''
from satm.config import Options
from satm.networks.base import network


class PerceptronOptions(Options):
    """Shape."""

    width: int = 5


@network("perceptron", PerceptronOptions)
def perceptron(channels, classes, size, options):
    from torch import nn

    from satm.networks.layers import Network

    hidden = [nn.Flatten(), nn.Linear(channels * size * size, options.width), nn.ReLU()]
    return Network(nn.Sequential(*hidden), nn.Linear(options.width, classes))
'''

SOURCE = """
import numpy as np

from satm.data.listing import Listing, decoded_part
from satm.data.sources import DATASETS


@DATASETS.named("black-and-white")
def black_and_white(options):
    images = np.stack([np.zeros((6, 6), np.uint8), np.full((6, 6), 255, np.uint8)])
    return Listing(decoded_part(images, [0, 1], "train"), decoded_part(images, [0, 1], "test"), ("black", "white"))
"""

READ = """
import sys
from satm import NETWORKS
from satm.networks import resolve

assert NETWORKS["vit-tiny"].options().depth == 12 and resolve({"network": "perceptron", "width": 7})[1].width == 7
assert all(each.options.model_json_schema()["properties"] for each in NETWORKS.values())
from satm.config import DatasetOptions
assert DatasetOptions(source="black-and-white").source == "black-and-white"
assert not {"torch", "numpy", "pyarrow"} & set(sys.modules)

from satm.data import DATASETS, load_dataset
from satm.networks import build
data = load_dataset("new", DatasetOptions(source="black-and-white", allow=["train-in-test"]))
assert "black-and-white" in DATASETS and (data.size, data.class_names) == (6, ("black", "white"))
network = build({"network": "perceptron"}, data.channels, data.classes, data.size, seed=0)
print(network, sum(parameter.numel() for parameter in network.parameters()))
"""


def python(code: str, path: Path) -> str:
    """Run code in a fresh interpreter in a folder whose packages come first; return what it prints."""
    run = subprocess.run([sys.executable, "-c", code], cwd=path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_network_and_source_are_one_file_each_and_options_need_no_torch(tmp_path: Path) -> None:
    package = tmp_path / "satm"
    shutil.copytree(Path(satm.__file__).parent, package)
    (package / "networks" / "architectures" / "perceptron.py").write_text(NETWORK)
    (package / "data" / "sources" / "black_and_white.py").write_text(SOURCE)
    assert python(READ, tmp_path).endswith(f" {6 * 6 * 5 + 5 + 5 * 2 + 2}\n")


def test_public_names_are_listed_before_their_first_use() -> None:
    code = "import satm, sys; print([*dir(satm)], 'torch' in sys.modules)"
    listed = python(code, Path(satm.__file__).parents[1])
    assert all(repr(name) in listed for name in satm.__all__) and listed.endswith("False\n")
    assert (Path(satm.__file__).parent / "py.typed").is_file()
    for name in satm.__all__:
        assert getattr(satm, name) is not None
    with pytest.raises(AttributeError, match="module 'satm' has no attribute 'nothing'"):
        _ = satm.nothing


def test_method_with_an_unknown_part_is_refused() -> None:
    with pytest.raises(ValueError, match=r"halved: unknown part outher; known: experts, .*, outer"):
        recipe("halved", SELECTED, METHODS["random"].options, fixed={"outher": "halved"})


def test_name_can_be_registered_once() -> None:
    registry: Registry[int] = Registry("satm.networks.architectures")
    assert registry.register("one", 1) == 1 and dict(registry) == {"one": 1}
    with pytest.raises(ValueError, match="'one' twice; rename one of them"):
        registry.named("one")(2)
