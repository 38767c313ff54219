"""Registries that fill themselves: a file put into a room is found, without a list of names kept by hand."""

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """What the modules of a package register, by name; the modules are imported at the first look-up.

    Modules of packages whose options a workflow reads must not import torch, nor what imports it: the Snakefile is
    read again by every job of a cluster. They import it in the functions that compute.

    Args:
        package: name of the package, such as ``satm.methods``; its modules, not its subpackages, are searched.
    """

    def __init__(self, package: str) -> None:
        self._package = package
        self._entries: dict[str, T] = {}
        self._complete = False

    def register(self, name: str, entry: T) -> T:
        """Enter something under a name and return it.

        Raises:
            ValueError: the name is taken.
        """
        if name in self._entries:
            raise ValueError(f"{self._package} registers {name!r} twice; rename one of them")
        self._entries[name] = entry
        return entry

    def named(self, name: str) -> Callable[[T], T]:
        """Return a decorator that enters a function or class under a name."""
        return lambda entry: self.register(name, entry)

    def __getitem__(self, name: str) -> T:
        """Return what is registered under a name."""
        return self._complete_entries()[name]

    def __iter__(self) -> Iterator[str]:
        """Return the names in alphabetical order."""
        return iter(sorted(self._complete_entries()))

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._complete_entries())

    def _complete_entries(self) -> dict[str, T]:
        if not self._complete:
            for module in pkgutil.iter_modules(importlib.import_module(self._package).__path__):
                if not module.ispkg:
                    importlib.import_module(f"{self._package}.{module.name}")
            self._complete = True
        return self._entries
