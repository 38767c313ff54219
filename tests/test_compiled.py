"""Closed forms compiled by torch: equal to those that are not, and those where compiling fails."""

import logging
import shutil
from typing import Any

import pytest
import torch
from drawing import torch_generator
from tolerances import SUMS
from torch import Tensor

from satm.ops import block as blocks
from satm.ops import compiled
from satm.ops.block import Block
from satm.ops.compiled import Compiled

BLOCK = Block("instance", activation="relu", pooling="average")


def calls(block: Block) -> dict[str, tuple[Any, ...]]:
    """Return arguments of each function."""
    generator = torch_generator()

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, w, b = random(3, 8, 8, 4), random(4), random(4)
    y, m, r = blocks.forward(block, x, w, b)
    dy = random(*y.shape)
    means = blocks.first(block, x, w, b, m, r, dy)[3:]
    return {
        "forward": (block, x, w, b),
        "first": (block, x, w, b, m, r, dy),
        "second": (block, x, w, b, m, r, dy, *means, random(3, 8, 8, 4), random(4), random(4)),
    }


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++ on a CPU")
def test_compiled_forms_equal_the_others() -> None:
    made = Compiled(blocks.forward, blocks.first, blocks.second)
    with torch.no_grad():
        for name, arguments in calls(BLOCK).items():
            for one, other in zip(getattr(made, name)(*arguments), getattr(blocks, name)(*arguments), strict=True):
                torch.testing.assert_close(one, other, rtol=SUMS, atol=SUMS)
    assert not made._failed


def test_what_cannot_be_compiled_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(function: Any) -> Any:
        raise RuntimeError("Cannot find a working triton installation\nand more")

    monkeypatch.setattr(compiled, "_compile", fails)
    made = Compiled(blocks.forward, blocks.first, blocks.second)
    with caplog.at_level(logging.INFO, "satm"):
        for name, arguments in calls(BLOCK).items():
            for one, other in zip(getattr(made, name)(*arguments), getattr(blocks, name)(*arguments), strict=True):
                assert torch.equal(one, other)
    assert caplog.messages == [
        "the operations are not compiled for this GPU, so they take longer: Cannot find a working triton installation"
    ]


def test_memory_that_runs_out_is_not_taken_for_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(compiled, "_compile", lambda function: full)
    made = Compiled(blocks.forward, blocks.first, blocks.second)
    with pytest.raises(torch.OutOfMemoryError):
        made.forward(*calls(BLOCK)["forward"])
    assert not made._failed


def test_a_cpu_has_kernels_instead() -> None:
    assert not compiled.can_compile(torch.device("cpu")) and compiled.can_compile(torch.device("cuda"))
