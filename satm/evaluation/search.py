"""Architecture search: the networks to choose from, a sample of them, and how well a proxy ranks them.

A candidate is trained on a proxy, a synthetic set, and on the real images; a good proxy puts the candidates into the
order that the real images put them into, in less time. Nothing here imports torch. Accuracies are fractions by
candidate: series whose index is `Candidate.index`.
"""

import itertools
import math
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas

from satm.errors import UsageError

SPACE: dict[str, tuple[Any, ...]] = {
    "width": (32, 64, 128, 256),
    "depth": (1, 2, 3, 4),
    "norm": ("none", "batch", "layer", "instance", "group"),
    "activation": ("sigmoid", "relu", "leakyrelu"),
    "pooling": ("none", "max", "average"),
}
"""The options of the network `convnet` that a candidate chooses from, 720 in all. Source: FTD A.3.4, ConTra E.3."""

TOPS: dict[str, int | None] = {"top5": 5, "top10": 10, "top20": 20, "all": None}
"""Number of best candidates that a rank correlation is over, by its name; None: all."""


@dataclass(frozen=True)
class Candidate:
    """One network of the space: its constant place in `candidates`, and its options of `convnet`."""

    index: int
    width: int
    depth: int
    norm: str
    activation: str
    pooling: str

    @property
    def choices(self) -> dict[str, int | str]:
        """Its options by name."""
        return {name: getattr(self, name) for name in SPACE}

    @property
    def network(self) -> dict[str, int | str]:
        """The network as `{"network": registered name, option: value…}`."""
        return {"network": "convnet", **self.choices}

    def __str__(self) -> str:
        return "-".join(map(str, self.choices.values()))


def candidates(width_factor: float = 1.0) -> list[Candidate]:
    """Return all candidates; the first option of `SPACE` changes slowest, the last fastest.

    Widths are those of `SPACE` times the factor, rounded, at least 1. The papers' are not scaled.
    """
    space = {**SPACE, "width": tuple(max(1, round(width * width_factor)) for width in SPACE["width"])}
    return [Candidate(index, *choices) for index, choices in enumerate(itertools.product(*space.values()))]


def sample(among: Iterable[Candidate], count: int | None, seed: int) -> list[Candidate]:
    """Return a random sample of candidates; None: all, in random order.

    A smaller sample of one seed is the beginning of a larger one. Leaving a candidate out of `among` moves the later
    ones up and changes no other order.

    Raises:
        UsageError: there are fewer than `count`.
    """
    # Numbers of `random` are the same in every version of Python; those of numpy and the order of `shuffle` may change.
    generator = random.Random(seed)
    keys = [generator.random() for _ in candidates()]
    order = sorted(among, key=lambda candidate: keys[candidate.index])
    if count is not None and count > len(order):
        raise UsageError(f"sample asks for {count} candidates, {len(order)} fit the images; lower it or leave it out")
    return order[:count]


@dataclass(frozen=True)
class Ranking:
    """How well a proxy ranks the candidates."""

    spearman: Mapping[str, float]  # rank correlation of proxy and real accuracies, by the names of `TOPS`
    selected: int  # index of the best candidate by the proxy; ties go to the first
    selected_accuracy: float  # of that candidate, trained on the real images
    best_accuracy: float  # of the best candidate, trained on the real images
    candidates: int  # number of ranked candidates


def mean_accuracies(rows: pandas.DataFrame) -> pandas.Series:
    """Return the mean accuracy over the repeats by candidate, ordered by index; a diverged network counts as 0."""
    return rows.assign(accuracy=rows["accuracy"].fillna(0.0)).groupby("candidate")["accuracy"].mean()


def spearman(
    proxy: pandas.Series, real: pandas.Series, top: int | None, top_by: Literal["real", "proxy"] = "real"
) -> float:
    """Return Spearman's rank correlation of two accuracies over the best candidates.

    Equal accuracies share their mean rank. The `top` best candidates (None: all) are those by `top_by`, ties broken by
    index. NaN if there are fewer than `top`, or if all accuracies of one kind are equal.

    Source: FTD section 4.4, ConTra E.3. Which accuracies choose the best is not given exactly: FTD section 4.4 sounds
        like those of training on real images, its A.3.4 like those of training on the proxy.
    """
    proxy, real = proxy.sort_index(), real.sort_index()
    if top is not None:
        if top > len(real):
            return math.nan
        chosen = (real if top_by == "real" else proxy).sort_values(ascending=False, kind="stable").index[:top]
        proxy, real = proxy[chosen], real[chosen]
    if min(proxy.nunique(), real.nunique()) < 2:
        return math.nan
    # Pearson's of the ranks: importing scipy.stats, which has it in one call, takes longer than making the table.
    return float(proxy.rank().corr(real.rank()))


def rank(proxy: pandas.Series, real: pandas.Series, top_by: Literal["real", "proxy"] = "real") -> Ranking:
    """Return how well a proxy ranks the candidates (arguments: `spearman`).

    Raises:
        UsageError: the accuracies are of different candidates.
    """
    if different := sorted(set(proxy.index) ^ set(real.index)):
        raise UsageError(
            f"the proxy ranks {len(proxy)} candidates and the real images {len(real)}; candidate {different[0]} is in "
            "one of them only; make both with the same sample and sample_seed"
        )
    proxy, real = proxy.sort_index(), real.sort_index()
    correlations = {name: spearman(proxy, real, top, top_by) for name, top in TOPS.items()}
    selected = int(proxy.index[int(proxy.argmax())])
    return Ranking(correlations, selected, float(real[selected]), float(real.max()), len(real))
