"""How a set is moved: what is asked of an oracle and what is made of its answers."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from drawing import torch_generator
from tolerances import DISTINCT, ROUNDING, SUMS
from torch import Tensor

from satm.methods.parts.problem import Synthetic
from satm.methods.satm import SatmOptions, step
from satm.outer import (
    NO_STATE,
    OuterGradient,
    OuterValue,
    adaptive,
    descent,
    orthogonal,
    sharpness_aware,
    smoothing_noise,
    steepest,
    without_surrogate_gap,
)
from satm.seeds import make_generator
from satm.unroll import Point


class Watched:
    """An oracle that remembers what it was asked and answers with given gradients, one after another."""

    def __init__(self, gradients: Sequence[Tensor], losses: Sequence[float] = (1.0, 1.5)) -> None:
        self.gradients, self.losses = list(gradients), list(losses)
        self.asked: list[tuple[Tensor, dict[str, Any]]] = []

    def __call__(self, images: Tensor, **options: Any) -> OuterValue:
        self.asked.append((images, options))
        count = len(self.asked)
        points = {index: (Point(torch.full((3,), 7.0), {}),) for index in options.get("keep_points", ())}
        labels, step_size = torch.full((2, 3), 10.0 * count), torch.tensor(float(count))
        return OuterValue(torch.tensor(self.losses[count - 1]), self.gradients[count - 1], labels, step_size, points)


def some(seed: int) -> Tensor:
    return torch.randn(2, 1, 4, 4, generator=torch_generator(seed), dtype=torch.float64)


def test_descent_returns_the_hypergradient() -> None:
    images, gradient = some(0), some(1)
    oracle = Watched([gradient])
    found = descent(oracle, images, 3)
    assert torch.equal(oracle.asked[0][0], images) and oracle.asked[0][1] == {"last": 3}
    assert torch.equal(found.images, gradient) and found.labels is not None and float(found.labels[0, 0]) == 10
    assert (float(found.loss), float(found.step_size)) == (1, 1)
    assert found.sharpness is None and found.share is None and dict(found.state) == {}


def test_a_zero_hypergradient_divides_by_nothing() -> None:
    images, none = some(0), torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    for ascent in (steepest(0.1), adaptive(images, 0.1, 0.01), adaptive(torch.zeros_like(images), 0.1, 0.0)):
        oracle = Watched([none, none])
        found, first = sharpness_aware(oracle, images, ascent)
        assert torch.equal(oracle.asked[1][0], images)
        assert torch.equal(found.images, none) and torch.equal(first, none)
    assert torch.equal(adaptive(torch.zeros_like(images), 0.1, 0.0)(some(1)), none)


def test_second_unroll_gives_the_images_gradient_and_first_the_step_size() -> None:
    images, gradients = some(0), [some(1), some(2)]
    oracle = Watched(gradients, (1.0, 1.25))
    found, pointing = sharpness_aware(oracle, images, steepest(0.5), last=4, reuse_from=6)
    (first, asked), (second, again) = oracle.asked
    assert torch.equal(first, images) and asked == {"last": 4, "keep_points": (6,)}
    assert float((second - images).norm()) == pytest.approx(0.5)
    assert float(((second - images) * gradients[0]).sum()) == pytest.approx(0.5 * float(gradients[0].norm()))
    assert again["first"] == 6 and again["last"] == 4 and torch.equal(again["start"][0].weights, torch.full((3,), 7.0))
    assert found.sharpness is not None and found.labels is not None
    assert (float(found.loss), float(found.step_size), float(found.sharpness)) == (1.0, 1.0, 0.25)
    assert torch.equal(found.images, gradients[1]) and float(found.labels[0, 0]) == 20
    assert torch.equal(pointing, gradients[0])


def test_the_noise_is_in_satms_first_unroll_only() -> None:
    images, options = some(0), SatmOptions(inner_steps=6, keep_divisor=2, rho=0.5, gamma=0.1)
    oracle = Watched([some(1), some(2)])
    matching: Any = SimpleNamespace(
        options=options,
        problem=SimpleNamespace(generator=make_generator),
        oracle=lambda synthetic, iteration: oracle,
    )
    step(matching, Synthetic(images, torch.tensor([0, 1]), torch.tensor(0.1)), 3, NO_STATE)
    (first, asked), (second, again) = oracle.asked
    noise = smoothing_noise(images, make_generator("noise", 3), 0.1, "std")
    assert torch.equal(first, images + noise) and asked == {"last": 3, "keep_points": (3,)}
    assert torch.equal(second, images + 0.5 * some(1) / some(1).norm()) and again["first"] == 3


@pytest.mark.parametrize("kind", ["std", "variance"])
def test_the_noise_is_proportional_to_each_images_norm(kind: Any) -> None:
    images = torch.cat([torch.full((1, 1, 100, 100), value) for value in (0.01, 1.0, 0.0)])
    noise = smoothing_noise(images, torch_generator(1), 0.02, kind).double().flatten(1)
    for index, norm in enumerate((1.0, 100.0)):  # five standard errors of 10,000 numbers, and more
        expected = 0.02 * norm if kind == "std" else (0.02 * norm) ** 0.5
        assert float(noise[index].std()) == pytest.approx(expected, rel=0.05)
        assert abs(float(noise[index].mean())) < 0.05 * expected
    assert not noise[2].any()
    assert abs(float(torch.corrcoef(noise[:2])[0, 1])) < 0.05


@pytest.mark.parametrize("eta", [0.0, 0.01, 0.5])
def test_asams_step_has_its_length_in_units_of_the_pixels(eta: float) -> None:
    images, gradient = some(0), some(1)
    step = adaptive(images, 0.3, eta)(gradient)
    scale = images.abs() + eta
    assert float((step / scale).norm()) == pytest.approx(0.3)
    # No other step of this length rises more.
    for seed in range(5, 10):
        other = scale * some(seed) / some(seed).norm() * 0.3
        assert (other * gradient).sum() < (step * gradient).sum()


def test_on_plus_and_minus_1_asams_step_is_sams() -> None:
    signs, gradient = torch.where(some(0) > 0, 1.0, -1.0).double(), some(1)
    assert torch.equal(adaptive(signs, 0.3, 0.0)(gradient), steepest(0.3)(gradient))
    assert not torch.equal(adaptive(2 * signs, 0.3, 0.0)(gradient), steepest(0.3)(gradient))


def test_orthogonal_part_has_no_component_along_the_other() -> None:
    one, other = some(1), some(2)
    found = orthogonal(one, other)
    assert abs(float((found * other).sum())) < SUMS
    share = (one - found) / other
    assert float(share.max() - share.min()) < SUMS and abs(float(share.mean())) > DISTINCT
    assert float(orthogonal(3 * other, other).norm()) < SUMS
    assert torch.equal(orthogonal(one, torch.zeros_like(one)), one)


def test_gsam_changes_the_images_gradient_only() -> None:
    kept = {"x": torch.ones(1)}
    sharp = OuterGradient(torch.tensor(1.0), some(1), some(3), torch.tensor(2.0), torch.tensor(0.5), kept)
    found = without_surrogate_gap(sharp, some(2), 0.7)
    assert torch.allclose(found.images, some(1) - 0.7 * orthogonal(some(2), some(1)), rtol=ROUNDING)
    assert not torch.equal(found.images, sharp.images)
    assert torch.equal(without_surrogate_gap(sharp, some(2), 0.0).images, sharp.images)
    for part in ("loss", "labels", "step_size", "sharpness", "state"):
        assert getattr(found, part) is getattr(sharp, part), part


def test_default_state_is_empty_and_read_only() -> None:
    assert OuterGradient(torch.zeros(()), some(0), None, torch.zeros(())).state is NO_STATE
    with pytest.raises(TypeError):
        NO_STATE["x"] = torch.ones(1)  # type: ignore[index]
