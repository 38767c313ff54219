"""Numbers printed in papers (`published_results.csv`), and their use in the tables of a campaign."""

import functools

import pandas

from satm.config.datasets import BUILTIN_DATASETS
from satm.version import PACKAGE

PUBLISHED = {
    "table2": (("satm", "Table 2"), ("contra", "Table 1")),
    **{f"table{number}": (("satm", f"Table {number}"),) for number in (3, 4, 5, 7, 8, 9, 10, 11, 12)},
    "figure3": (("satm", "Figure 3"),),
    **{f"ftd-table{number}": (("ftd", f"Table {number}"),) for number in range(1, 7)},
    **{f"contra-table{number}": (("contra", f"Table {number}"),) for number in (1, 2, 3, 6, 7, 8)},
    "contra-table4": (("contra", "Table 4 left"),),
    "contra-table4-time": (("contra", "Table 4 right"),),
    **{f"ratbptt-table{number}": (("ratbptt", f"Table {number}"),) for number in (1, 2)},
    "ratbptt-figure4": (("ratbptt", "Figure 4 (table)"),),
    "ratbptt-c7": (("ratbptt", "Appendix C.7 (text)"),),
    "ratbptt-c8": (("ratbptt", "Appendix C.8 (text)"),),
}
"""Published tables, as (source, table) of the data file, by the name of a table in a campaign. The first is the table
itself; the later ones only supply measured methods that it does not print (`random` in Table 2)."""

WIDE = "convnet-wide"
"""Name, in the data file, of a wider ConvNet than that of the other published numbers."""


@functools.cache
def load_published() -> pandas.DataFrame:
    """Return the published numbers: source, table, task, dataset, ipc, method, eval_arch, metric, value, std, note.

    Values are as printed, accuracies in percent. A missing value is illegible; a missing std or ipc was not printed.
    """
    return pandas.read_csv(PACKAGE / "tables" / "published_results.csv")


def published_name(dataset: str) -> str:
    """Return the name of a dataset in the data file, which does not depend on the preprocessing."""
    return (BUILTIN_DATASETS[dataset].variant_of if dataset in BUILTIN_DATASETS else "") or dataset


def printed(name: str, dataset: str) -> pandas.DataFrame:
    """Return the published numbers of a dataset in the table that a campaign's table of this name reproduces."""
    frame = load_published()
    source, table = PUBLISHED.get(name, (("", ""),))[0]
    frame = frame[frame["source"].eq(source) & frame["table"].eq(table)]
    return frame[frame["dataset"].eq(published_name(dataset))]


def source_of(name: str) -> str:
    """Return the paper and table that a campaign's table of this name reproduces, such as `satm Table 7`."""
    return " ".join(PUBLISHED[name][0])
