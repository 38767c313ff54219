"""Placement of the window of differentiated steps: at random, or moving when the loss stagnates.

N inner steps, of which T are in the window.
"""

import torch
from torch import Tensor

from satm.outer import MethodState

AVERAGE = 0.99
"""Decay of the loss's moving average, by which stagnation is detected. One iteration's loss is noisy, as it depends on
fresh weights and another real batch; this averages over about a hundred iterations."""


def uniform(generator: torch.Generator, most: int) -> int:
    """Return a uniform random integer from 0 to `most`.

    Source: RaT-BPTT Algorithm 1, line 3.
    """
    return int(torch.randint(most + 1, (1,), generator=generator))


def early(generator: torch.Generator, most: int, power: float) -> int:
    """Return an integer from 0 to `most`, small ones more often: `floor((most + 1) * u ** power)`, u uniform in [0, 1).

    A fraction `x ** (1 / power)` of the draws lies in the first fraction x of the range; a power of 1 is uniform.

    Source: RaT-BPTT C.2 says that sampling more on the initial phase helps and gives no distribution; this one is ours.
    """
    place = float(torch.rand(1, generator=generator, dtype=torch.float64)) ** power
    return min(most, int((most + 1) * place))


def moving(state: MethodState, placement: str, most: int, length: int) -> int:
    """Return the first step of a window that moves by its own length T, from the state of `follow`.

    `forward`: it starts at the last place, `most` = N - T, and moves towards the first step; `backward`: it starts at 0
    and moves towards the last step. The last move is shortened so that the window reaches the other end and stays.

    Source: RaT-BPTT C.2, which does not say what happens at the other end.
    """
    travelled = min(most, length * int(state["moves"]) if "moves" in state else 0)
    return most - travelled if placement == "forward" else travelled


def follow(state: MethodState, loss: Tensor, patience: int) -> MethodState:
    """Return the state of a moving window after an iteration with `[]` loss; the window moves when that stagnates.

    The loss stagnates when its exponential moving average (decay `AVERAGE`, reset by each move, as another window has
    another level of loss) has not fallen below its lowest value for `patience` iterations. The state holds the number
    of `moves`, the `average`, its `lowest` value and the iterations `since` that value; it is empty at first.

    Source: RaT-BPTT C.2: the window moves when the loss has been stagnant for 2,000 steps; the definition is ours.
    Differs: its public code uses the test loss of evaluated sets and does not reset the best one after a move.
    """
    moves = state.get("moves", torch.zeros((), dtype=torch.int64, device=loss.device))
    zero = torch.zeros_like(moves)
    if "average" not in state:
        return {"moves": moves, "average": loss, "lowest": loss, "since": zero}
    average = AVERAGE * state["average"] + (1 - AVERAGE) * loss
    if average < state["lowest"]:
        return {"moves": moves, "average": average, "lowest": average, "since": zero}
    if int(state["since"]) + 1 >= patience:
        return {"moves": moves + 1}
    return {"moves": moves, "average": average, "lowest": state["lowest"], "since": state["since"] + 1}
