"""What is written of a made version, and how the version comes back from it, to the bit.

As little as gives the same computation: everything else is the original's, which is read anyway.

    matrices   the matrices that were changed, put over the original's (pruned, clustered)
    parameters every parameter of the model (trained after compression)
    packed     the layers of GPTQ: codes, scales, zero points, groups and biases

A version is restored on the original as `load_model` gives it, so that tied weights stay tied and a
kept original (`auditor.compress.kept`) serves here too.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from auditor.compress.checkpoint import Checkpoint, CompressedModel, Placement, load_model
from auditor.compress.measure import parameter_of, stored_dtype
from auditor.compress.receipt import Receipt
from auditor.errors import first_line
from auditor.memory import ran_out

Named = Iterable[tuple[str, Tensor]]


class UnfitError(Exception):
    """What is stored does not fit the model, or the model cannot be stored in this form."""


class Stored(NamedTuple):
    """What is known of a version that was written.

    Attributes:
        receipt: How it was made.
        settings: What its form wrote beside the tensors.
        tensors: The tensors by name, one at a time.
    """

    receipt: Receipt
    settings: Mapping[str, Any]
    tensors: Named


class Form(NamedTuple):
    """One way of writing a version.

    Attributes:
        tensors: What of a version is written, by name, one at a time. Raises `UnfitError` for a
            model whose weights are not all in memory.
        settings: What else is needed, as JSON can hold it.
        restored: The version again. Raises `UnfitError` for tensors that do not fit the model, and
            what loading a model raises.
    """

    tensors: Callable[[Checkpoint, CompressedModel], Named]
    settings: Callable[[CompressedModel], dict[str, Any]]
    restored: Callable[[Checkpoint, Placement, Stored], CompressedModel]


def form_of(name: str) -> Form:
    """The form that a compressor names as `saved_as`."""
    return FORMS[name]


# -- matrices ------------------------------------------------------------------------------------


def _changed(receipt: Receipt, model: Any) -> list[str]:  # noqa: ANN401
    """Names of the parameters that hold compressed matrices; experts lie in one together."""
    return sorted({parameter_of(item.module, model) for item in receipt.compressed})


def _matrices(checkpoint: Checkpoint, made: CompressedModel) -> Iterator[tuple[str, Tensor]]:
    narrow = stored_dtype(checkpoint.config, made.model.dtype)
    for name in _changed(made.receipt, made.model):
        tensor = _here(name, made.model.get_parameter(name))
        yield name, _narrowed(tensor, narrow)


def _narrowed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """In the checkpoint's own precision where nothing is lost by it: half the bytes, mostly."""
    cast = tensor.to(dtype)
    is_exact = cast.itemsize < tensor.itemsize and torch.equal(cast.to(tensor.dtype), tensor)
    return cast if is_exact else tensor


def _with_matrices(checkpoint: Checkpoint, placement: Placement, stored: Stored) -> CompressedModel:
    model = load_model(checkpoint, placement)
    _put(model, set(_changed(stored.receipt, model)), stored)
    return CompressedModel(model, stored.receipt)


# -- parameters ----------------------------------------------------------------------------------


def _parameters(checkpoint: Checkpoint, made: CompressedModel) -> Iterator[tuple[str, Tensor]]:
    narrow = stored_dtype(checkpoint.config, made.model.dtype)
    for name, parameter in made.model.named_parameters():
        yield name, _narrowed(_here(name, parameter), narrow)


def _with_parameters(
    checkpoint: Checkpoint, placement: Placement, stored: Stored
) -> CompressedModel:
    model = load_model(checkpoint, placement)
    _put(model, {name for name, _ in model.named_parameters()}, stored)
    return CompressedModel(model, stored.receipt)


