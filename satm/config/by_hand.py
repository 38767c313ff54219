"""Runs by hand: commands with other options than their campaign's, or without a campaign."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from satm.config.layout import Layout, place_of
from satm.storage.files import read_record, write_record

HAND = "results/hand"
"""Folder of the results of runs by hand."""

UNNAMED = "default"
"""Name of the run by hand without a campaign and without a name."""


@dataclass(frozen=True)
class ByHand:
    """A run by hand: results in a folder of their own, made with options that can differ from the campaign's.

    It stores the options of its experts and synthetic sets, for the commands that use these.
    """

    name: str
    """Name of the run, that of its folder."""
    base: str | None
    """Folder of the results that it builds on: those of the campaign, or of the run by hand without a name."""
    current: tuple[str, ...] = ()
    """Place of the experts or the synthetic set that the current command makes."""
    changed: Mapping[str, Any] = field(default_factory=dict)
    """Options of the current command that differ from the campaign's, as JSON values."""
    named: bool = True
    """Whether `--run` names it. If so, commands read its own results first, otherwise only those that it builds on."""
    recalls: bool = True
    """Whether stored options apply; not to the defaults of a command's flags."""

    @property
    def folders(self) -> tuple[str, ...]:
        """Folders of the results that it reads, in the order of preference."""
        return (self.root,) if self.base is None else (self.root, self.base) if self.named else (self.base,)

    @property
    def root(self) -> str:
        """Folder of its results."""
        return f"{HAND}/{self.name}"

    def options(self, rule: str, **names: object) -> Mapping[str, Any]:
        """Return the options, by name, with which experts or a synthetic set differ from the campaign's."""
        if (place := place_of(rule, **names)) == self.current:
            return self.changed
        for root in self.folders if self.recalls else ():
            if (path := Path(Layout(root).by_hand(*place))).is_file():
                options: dict[str, Any] = read_record(path, "options of a run by hand", {"options": dict})["options"]
                return options
        return {}

    def remember(self) -> None:
        """Store the options of the current command."""
        if self.current:
            write_record(Path(Layout(self.root).by_hand(*self.current)), {"options": dict(self.changed)})
