"""GPT-2's Conv1D as the Linear that it is, and back, so that every library finds its layers.

A Conv1D of transformers holds its weight as (inputs, outputs) and computes `x W + b`, which is what
a Linear computes with `W` transposed. Most libraries look for Linear alone and pass GPT-2 by
without a word.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from auditor.compress.checkpoint import Checkpoint, Placement, load_model


@torch.no_grad()
def linear_from_conv1d(model: nn.Module) -> list[str]:
    """Put a Linear with the same weights in the place of every Conv1D of a model.

    One layer after the other, so that no more than one weight is held twice.

    Returns:
        The names of the modules that were changed.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, Conv1D)]
    for name in names:
        conv: Any = model.get_submodule(name)
        with torch.device("meta"):
            linear = nn.Linear(*conv.weight.shape)
        linear.weight = nn.Parameter(conv.weight.data.T.contiguous(), requires_grad=False)
        linear.bias = conv.bias
        model.set_submodule(name, linear.train(conv.training))
    return names


@torch.no_grad()
def dense_model(
    checkpoint: Checkpoint,
    placement: Placement,
    weights: Iterator[tuple[str, Tensor]],
) -> PreTrainedModel:
    """The original with other weights in its matrices: what any tool can load.

    Args:
        checkpoint: The original.
        placement: Where to, and in which precision.
        weights: Names of modules and their weights of shape (outputs, inputs), one at a time.
            Where a weight is of a wider type than `placement.dtype` and would be rounded in it,
            the whole model is widened.
    """
    model: Any = load_model(checkpoint, placement)
    dtype = placement.dtype
    for name, weight in weights:
        if not torch.equal(weight.to(dtype).to(weight.dtype), weight):
            dtype = weight.dtype
            model.to(dtype)
        module: Any = model.get_submodule(name)
        turned = weight.T if isinstance(module, Conv1D) else weight
        module.weight.data.copy_(turned)
    dense: PreTrainedModel = model
    return dense
