"""Paths of all files; no path is built anywhere else."""

from satm.config.cell import PATTERN, Cell

OVERVIEW = "overview"
"""Name of the table of a campaign's results so far."""

ACCOUNTING = "accounting"
"""Name of the table and the figure of the time and memory that a campaign's jobs have taken."""

PAIRED = "-paired"
"""Ending of the name of a further csv file beside a table, with the paired differences of methods."""

FOLDERS = {
    *("data", "experts", "distilled", "evaluation", "variants", "full", "nas", "continual", "analysis", "tables"),
    *("figures", "logs", "benchmarks", "state", "options"),
}
"""Folders below the root of a campaign."""

PLACES: dict[str, tuple[str, ...]] = {
    "data": ("data", "{dataset}", "all"),
    "images": ("data", "{dataset}", "images"),
    "zca": ("data", "{dataset}", "zca"),
    "experts_part": ("experts", "{dataset}", "{experts}", "part-{part}"),
    "experts": ("experts", "{dataset}", "{experts}", "manifest"),
    "difficulty": ("experts", "{dataset}", "{experts}", "difficulty"),
    "distill": ("distill", *PATTERN.place),
    "evaluate": ("evaluate", *PATTERN.place, "{network}"),
    "variants": ("variants", *PATTERN.place, "{network}"),
    "full": ("full", "{dataset}", "{recipe}", "{network}"),
    "continual": ("continual", *PATTERN.place, "{protocol}"),
    "nas": ("nas", *PATTERN.place, "{search}", "part-{part}"),
    "nas_real": ("nas", "{dataset}", "real", "{search}", "part-{part}"),
    "analysis": ("{what}", *PATTERN.place),
    "expert_sharpness": ("expert-sharpness", "{dataset}", "{experts}"),
    "overview": ("table", OVERVIEW),
    "accounting": ("table", ACCOUNTING),
    "table": ("table", "{table}"),
    "figure": ("figure", "{figure}"),
}
"""Place of the log, account, benchmark and state of a job by its rule; `data`: images and whitening in one run."""


def place_of(rule: str, **names: object) -> tuple[str, ...]:
    """Return the place of the job with these wildcards, for `Layout.log` and the like.

    Part None stands for all parts in one run.
    """
    parts = PLACES[rule]
    if names.get("part", "") is None and "{part}" in parts[-1]:
        parts = (*parts[:-1], "all")
    return tuple(part.format(**names) for part in parts)


class Layout:
    """All paths below one root; with wildcards such as `{dataset}` as arguments, Snakemake's patterns."""

    def __init__(self, root: str) -> None:
        self.root = root

    def images(self, dataset: str) -> str:
        """Decoded images of a dataset, uint8."""
        return f"{self.root}/data/{dataset}/images.safetensors"

    def zca(self, dataset: str) -> str:
        """Whitening of a dataset: mean, matrix, inverse."""
        return f"{self.root}/data/{dataset}/zca.safetensors"

    def experts(self, dataset: str, experts: str) -> str:
        """Folder of a trajectory store: shards, parts and manifest."""
        return f"{self.root}/experts/{dataset}/{experts}"

    def experts_part(self, dataset: str, experts: str, part: str) -> str:
        """Summary of the experts of one job; `part`: `FIRST-LAST`."""
        return f"{self.experts(dataset, experts)}/part-{part}.json"

    def manifest(self, dataset: str, experts: str) -> str:
        """Manifest of a complete trajectory store."""
        return f"{self.experts(dataset, experts)}/manifest.json"

    def difficulty(self, dataset: str, experts: str) -> str:
        """Difficulty of each training image, rated by experts."""
        return f"{self.experts(dataset, experts)}/difficulty.safetensors"

    def distilled(self, cell: Cell) -> str:
        """A synthetic set."""
        return f"{self._run('distilled', cell)}/distilled.safetensors"

    def metrics(self, cell: Cell) -> str:
        """Metrics of each iteration of a distillation."""
        return f"{self._run('distilled', cell)}/metrics.parquet"

    def evaluation(self, cell: Cell, network: str) -> str:
        """Accuracies of networks trained on a synthetic set."""
        return f"{self._run('evaluation', cell)}/{network}.parquet"

    def variants(self, cell: Cell, network: str) -> str:
        """Accuracies with hard and soft labels, with and without augmentation."""
        return f"{self._run('variants', cell)}/{network}.parquet"

    def full(self, dataset: str, recipe: str, network: str) -> str:
        """Accuracies of networks trained on all real images."""
        return f"{self.root}/full/{dataset}/{recipe}/{network}.parquet"

    def nas(self, cell: Cell, search: str, part: str) -> str:
        """Accuracies of some candidates of an architecture search trained on a synthetic set; `part`: `FIRST-LAST`."""
        return f"{self._run('nas', cell)}/{search}/part-{part}.parquet"

    def nas_real(self, dataset: str, search: str, part: str) -> str:
        """Accuracies of some candidates trained on all real images."""
        return f"{self.root}/nas/{dataset}/real/{search}/part-{part}.parquet"

    def continual(self, cell: Cell, protocol: str) -> str:
        """Accuracies by class of networks that learn classes step by step."""
        return f"{self._run('continual', cell)}/{protocol}.parquet"

    def analysis(self, what: str, cell: Cell) -> str:
        """A measurement at a synthetic set, other than accuracies; `what` as in `satm.config.ANALYSES`."""
        return f"{self._run('analysis', cell)}/{what}.parquet"

    def expert_sharpness(self, dataset: str, experts: str) -> str:
        """Sharpness of the training loss along the trajectories of some experts."""
        return f"{self.root}/analysis/{dataset}/experts/{experts}/sharpness.parquet"

    def table(self, name: str, kind: str = "csv") -> str:
        """A results table as csv, md or tex."""
        return f"{self.root}/{name}.{kind}"

    def figure(self, name: str, kind: str = "png") -> str:
        """A figure as png or pdf, or its numbers as csv."""
        return f"{self.root}/figures/{name}.{kind}"

    def all(self, what: str) -> str:
        """List of all `figures` or all `tables`, written last."""
        return f"{self.root}/{what}/all"

    def log(self, *place: str) -> str:
        """Log of a job; its place is `place_of(rule, …)`."""
        return f"{self.root}/logs/{'/'.join(place)}.log"

    def account(self, *place: str) -> str:
        """Cost of the attempts at a job, beside its log."""
        return f"{self.root}/logs/{'/'.join(place)}.json"

    def benchmark(self, *place: str) -> str:
        """Seconds and memory of a job, as Snakemake measures them."""
        return f"{self.root}/benchmarks/{'/'.join(place)}.tsv"

    def state(self, *place: str) -> str:
        """Folder for resuming one job; never an output, because Snakemake deletes the outputs of a job it restarts."""
        return f"{self.root}/state/{'/'.join(place)}"

    def by_hand(self, *place: str) -> str:
        """Options of experts or of a synthetic set made by hand; its place is `place_of(rule, …)`."""
        return f"{self.root}/options/{'/'.join(place)}.json"

    def _run(self, stage: str, cell: Cell) -> str:
        return f"{self.root}/{stage}/{'/'.join(cell.place)}"
