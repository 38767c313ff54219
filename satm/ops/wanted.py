"""Which gradients a backward pass needs."""

from typing import Any

import torch


def wanted(ctx: Any, place: int) -> bool:
    """Return whether the running backward pass uses the gradient of an input of a `torch.autograd.Function`.

    `ctx.needs_input_grad` says whether the input has a graph. A pass for some inputs, such as the weights in an inner
    step, does not use all of them: the gradient of the first layer's images would be computed and dropped.

    Args:
        ctx: the context of the function, in its backward method.
        place: position of the input.
    """
    if not ctx.needs_input_grad[place]:
        return False
    node = ctx.next_functions[place][0]
    try:
        return bool(torch._C._will_engine_execute_node(node))
    except RuntimeError:  # a leaf that the pass was asked for, or another kind of pass
        return True
