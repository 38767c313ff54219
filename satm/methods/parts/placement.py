"""Places of the window of differentiated steps, drawn at random or moving by the loss.

N inner steps in all, T of a window.
"""

import torch
from torch import Tensor

from satm.outer import Memory

AVERAGE = 0.99
"""Decay of the average of the loss that says whether a moving window stagnates. The loss of one iteration is noisy: it
depends on fresh weights and another real batch; this averages over about a hundred."""


def uniform(generator: torch.Generator, most: int) -> int:
    """Return a number from 0 to `most`, each as likely.

    Source: RaT-BPTT Algorithm 1, line 3.
    """
    return int(torch.randint(most + 1, (1,), generator=generator))


def early(generator: torch.Generator, most: int, power: float) -> int:
    """Return a number from 0 to `most`, small ones more often: `floor((most + 1) * u ** power)`, u uniform in [0, 1).

    Up to a fraction x of the range lies a fraction `x ** (1 / power)` of the draws; a power of 1 is uniform.

    Source: RaT-BPTT C.2 says that sampling more on the initial phase helps and gives no distribution; this one is ours.
    """
    drawn = float(torch.rand(1, generator=generator, dtype=torch.float64)) ** power
    return min(most, int((most + 1) * drawn))


def moving(memory: Memory, placement: str, most: int, length: int) -> int:
    """Return where a window that moves now and then begins.

    `forward`: it begins at the last place, `most`, and moves towards the first step; `backward`: it begins at 0 and
    moves towards the last step. The last move is shorter if need be, so that the window reaches the other end, where it
    stays.

    Args:
        memory: of `followed`.
        placement: `forward` or `backward`.
        most: last place that it may begin at, N - T.
        length: T, which it moves by.

    Source: RaT-BPTT C.2, which has the forward moving window begin at the end and the backward moving one at the
        beginning; what happens at the other end is not given.
    """
    travelled = min(most, length * int(memory["moves"]) if "moves" in memory else 0)
    return most - travelled if placement == "forward" else travelled


def followed(memory: Memory, loss: Tensor, patience: int) -> Memory:
    """Return what a moving window remembers after an iteration; it moves by one more length when the loss stagnates.

    The loss stagnates when an exponential moving average of it (decay `AVERAGE`, beginning at the first loss in a
    place) has not been below its lowest value there for `patience` iterations. After a move average and lowest value
    begin anew, since the loss right after another window has another level.

    Args:
        memory: `moves` so far, the `average` and its `lowest` value in this place, the iterations `since` then; empty
            at first.
        loss: `[]` of this iteration.
        patience: see above.

    Source: RaT-BPTT C.2: the window moves when the loss has been stagnant for 2,000 steps; the definition is ours.
    Differs: its public code looks at the test loss of evaluated sets and does not forget the best one when it moves.
    """
    moves = memory.get("moves", torch.zeros((), dtype=torch.int64, device=loss.device))
    none = torch.zeros_like(moves)
    if "average" not in memory:
        return {"moves": moves, "average": loss, "lowest": loss, "since": none}
    average = AVERAGE * memory["average"] + (1 - AVERAGE) * loss
    if average < memory["lowest"]:
        return {"moves": moves, "average": average, "lowest": average, "since": none}
    if int(memory["since"]) + 1 >= patience:
        return {"moves": moves + 1}
    return {"moves": moves, "average": average, "lowest": memory["lowest"], "since": memory["since"] + 1}
