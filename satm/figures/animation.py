"""One synthetic set during its distillation: an animation, and its states below each other."""

from collections.abc import Mapping
from functools import partial
from typing import Literal

from pydantic import Field, model_validator

from satm.config import FIGURES, Layout, Resolver, TableOptions
from satm.errors import UsageError
from satm.figures.base import CellsFigure, Drawn, cell_title
from satm.figures.mosaic import TIGHT, Block, clipped_frame, clipping_note, draw_images, write_animation
from satm.methods import resolve
from satm.tables.reader import Reader


@FIGURES.named("animation")
class AnimationFigure(CellsFigure):
    """One synthetic set during its distillation: an animation, and its states below each other.

    The distillation's option `snapshots` is the number of states.
    """

    SHOWS_PIXELS = True

    kind: Literal["animation"] = "animation"
    """A synthetic set during its distillation."""
    per_class: int = Field(5, ge=1)
    """Largest number of images shown per class."""
    classes: int = Field(10, ge=1)
    """Largest number of classes shown."""

    @model_validator(mode="after")
    def _one_set(self) -> "AnimationFigure":
        if len(cells := self.cells()) != 1:
            raise ValueError(f"an animation shows one synthetic set, got {len(cells)}; name one of each")
        return self

    def check(self, resolver: Resolver) -> None:
        """Refuse a set that is stored without its history."""
        (cell,) = self.cells()
        _, options = resolve(resolver.method(cell))
        if getattr(options, "snapshots", 0) < 2:
            raise UsageError(f"the set of {cell.method} is stored without its history; set snapshots above 1 for it")

    def files(self, layout: Layout, tables: Mapping[str, TableOptions]) -> list[str]:
        """Return the synthetic set."""
        return [layout.distilled(cell) for cell in self.cells()]

    def draw(self, reader: Reader) -> Drawn:
        """Draw the states of one set below each other (pdf), and one after another as an animated png."""
        (cell,) = self.cells()
        set_title = f"{cell.method} on {cell_title(cell.dataset, cell.ipc)}"
        title = self.title or f"{set_title}: the set by iteration"
        if (data := reader.attempt(reader.distilled, cell)) is None:
            return Drawn(draw_images([], title, " ".join(reader.notes)), clipped_frame([]), tight=dict(TIGHT))
        if data.history is None:
            raise UsageError(
                f"the synthetic set of {cell.method} on {cell.dataset} was stored without its history; distil it with "
                "snapshots above 1"
            )
        states = [data.at(place) for place in range(len(data.history))]
        blocks = [Block(str(state.iteration), state) for state in states]
        frame = clipped_frame(states)
        note = " ".join([clipping_note(frame), *reader.notes]).strip()
        figure = draw_images(blocks, title, note, self.classes, self.per_class)
        png = partial(write_animation, states, classes=self.classes, per_class=self.per_class)
        return Drawn(figure, frame, png, dict(TIGHT))
