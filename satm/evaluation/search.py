"""Architecture search: the candidates, a sample of them, and the quality of a proxy's ranking.

A candidate is trained on a proxy, a synthetic set, and on the real images; a good proxy ranks the candidates as the
real images do, in less time. Nothing here imports torch. Accuracies are fractions, as series over `Candidate.index`.
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
"""Search space: the values of each option of `convnet`, 720 candidates in all. Source: FTD A.3.4, ConTra E.3."""

TOPS: dict[str, int | None] = {"top5": 5, "top10": 10, "top20": 20, "all": None}
"""Number of best candidates in a rank correlation, by its name; None: all."""


@dataclass(frozen=True)
class Candidate:
    """One network of the search space: its fixed index in `candidates`, and its options of `convnet`."""

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

    A smaller sample of one seed is the beginning of a larger one. If a candidate is missing in `among`, the order of
    the others does not change.

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
    """Quality of a proxy's ranking of the candidates."""

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

    Source: FTD section 4.4, ConTra E.3.
    Not given: by which accuracies the best are selected. FTD's section 4.4 suggests those of training on real images,
        its A.3.4 those of training on the proxy.
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
    """Return the quality of a proxy's ranking (arguments: `spearman`).

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
