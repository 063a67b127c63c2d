"""Which part of a model is its head, and whether the head is what it seems.

Token statistics want final hidden states and the output projection, never the whole logits. That
is only right where logits = projection(hidden states), up to a known scale or soft cap. It is not
taken from a list of architectures but tried out: for one pass the projection is made to answer
with logits of our choice, of every size and sign, and what the model makes of them shows all that
it does after its head. A model whose answer is not explained is scored from its own logits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate.utils import align_module_device, has_offloaded_params
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from auditor.scoring.statistics import Head


@dataclass(frozen=True)
class Trunk:
    """A model, taken apart where that is known to be exact.

    Attributes:
        model: The whole causal language model.
        body: What gives the final hidden states, or None: then only `model` gives logits.
        head: The output projection that belongs to `body`, or None; see `loaded_head`.
        projection: The module that `head` stands for, or None.
        device: Where it computes, which in a model over several devices may be another one than
            where its inputs go, and where `body` leaves its outputs.
    """

    model: nn.Module
    body: nn.Module | None = None
    head: Head | None = None
    projection: nn.Module | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @contextmanager
    def loaded_head(self) -> Iterator[Head]:
        """The head with its weights on its device, where they stay, or are fetched for the block.

        Raises:
            ValueError: The model could not be taken apart.
        """
        if self.head is None or self.projection is None:
            raise ValueError("this model is scored from its own logits")
        if self.head.module is not None or not has_offloaded_params(self.projection):
            yield self.head
            return
        with align_module_device(self.projection):
            there: Any = self.projection
            yield replace(self.head, weight=there.weight, bias=getattr(there, "bias", None))


@torch.inference_mode()
def take_apart(model: Any, device: torch.device) -> Trunk:  # noqa: ANN401 - any causal LM
    """Split a causal language model into body and head, if a probe shows that this is exact.

    Args:
        model: A transformers causal language model in eval mode.
        device: Where its inputs go.
    """
    projection = model.get_output_embeddings()
    body = model.base_model
    if projection is None or body is model or not isinstance(projection, nn.Module):
        return Trunk(model)
    ids = torch.arange(1, 5, device=device)[None]
    seen: dict[str, Tensor] = {}

    def answer(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen["hidden"] = inputs[0]
        ramp = torch.linspace(-80, 80, output.shape[-1], device=output.device)
        seen["forced"] = ramp.to(output.dtype).expand_as(output).contiguous()
        return seen["forced"].clone()

    handle = projection.register_forward_hook(answer)
    try:
        logits = model(input_ids=ids, use_cache=False).logits
        hidden = body(input_ids=ids, use_cache=False)[0]
    finally:
        handle.remove()
    if "hidden" not in seen or not _close(seen["hidden"], hidden):
        return Trunk(model)
    for candidate in _candidates(model.config.get_text_config(), projection):
        if _close(candidate.finish(seen["forced"]), logits):
            return Trunk(model, body, candidate, projection, seen["forced"].device)
    return Trunk(model)


def _close(ours: Tensor, theirs: Tensor) -> bool:
    # Only rounding may differ: a kernel that splits its sums otherwise from call to call.
    theirs = theirs.to(ours.device)
    tolerance = 1e-5 if ours.dtype == torch.float32 else 2e-2
    return ours.shape == theirs.shape and torch.allclose(
        ours.float(), theirs.float(), rtol=tolerance, atol=tolerance
    )


def _candidates(config: Any, projection: nn.Module) -> list[Head]:  # noqa: ANN401
    """Heads that models are known to have, the plain one first."""
    weight = getattr(projection, "weight", None)
    if not isinstance(weight, Tensor):
        return []
    # A subclass of Linear may pack its weights or add to the product: its own forward is called.
    packed = is_traceable_wrapper_subclass(weight)
    plain = type(projection) is nn.Linear and not packed and weight.is_floating_point()
    module = None if plain else projection
    vocabulary = int(getattr(projection, "out_features", 0) or config.vocab_size)
    if not plain:
        weight = torch.empty(vocabulary, 0)
    bias = getattr(projection, "bias", None) if plain else None
    scales = [1.0]
    for name, invert in (("logit_scale", False), ("logits_scaling", True)):
        value = getattr(config, name, None)
        if isinstance(value, int | float) and value:
            scales.append(1.0 / value if invert else float(value))
    cap = getattr(config, "final_logit_softcapping", None)
    caps = [None, float(cap)] if cap else [None]
    return [
        Head(weight, bias, scale=scale, softcap=softcap, module=module)
        for scale in scales
        for softcap in caps
    ]
