"""Recorded inner steps: where there is no GPU, a stand-in for a recording computes anew what it recorded."""

import gc
import logging
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from drawing import torch_generator
from matching import unlike
from test_unroll import RULES, conv_case, plain
from tolerances import LOOPS
from torch import Tensor, nn

from satm.unroll import hypergradient, recording
from satm.unroll.recording import Recording


class StandIn:
    """Behaves as a recording: fixed tensors, which each call overwrites."""

    def __init__(self, function: Callable[..., Sequence[Tensor]], examples: Sequence[Tensor]) -> None:
        self._arguments = [example.detach().clone() for example in examples]
        self._run: Callable[[], Sequence[Tensor]] = lambda: function(*self._arguments)
        self._results = [result.clone() for result in self._run()]

    def __call__(self, *arguments: Tensor) -> list[Tensor]:
        for own, given in zip(self._arguments, arguments, strict=True):
            assert own.shape == given.shape and own.dtype == given.dtype and not given.requires_grad
            own.copy_(given)
        for own, made in zip(self._results, self._run(), strict=True):
            own.copy_(made)
        return self._results


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "Recording", StandIn)
    monkeypatch.setattr(recording, "_can_record", lambda device: True)
    monkeypatch.setattr(recording, "_seconds", lambda device, work: 1.0)


@pytest.mark.parametrize("last", [None, 3])
@pytest.mark.parametrize("rule", list(RULES))
def test_recorded_steps_give_the_hypergradient(rule: str, last: int | None, stand_in: None) -> None:
    case = conv_case(RULES[rule])
    expected = plain(case, case.steps - (last or case.steps))
    for stored in (0, 2, None):
        found = case.solve("mixed", last=last, stored=stored)
        for name in ("loss", "end", "images", "labels", "step_size"):
            assert unlike(getattr(found, name), expected[name]) <= LOOPS, name


def solve(module: nn.Module, **options: Any) -> Tensor:
    images, labels = torch.randn(3, 3, 8, 8, generator=torch_generator()), torch.arange(3)
    objective = lambda weights: weights.square().sum()  # noqa: E731
    return hypergradient(module, images, labels, 0.1, objective, steps=3, **options).images


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


def test_a_recording_is_made_once_and_told(stand_in: None, caplog: pytest.LogCaptureFixture) -> None:
    module = network()
    with caplog.at_level(logging.INFO, "satm"):
        first = solve(module, stored=0)
        assert torch.equal(solve(module, stored=0), first)
        solve(module)
    told = [text for text in caplog.messages if "recorded" in text]
    assert told == ["inner steps are recorded as CUDA graphs, 1.00 times as fast as steps whose graphs are kept"]
    assert any("the graphs of 0 of 3 inner steps are kept" in text for text in caplog.messages)


def test_losses_that_are_made_anew_do_not_fill_the_memory(stand_in: None) -> None:
    module = network()
    for factor in range(7):
        solve(module, stored=0, loss=lambda logits, labels, factor=factor: factor * logits.square().sum())
    assert max(len(steps) for steps in recording._recorded.values()) == recording.MOST


@pytest.mark.parametrize("fault", ["wrong", "fails"])
def test_a_recording_that_is_wrong_is_not_used(
    fault: str, stand_in: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Faulty(StandIn):
        def __call__(self, *arguments: Tensor) -> list[Tensor]:
            if fault == "fails":
                raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")
            return [result * 2 for result in super().__call__(*arguments)]

    module = network()
    expected = solve(module, stored=3)
    monkeypatch.setattr(recording, "Recording", Faulty)
    with caplog.at_level(logging.INFO, "satm"):
        assert torch.equal(solve(module, stored=0), expected)
        assert torch.equal(solve(module, stored=0), expected)
    (told,) = (text for text in caplog.messages if "recorded" in text)
    assert told.startswith("inner steps are not recorded as CUDA graphs, so they take longer (")
    assert ("results differ by 1.0e+00" if fault == "wrong" else "RuntimeError: CUDA error: operation") in told


def test_a_recording_does_not_keep_its_network(monkeypatch: pytest.MonkeyPatch, stand_in: None) -> None:
    class Light(StandIn):
        """Keeps its function only while it is made, as a recording does."""

        def __call__(self, *arguments: Tensor) -> list[Tensor]:
            return self._results

    monkeypatch.setattr(recording, "Recording", Light)
    module = network()
    solve(module, stored=0)
    assert len(recording._recorded) >= 1
    for steps in recording._recorded.values():
        for step in steps.values():
            if step is not None:
                del step._slope._run, step._pull._run  # type: ignore[attr-defined]  # of the stand-in
    gone = weakref.ref(module)
    del module, steps, step
    gc.collect()
    assert gone() is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU on this machine")
def test_a_recording_repeats_what_it_recorded() -> None:
    values = [torch.randn(5, device="cuda"), torch.randn(5, device="cuda")]
    recorded = Recording(lambda one, other: [one * other, one.sum()], values)
    for factor in (1.0, 3.0):
        product, total = recorded(values[0] * factor, values[1])
        torch.testing.assert_close(product, values[0] * factor * values[1])
        torch.testing.assert_close(total, values[0].sum() * factor)
