"""Which segments are drawn, and which options of matching exclude each other or the experts."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import write_experts
from drawing import torch_generator
from matching import EXPANDING, make

from satm.config.methods import MatchingOptions
from satm.errors import UsageError
from satm.methods import METHODS, checks, resolve
from satm.methods.contra import concurrent
from satm.methods.datm import expanding
from satm.methods.parts.problem import Problem
from satm.methods.parts.segments import Segment, draw
from satm.methods.recipe import MATCHING
from satm.params import flatten

# ConTra, Table 5: dataset, images per class, beta, R, K, N, M, T-, T+.
TABLE_5 = """
cifar10 1 0 2 3 80 2 0 4
cifar10 10 0.2 4 4 80 2 0 20
cifar10 50 0.2 8 4 80 2 0 40
cifar10 500 0.3 6 4 80 2 40 60
cifar10 1000 0.3 6 4 80 2 40 60
cifar100 1 0.2 5 5 40 3 0 30
cifar100 10 0.2 10 4 80 2 0 50
cifar100 50 0.2 12 4 80 2 20 70
cifar100 100 0.2 12 4 80 2 30 70
tiny-imagenet 1 0.3 7 3 60 2 0 20
tiny-imagenet 10 0.3 12 4 60 2 10 50
tiny-imagenet 50 0.3 8 4 80 2 40 70
"""


def test_segments_are_uniform_over_experts_and_starts() -> None:
    drawing, options = torch_generator(0), MatchingOptions(min_start_epoch=2, max_start_epoch=6, expert_epochs=4)
    found = [draw(options, drawing, 3, None)[0][1] for _ in range(2400)]
    counts = Counter((segment.expert, segment.start) for segment in found)
    assert set(counts) == {(expert, start) for expert in range(3) for start in range(2, 6)}
    assert all(140 <= count <= 260 for count in counts.values())
    assert all(segment.end == segment.start + 4 for segment in found)


def test_the_last_segment_is_reached(problem: Problem) -> None:
    made = make(problem, "mtt", max_start_epoch=3, expert_epochs=2)
    found = [made.segments(torch_generator(seed), 0) for seed in range(60)]
    assert all(len(segments) == 1 and segments[0][0] == 1 for segments in found)
    assert {segments[0][1].end for segments in found} == {2, 3, 4}


@pytest.mark.parametrize(("first", "last", "over"), [(1, 3, 8), (10, 40, 7), (5, 5, 3), (20, 90, 1000), (2, 20, 1)])
def test_an_expanding_range_is_a_straight_line(first: int, last: int, over: int) -> None:
    options = MatchingOptions(segments="expanding", expand_from=first, max_start_epoch=last, expand_iterations=over)
    found = [expanding(options, iteration) for iteration in range(2 * over)]
    for iteration, below in enumerate(found):
        upper = first + int((last - first) * (iteration / over) + 1e-9)
        assert below == min(upper, last), iteration
    assert found[0] == first and set(found[over:]) == {last} and found == sorted(found)
    assert expanding(options, None) == last


@pytest.mark.parametrize(("iteration", "starts"), [(0, {0}), (3, {0}), (4, {0, 1}), (7, {0, 1}), (8, {0, 1, 2})])
def test_expanding_segments_start_within_the_current_range(problem: Problem, iteration: int, starts: set[int]) -> None:
    for name in ("datm", "mtt", "satm-da"):
        made = make(problem, name, **EXPANDING)
        assert {made.segments(torch_generator(seed), iteration)[0][1].start for seed in range(60)} == starts
        assert {made.segments(torch_generator(seed), None)[0][1].start for seed in range(60)} == {0, 1, 2}


def test_an_expanding_range_grows_from_its_least_start(problem: Problem) -> None:
    options = {**EXPANDING, "expand_from": 2, "expert_epochs": 1, "min_start_epoch": 1, "max_start_epoch": 4}
    made = make(problem, "mtt", **options)
    for iteration, starts in ((0, {1}), (4, {1, 2}), (8, {1, 2, 3})):
        assert {made.segments(torch_generator(seed), iteration)[0][1].start for seed in range(60)} == starts


def test_the_gradient_uses_the_range_of_its_iteration(problem: Problem) -> None:
    growing, whole = (make(problem, "mtt", inner_steps=1, **more) for more in (EXPANDING, {}))
    narrow = make(problem, "mtt", inner_steps=1, max_start_epoch=1)
    synthetic = whole.start()
    synthetic = replace(synthetic, images=synthetic.images.double(), step_size=synthetic.step_size.double())

    def losses(made: Any, *iterations: int) -> list[float]:
        return [float(made.gradient(synthetic, iteration).loss) for iteration in iterations]

    assert losses(growing, 8, 9, 10) == losses(whole, 8, 9, 10) != losses(narrow, 8, 9, 10)
    assert losses(growing, 0, 1, 3) == losses(narrow, 0, 1, 3) != losses(whole, 0, 1, 3)


@pytest.mark.parametrize("options", [{}, EXPANDING], ids=["uniform", "expanding"])
def test_concurrent_segments_keep_the_sampled_one(problem: Problem, options: dict[str, Any]) -> None:
    alone, both = make(problem, "mtt", **options), make(problem, "mtt", **options, concurrent=3, distance=1, beta=0.4)
    experts = set()
    for seed in range(20):
        [(weight, sampled)] = alone.segments(torch_generator(seed), 5)
        [(share, first), *rest] = both.segments(torch_generator(seed), 5)
        assert first == sampled and weight == 1 and share == 0.4
        assert [segment for _, segment in rest] == [Segment(sampled.expert, start, start + 2) for start in (0, 1, 2)]
        assert [share for share, _ in rest] == pytest.approx([0.2] * 3)
        experts.add(sampled.expert)
    assert experts == {0, 1}


def test_concurrent_segments_begin_at_the_least_start(problem: Problem) -> None:
    options = {"min_start_epoch": 1, "max_start_epoch": 4, "expert_epochs": 1, "concurrent": 2}
    for distance, starts in ((2, [1, 3]), (1, [1, 2]), (None, [1, 2])):
        [_, *fixed] = make(problem, "mtt", **options, distance=distance).segments(torch_generator(0), 0)
        assert [(segment.start, segment.end) for _, segment in fixed] == [(start, start + 1) for start in starts]


def test_fixed_segments_are_evenly_spaced_and_share_the_weight() -> None:
    options = MatchingOptions(concurrent=3, min_start_epoch=3, distance=4, beta=0.4)
    (first, sampled), *fixed = concurrent(Segment(1, 0, 2), options)
    assert (first, sampled) == (0.4, Segment(1, 0, 2))
    assert [segment for _, segment in fixed] == [Segment(1, 3, 5), Segment(1, 7, 9), Segment(1, 11, 13)]
    assert [weight for weight, _ in fixed] == pytest.approx([0.2, 0.2, 0.2])


@pytest.mark.parametrize(("concurrent", "spacing"), [(1, 20), (3, 6), (4, 5), (7, 2), (20, 1)])
def test_without_a_distance_segments_share_the_range(concurrent: int, spacing: int) -> None:
    options = MatchingOptions(min_start_epoch=10, max_start_epoch=30, concurrent=concurrent)
    assert options.spacing == spacing
    assert not [*checks.segments(options, 40)]
    assert MatchingOptions(**{**options.model_dump(), "distance": 2}).spacing == 2


class Untouched:
    """Experts that only say how many and how long they are; whatever else is asked of them fails."""

    def __init__(self, epochs: int) -> None:
        self.epochs, self.near_chance = epochs, None

    def __len__(self) -> int:
        return 2


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"max_start_epoch": 4},
            r"from epoch 3 to epoch 5 goes beyond the 4 epochs of the experts; lower max_start_epoch or expert_epochs",
        ),
        ({"expert_epochs": 5}, "from epoch 2 to epoch 7 goes beyond the 4 epochs of the experts"),
        ({"min_start_epoch": 3}, r"\[min_start_epoch, max_start_epoch\), got \[3, 3\); raise max_start_epoch"),
        ({"min_start_epoch": 4}, r"got \[4, 3\); raise max_start_epoch"),
        ({"segments": "expanding"}, "segments 'expanding' does not go with expand_from None; expanding segments need"),
        ({"expand_from": 2}, "segments 'uniform' does not go with expand_from 2; .*uniform ones have none"),
        (
            {"segments": "expanding", "expand_from": 1, "min_start_epoch": 1},
            "expand_from must lie above min_start_epoch 1 and not above max_start_epoch 3, got 1",
        ),
        (
            {"segments": "expanding", "expand_from": 4},
            "expand_from must lie above min_start_epoch 0 and not above max_start_epoch 3, got 4",
        ),
        (
            {"concurrent": 3, "distance": 2, "expert_epochs": 1},
            "concurrent 3 segments at a distance of 2 from min_start_epoch 0 on reach epoch 4, max_start_epoch is 3; "
            "lower concurrent or distance",
        ),
        (
            {"concurrent": 4},
            "concurrent, distance: a segment from epoch 3 to epoch 5 goes beyond the 4 epochs of the experts; lower "
            "concurrent, distance or expert_epochs",
        ),
        ({"concurrent": 4, "distance": None}, "concurrent 4 segments do not fit between .*lower concurrent or set"),
        ({"tesla_scale": "code"}, "tesla_scale 'code' belongs to the engine 'tesla', the engine is 'mixed'; leave one"),
        ({"tesla_scale": "code", "engine": "reverse"}, "the engine is 'reverse'"),
        ({"keep_divisor": 7}, r"int\(6 / 7\) keeps no step; lower keep_divisor or raise inner_steps"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["mtt", "satm", "contra"])
def test_options_that_do_not_fit_are_refused_before_any_work(
    problem: Problem, name: str, options: dict[str, Any], text: str
) -> None:
    fixed = {"engine": "mixed", "concurrent": 0, "distance": 1}
    with pytest.raises(UsageError, match=text) as caught:
        make(replace(problem, experts=Untouched(4)), name, **{**fixed, **options})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_options_at_their_limits_are_accepted(problem: Problem) -> None:
    untouched: Any = replace(problem, experts=Untouched(4))  # type: ignore[arg-type]
    for options in (
        {"concurrent": 3, "distance": 1},
        {"concurrent": 2, "distance": 3, "expert_epochs": 1},  # the last starts at max_start_epoch itself
        {"segments": "expanding", "expand_from": 3},
        {"tesla_scale": "code", "engine": "tesla"},
        {"keep_divisor": 6},
    ):
        assert make(untouched, "mtt", **options).name == "mtt"


@pytest.mark.parametrize(
    ("name", "option", "value", "text"),
    [
        ("contra", "beta", 1.1, "beta: input should be less than or equal to 1, got 1.1"),
        ("mtt", "beta", -0.1, "beta: input should be greater than or equal to 0, got -0.1"),
        ("mtt-sam", "rho", -0.1, "rho: input should be greater than or equal to 0, got -0.1"),
        ("satm", "rho", -0.1, "rho: input should be greater than or equal to 0, got -0.1"),
        ("mtt-gsam", "alpha", -1, "alpha: input should be greater than or equal to 0"),
        ("mtt-asam", "eta", -1, "eta: input should be greater than or equal to 0"),
        ("mtt-vasso", "theta", 0, "theta: input should be greater than 0, got 0"),
        ("mtt-vasso", "theta", 1.5, "theta: input should be less than or equal to 1"),
        ("mtt-ema", "ema", 1, "ema: input should be less than 1, got 1"),
        ("mtt-robust", "start_noise", -1, "start_noise: input should be greater than or equal to 0"),
        ("mtt", "distance", 0, "distance: input should be greater than or equal to 1"),
        ("mtt", "concurrent", -1, "concurrent: input should be greater than or equal to 0"),
        ("mtt", "engine", "exact", "engine: input should be 'mixed', 'reverse' or 'tesla', got 'exact'"),
    ],
)
def test_values_out_of_range_are_refused(name: str, option: str, value: Any, text: str) -> None:
    with pytest.raises(UsageError, match=f"method {name}: {text}"):
        resolve({"method": name, option: value})


@pytest.mark.parametrize("row", TABLE_5.split("\n")[1:-1])
def test_contras_published_segments_fit_experts_of_72_epochs(row: str) -> None:
    _, _, beta, distance, count, steps, length, least, most = row.split()
    options = {
        "beta": float(beta),
        "distance": int(distance),
        "concurrent": int(count),
        "inner_steps": int(steps),
        "expert_epochs": int(length),
        "min_start_epoch": int(least),
        "max_start_epoch": int(most),
    }
    kind, checked = resolve({"method": "contra", **options})
    assert kind is METHODS["contra"]
    assert not [*checks.segments(checked, 72)]  # type: ignore[arg-type]
    last = int(least) + (int(count) - 1) * int(distance)
    assert last <= int(most)
    needed = max(int(most) - 1, last) + int(length)
    assert not [*checks.segments(checked, needed)]  # type: ignore[arg-type]
    text, *_ = checks.segments(checked, needed - 1)  # type: ignore[arg-type]
    assert f"the {needed - 1} epochs of the experts" in text


def test_experts_that_do_not_move_are_refused(problem: Problem, tmp_path: Path) -> None:
    still = [flatten(problem.build(0)).float()] * 5
    made = make(replace(problem, experts=write_experts(tmp_path / "still", [still])), "mtt")
    with pytest.raises(UsageError, match=r"expert \d did not move from epoch"):
        made.gradient(made.start(), 0)


def test_matching_without_experts_is_refused(problem: Problem) -> None:
    matching = {name for name, kind in METHODS.items() if kind.family is MATCHING}
    assert {"mtt", "satm", "ftd", "datm", "tesla", "contra"} <= matching
    for name in matching:
        with pytest.raises(UsageError, match="needs experts; train them with `python -m satm experts`"):
            make(replace(problem, experts=None), name)
