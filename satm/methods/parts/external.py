"""External sets: reading their files and fitting them to a problem."""

import contextlib
from pathlib import Path

import torch
from torch import Tensor

from satm.config import expand, refuse_idle
from satm.data.images import numbered
from satm.errors import UsageError
from satm.methods.external import FilesOptions
from satm.methods.parts.method import DOUBTS, Method
from satm.methods.parts.problem import Problem, Synthetic
from satm.methods.recipe import Recipe
from satm.results.doubts import copy_doubts, label_doubts, mapping_doubts, number_doubts, sorting_doubts, space_doubts
from satm.results.external import ExternalSet, beside, read_labels, read_set, read_step_size
from satm.results.fitting import fit_images, fit_labels, fit_space, fit_statistics, fit_step_size, name_labels
from satm.storage.identity import differing_fields, hash_path

COMPARED, LOOKED_AT = 2000, 500
"""Number of real images that a set's classes and value space are compared with, at most."""

COMPARED_NUMBERS = 2**26
"""Numbers in those images, at most: 256 MiB of float32."""


class External(Method[FilesOptions]):
    """Read a set from its files and fit it to the problem; `notes` describe its images, labels and step size.

    The note `DOUBTS` has reasons why the files may mean something else.

    Raises:
        UsageError: (on construction) files that are missing, damaged, would run code, or do not fit the dataset, the
            images per class or the options.
    """

    def __init__(self, recipe: Recipe, options: FilesOptions, problem: Problem) -> None:
        super().__init__(recipe, options, problem)
        self._path, data = expand(options.images), problem.data
        self._files = [self._path]
        external = read_set(self._path, options.image_column, options.label_column)
        self._check(external)
        images = fit_images(external, data, problem.ipc)
        labels, labels_are, order_doubts = self._labels(external)
        step_size, step_size_is = self._step_size(external)
        statistics = fit_statistics(options.mean, options.std, data)
        fitted, space, images_are = fit_space(images, external, options.space, problem.preprocessor, *statistics)
        notes = {"images": images_are, "labels": labels_are, "step_size": step_size_is}
        if doubts := [*order_doubts, *self._doubts(external, images, fitted, space, labels)]:
            notes[DOUBTS] = "; ".join(doubts)
        self._set = Synthetic(*(part.to(problem.device) for part in (fitted, labels, step_size)))
        hashes = map(hash_path, self._files)
        notes["sha256"] = ", ".join(f"{path.name} {each}" for path, each in zip(self._files, hashes, strict=True))
        self.selection = options.selection
        if options.selection == "auto":
            self.selection = "test" if external.distilled is None else external.distilled.selection
            assumed = "assumed, as the MTT family's code selects on test images; set selection if it is another"
            notes["selection"] = f"{self.selection}, {assumed if external.distilled is None else 'as the file states'}"
        self.notes = notes

    def start(self) -> Synthetic:
        """Return the set."""
        return self._set

    def _check(self, external: ExternalSet) -> None:
        """Check that options have an effect, and that a set of this project has the preprocessing used here."""
        options, problem = self.options, self.problem
        if external.layout != "parquet":
            idle = {f"{self._path}, which is not parquet; give parquet": ("image_column", "label_column")}
            refuse_idle(options, idle, f"method {self.name!r}: ")
        if external.distilled is None:
            return
        here = {"preprocessing": problem.preprocessor.identity, "class_names": problem.data.class_names}
        there = {"preprocessing": dict(external.distilled.preprocessing), "class_names": external.distilled.class_names}
        if difference := differing_fields(here, there):
            raise UsageError(
                f"{self._path} was made for another dataset or another preprocessing: {difference}; use the dataset "
                "and the options that it was made with"
            )

    def _doubts(self, external: ExternalSet, images: Tensor, fitted: Tensor, space: str, labels: Tensor) -> list[str]:
        """Return all doubts about the set: images in their own space and in that of training, `fitted`, and labels."""
        problem, names = self.problem, self.problem.data.class_names
        train, preprocessor = problem.data.train, problem.preprocessor
        count = min(COMPARED, len(train), max(1, COMPARED_NUMBERS // images[0].numel()))
        real = train.select(torch.linspace(0, len(train) - 1, count).long())
        doubts = copy_doubts(images)
        if external.distilled is None:  # else its file states the space, and its labels are as they were learned
            few = real.images[:: max(1, len(real) // LOOKED_AT)]
            doubts += space_doubts(images, fitted, space, preprocessor, few)
            doubts += label_doubts(labels, problem.ipc, names)
        prepared = preprocessor.to(problem.device).apply(real.images).cpu()
        doubts += mapping_doubts(fitted, labels, prepared, real.labels, names)
        return doubts + sorting_doubts(fitted, labels, prepared, real.labels, len(names))

    def _labels(self, external: ExternalSet) -> tuple[Tensor, str, list[str]]:
        """Return the labels, a description of them, and doubts about their order."""
        options, data, where = self.options, self.problem.data, self._path
        source = self._source(options.labels_from, external.labels, "labels")
        labels, kind, order, doubts = external.labels, options.label_kind, "", list[str]()
        named = labels is not None and external.class_names is not None and external.distilled is None
        if external.distilled is not None:
            kind = "logits" if kind == "auto" else kind
        if source is not None:
            labels, where, named = read_labels(source), source, False
        elif labels is not None and named:
            labels, order, doubts = name_labels(labels, external.class_names or (), data.class_names, external.where)
        if labels is None or not labels.is_floating_point():
            idle = {"labels that are not soft; give soft ones in labels_from": ("label_kind",)}
            refuse_idle(options, idle, f"method {self.name!r}: ")
        fitted, form = fit_labels(labels, kind, self.problem.ipc, data.classes, str(where))
        classes = fitted if fitted.ndim == 1 else fitted.argmax(1)
        if not named and external.distilled is None:
            doubts = number_doubts(classes, data.class_names)
        if source is not None and external.labels is not None:
            doubts += self._disagreement(external, classes, source)
        form = form if labels is None else f"of {where.name}: {form}"
        return fitted, f"{form}{order and f', {order}'}; {data.name} has {numbered(data.class_names)}", doubts

    def _disagreement(self, external: ExternalSet, classes: Tensor, source: Path) -> list[str]:
        """Return a doubt if the labels of `labels_from` are not those that the images' own file or folders give."""
        data, names = self.problem.data, external.class_names
        with contextlib.suppress(UsageError):  # its own labels are not used, so they may be unusable
            own = external.labels
            if own is not None and names is not None:
                own = name_labels(own, names, data.class_names, external.where)[0]
            own = fit_labels(own, "auto", self.problem.ipc, data.classes, external.where)[0]
            other = int(((own if own.ndim == 1 else own.argmax(1)) != classes).sum())
            if other:
                text = f"{source.name} gives {other} of {len(classes)} images another class than {self._path.name} does"
                return [f"{text}; check the order of its labels"]
        return []

    def _step_size(self, external: ExternalSet) -> tuple[Tensor, str]:
        """Return the step size and a description of its origin."""
        source = self._source(self.options.step_size_from, external.step_size, "lr")
        step_size = external.step_size if source is None else read_step_size(source)
        if step_size is None:
            value = self.options.step_size
            return torch.tensor(value), f"{value:g} of the option step_size, as no file holds one"
        where = source or self._path
        step_size = fit_step_size(step_size, str(where))
        return step_size, f"{float(step_size):g} of {where.name}"

    def _source(self, option: str, own: Tensor | None, what: str) -> Path | None:
        """Return the file that the option names, or without `own` one of a usual name beside the images, if any."""
        source = expand(option) if option else beside(self._path, what) if own is None else None
        if source is not None:
            self._files.append(source)
        return source
