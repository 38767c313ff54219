"""How much two methods differ, paired."""

import pandas

from satm.errors import UsageError
from satm.tables.statistics import pooled_deviations, student_interval

PAIRED_COLUMNS = (
    *("dataset", "ipc", "network", "quantity", "method", "reference", "method_mean", "reference_mean"),
    *("difference", "low", "high", "n", "over", "pooled_deviations"),
)


def paired(one: pandas.DataFrame, two: pandas.DataFrame, value: str, inner: str) -> dict[str, object]:
    """Return the mean difference of a value, one - two, with its 95 % interval (Student's t).

    Pairs are the seeds of the distillation, each the mean over its networks or segments; with one seed they are the
    networks or the segments themselves, so that the interval does not cover the choice of the seed. `over` says which.
    low and high are missing with a single pair. pooled_deviations is the difference of the means over all networks or
    segments in pooled standard deviations (`satm.tables.statistics`).

    Args:
        one: rows of a method.
        two: rows of another one.
        value: column that is compared.
        inner: column that tells the rows of one seed apart.

    Raises:
        UsageError: pairs without a partner.
    """
    key = "seed" if one["seed"].nunique() > 1 else inner
    first, second = (frame.groupby(key)[value].mean() for frame in (one, two))
    if not first.index.equals(second.index):
        raise UsageError(
            f"the methods compared have different {key}s ({list(first.index)} and {list(second.index)}), so their "
            f"{value} cannot be paired; make both with the same options"
        )
    differences = first - second
    mean, low, high = student_interval(differences.tolist())
    return {
        "method_mean": float(first.mean()),
        "reference_mean": float(second.mean()),
        "difference": mean,
        "low": low,
        "high": high,
        "n": len(differences),
        "over": "seeds" if key == "seed" else f"{inner}s of one seed",
        "pooled_deviations": pooled_deviations(*(frame[value].dropna().tolist() for frame in (one, two))),
    }
