"""External sets: reading their files and fitting them to a problem."""

import logging
from pathlib import Path

import torch
from torch import Tensor

from satm.config import expand, refuse_idle
from satm.errors import UsageError
from satm.methods.external import FilesOptions
from satm.methods.parts.method import Method
from satm.methods.parts.problem import Problem, Synthetic
from satm.methods.recipe import Recipe
from satm.results.external import ExternalSet, beside, read_labels, read_set, read_step_size
from satm.results.fitting import doubts, fit_images, fit_labels, fit_space, fit_statistics, fit_step_size, name_labels
from satm.storage.identity import differing_field, hash_file

LOG = logging.getLogger("satm")

COMPARED = 500
"""Number of real images that a set is compared with, to detect a wrong value space."""


class External(Method[FilesOptions]):
    """Read a set from its files and fit it to the problem; `notes` describe its images, labels and step size.

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
        labels, labels_are = self._labels(external)
        step_size, step_size_is = self._step_size(external)
        statistics = fit_statistics(options.mean, options.std, data)
        images, images_are = fit_space(images, external, options.space, problem.preprocessor, *statistics)
        real = data.train.images[torch.linspace(0, len(data.train) - 1, min(COMPARED, len(data.train))).long()]
        for doubt in doubts(images, labels, problem.ipc, problem.preprocessor.apply(real)):
            LOG.warning("the images of %s may have been misinterpreted: %s", self._path, doubt)
        self._set = Synthetic(*(part.to(problem.device) for part in (images, labels, step_size)))
        notes = {"images": images_are, "labels": labels_are, "step_size": step_size_is}
        if hashes := [f"{path.name} {hash_file(path)}" for path in self._files if path.is_file()]:
            notes["sha256"] = ", ".join(hashes)
        self.selection = options.selection
        if options.selection == "auto":
            self.selection = "test" if external.distilled is None else external.distilled.selection
            stated = "taken to be" if external.distilled is None else "as the file states:"
            notes["selection"] = f"{stated} {self.selection}, decided (selection auto)"
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
        if difference := differing_field(here, there):
            raise UsageError(
                f"{self._path} was made for another dataset or another preprocessing: {difference}; use the dataset "
                "and the options that it was made with"
            )

    def _labels(self, external: ExternalSet) -> tuple[Tensor, str]:
        """Return the labels and a description of them."""
        options, data = self.options, self.problem.data
        source = self._source(options.labels_from, external.labels, "labels")
        labels, kind, order = external.labels, options.label_kind, ""
        if source is not None:
            labels = read_labels(source)
        elif external.distilled is not None:
            kind = "logits" if kind == "auto" else kind
        elif labels is not None and external.class_names is not None:
            labels, order = name_labels(labels, external.class_names, data.class_names, external.where)
        where = source or self._path
        if labels is None or not labels.is_floating_point():
            idle = {"labels that are not soft; give soft ones in labels_from": ("label_kind",)}
            refuse_idle(options, idle, f"method {self.name!r}: ")
        fitted, form = fit_labels(labels, kind, self.problem.ipc, data.classes, str(where))
        return fitted, form if labels is None else f"of {where.name}: {form}{order and f', {order}'}"

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