@torch.no_grad()
def _put(model: Any, wanted: set[str], stored: Stored) -> None:  # noqa: ANN401
    """Put stored tensors over a model's parameters; `UnfitError` unless they are those wanted."""
    left = set(wanted)
    for name, tensor in stored.tensors:
        if name not in left:
            raise UnfitError(f"{name} is nothing that was changed")
        left.remove(name)
        parameter = _here(name, model.get_parameter(name))
        if parameter.shape != tensor.shape:
            raise UnfitError(f"{name}: {tuple(tensor.shape)} for {tuple(parameter.shape)}")
        parameter.copy_(tensor)
    if left:
        raise UnfitError(f"{len(left)} parameters are missing, such as {min(left)}")


def _here(name: str, tensor: Tensor) -> Tensor:
    """A tensor's data; a weight that is elsewhere and comes when it is called for has none."""
    if tensor.is_meta:
        raise UnfitError(f"{name} is not in memory")
    return tensor.detach()


# -- packed --------------------------------------------------------------------------------------


def _packed(checkpoint: Checkpoint, made: CompressedModel) -> Iterator[tuple[str, Tensor]]:
    from auditor.compress.gptq import is_packed

    del checkpoint
    for name, layer in made.model.named_modules():
        if is_packed(layer):
            for key, tensor in layer.state_dict().items():
                yield f"{name}.{key}", _here(f"{name}.{key}", tensor)


def _packed_settings(made: CompressedModel) -> dict[str, Any]:
    config: Any = made.model.config
    found: dict[str, Any] = config.quantization_config.to_dict()
    if found.get("dataset") is not None:  # the calibration texts, as token ids
        raise UnfitError("the library's settings hold calibration texts")
    return {"quantization": found, "reloads": made.dense is None}


@torch.no_grad()
def _with_packed(checkpoint: Checkpoint, placement: Placement, stored: Stored) -> CompressedModel:
    from transformers import GPTQConfig

    from auditor.compress.gptq import SETTINGS, library, unpacked_model, without_compiler
    from auditor.compress.quiet import quietly

    model: Any = load_model(checkpoint, placement)
    try:
        config = GPTQConfig.from_dict(dict(stored.settings["quantization"]))
        with quietly(**SETTINGS):
            quantizer = library().GPTQQuantizer.from_dict(config.to_dict_optimum())
            quantizer.convert_model(model, device_map={"": placement.device})
            _fill(model, stored)
            model = quantizer.post_init_model(model)
            without_compiler(model)
    except Exception as error:  # the library raises whatever another machine's layers provoke
        if ran_out(error) or isinstance(error, UnfitError):
            raise
        raise UnfitError(first_line(error)) from error
    # What the library leaves on a model that it has just quantized, and saving looks for.
    model.is_quantized, model.quantization_method = True, quantizer.quant_method
    model.config.quantization_config = config
    dense = (
        None
        if stored.settings["reloads"]
        else partial(unpacked_model, checkpoint, placement, model)
    )
    return CompressedModel(model, stored.receipt, dense=dense)


def _fill(model: Any, stored: Stored) -> None:  # noqa: ANN401
    """Put stored tensors into new packed layers, which must be the very ones that were stored."""
    from auditor.compress.gptq import is_packed

    layers = {name: layer for name, layer in model.named_modules() if is_packed(layer)}
    kinds = {name: type(layer).__name__ for name, layer in layers.items()}
    if kinds != {item.module: item.kind for item in stored.receipt.compressed}:
        raise UnfitError("the library packs other layers than it did")
    places = {
        f"{name}.{key}": tensor
        for name, layer in layers.items()
        for key, tensor in layer.state_dict().items()
    }
    for name, tensor in stored.tensors:
        place = places.pop(name, None)
        if place is None or (place.shape, place.dtype) != (tensor.shape, tensor.dtype):
            raise UnfitError(f"the library's layers have no place for {name}")
        place.copy_(tensor)
    if places:
        raise UnfitError(f"{len(places)} tensors are missing, such as {min(places)}")


FORMS: dict[str, Form] = {
    "matrices": Form(_matrices, lambda _: {}, _with_matrices),
    "parameters": Form(_parameters, lambda _: {}, _with_parameters),
    "packed": Form(_packed, _packed_settings, _with_packed),
}
