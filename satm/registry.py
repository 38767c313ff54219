"""Registries that import the modules of a package, so that a new file needs no import elsewhere."""

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import TypeVar

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """Entries by name, in alphabetical order, registered by the modules of a package on first look-up.

    If the workflow reads options from a registry, its modules must not import torch, directly or indirectly, except
    in functions that compute: every cluster job parses the Snakefile. Subpackages of the package are not imported.
    """

    def __init__(self, package: str) -> None:
        self._package = package
        self._entries: dict[str, T] = {}

    def register(self, name: str, entry: T) -> T:
        """Register an entry under a name and return it.

        Raises:
            ValueError: the name is taken.
        """
        if name in self._entries:
            raise ValueError(f"{self._package} registers {name!r} twice; rename one of them")
        self._entries[name] = entry
        return entry

    def named(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers a function or class under a name."""
        return lambda entry: self.register(name, entry)

    def __getitem__(self, name: str) -> T:
        return self._complete[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._complete))

    def __len__(self) -> int:
        return len(self._complete)

    @cached_property
    def _complete(self) -> dict[str, T]:
        for module in pkgutil.iter_modules(importlib.import_module(self._package).__path__):
            if not module.ispkg:
                importlib.import_module(f"{self._package}.{module.name}")
        return self._entries
