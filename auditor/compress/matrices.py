"""What compression is for: the weight matrices of a model, wherever its family keeps them."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from auditor.compress.checkpoint import Checkpoint
from auditor.compress.kept import KEPT


class Matrix(NamedTuple):
    """One weight matrix, as a view into the model: writing into `weight` changes the model.

    Attributes:
        name: Module name, as `model.layers.0.mlp.up_proj`; of an expert that is held in one tensor
            with the others, the tensor's name and the expert's number: `...experts.down_proj[3]`.
        module: The module that holds it.
        weight: Shape (out, in) where `in_axis` is 1, (in, out) where it is 0 (Conv1D of GPT-2).
        in_axis: The axis of the inputs.
        kind: Class of the module.
    """

    name: str
    module: nn.Module
    weight: Tensor
    in_axis: int
    kind: str


class Shape(NamedTuple):
    """The sides of a weight matrix."""

    inputs: int
    outputs: int


def linear_layers(model: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    """Every Linear and Conv1D with a weight of its own, by name: what libraries compress.

    The output head is none of them, nor is a module that shares the input embedding's weight; a
    weight that several modules share comes once.
    """
    head, seen = model.get_output_embeddings(), {id(embedding_weight(model))}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | Conv1D) or module is head:
            continue
        if id(module.weight) not in seen:
            seen.add(id(module.weight))
            yield name, module


def matrices(model: Any) -> Iterator[Matrix]:  # noqa: ANN401
    """All weight matrices of a model in full precision: its linear layers, then its experts."""
    for name, module in linear_layers(model):
        in_axis = 0 if isinstance(module, Conv1D) else 1
        yield Matrix(name, module, module.weight.data, in_axis, type(module).__name__)
    for name, module in model.named_modules():
        for key, parameter in expert_tensors(module):
            in_axis = 0 if getattr(module, "is_transposed", False) else 1
            for number, weight in enumerate(parameter.data):
                label = f"{name}.{key}[{number}]"
                yield Matrix(label, module, weight, in_axis, type(module).__name__)


def expert_tensors(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of a module that hold the matrices of many experts, shape (experts, ., .)."""
    if type(module).__name__.endswith("Experts"):
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.dim() == 3:
                yield key, parameter


def embedding_weight(model: Any) -> Tensor | None:  # noqa: ANN401
    """The weight of the input embedding, with which an output head may be tied."""
    return getattr(model.get_input_embeddings(), "weight", None)


def skeleton(checkpoint: Checkpoint) -> Any:  # noqa: ANN401
    """The checkpoint's model with shapes and no weights, whatever its weights are packed in."""
    kept = KEPT.get()
    found = kept.bones(checkpoint) if kept is not None else None
    return new_skeleton(checkpoint) if found is None else found


def new_skeleton(checkpoint: Checkpoint) -> Any:  # noqa: ANN401
    """The same, built anew: torch's default dtype is another one meanwhile, in every thread."""
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(checkpoint.config)
    for name in ("quantization_config", "compression_config"):
        if hasattr(config, name):
            delattr(config, name)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            config, trust_remote_code=checkpoint.load_args.get("trust_remote_code", False)
        )


def shapes(checkpoint: Checkpoint) -> Mapping[str, Shape]:
    """The shape of every linear layer, read off the configuration."""
    found = {}
    for name, module in linear_layers(skeleton(checkpoint)):
        sides = tuple(module.weight.shape)
        found[name] = Shape(*(sides if isinstance(module, Conv1D) else sides[::-1]))
    return found


def plain_parameters(model: Any) -> Iterator[nn.Parameter]:  # noqa: ANN401
    """The parameters that no library has packed: embeddings, norms, biases, dense matrices."""
    for parameter in model.parameters():
        data = parameter.data
        is_plain = type(parameter) is nn.Parameter and type(data) is Tensor
        if is_plain and data.is_floating_point():
            yield parameter


def cast_plain(model: Any, dtype: torch.dtype) -> None:  # noqa: ANN401
    """Cast what is not packed, in place: a quantized checkpoint loads it as it is stored."""
    for parameter in plain_parameters(model):
        parameter.data = parameter.data.to(dtype)
