"""One model over several devices: how it is loaded so, where it lies, and what needs it held.

`--device-map auto` is transformers' and Accelerate's own dispatch: whole decoder blocks go over the
GPUs, then to memory, then to disk, and hooks move activations to where the next block is. A block
that lies in memory beside a GPU, or on disk, is fetched for every batch, computed with on the main
device and let go ("offloaded"). So scores are those of a model that lies on one device of that
kind: the map decides where the weights wait and not what is computed.
"""

import logging
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.integrations.accelerate import _get_device_map

from auditor.compress.receipt import Held
from auditor.devices import Spread, gib
from auditor.errors import CompleakError, ConfigError, ModelError, VariantError

if TYPE_CHECKING:
    from auditor.compress import VariantSpec
    from auditor.compress.checkpoint import Checkpoint, CompressedModel, Placement

# It says of every model that some of it is offloaded, which the receipt says with figures.
logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)
MORE_ROOM = "give more by --max-memory, take more or larger GPUs, or choose --dtype bfloat16"


def load_placed(
    load: Callable[[dict[str, Any]], tuple[Any, Any]], placement: "Placement", name: str
) -> tuple[Any, Any]:
    """Load a model to where it may lie.

    Args:
        load: Given the arguments of `from_pretrained` that say where, gives back a model and
            whatever goes with it.
        placement: Where.
        name: Of the checkpoint.

    Raises:
        ModelError: Part of it would be read from disk, and no folder was given.
        VariantError: It is quantized, and its library does not let it be offloaded.
        ConfigError: The folder cannot be written.
    """
    spread = placement.spread
    if spread is None:
        return load({"device_map": {"": placement.device}})
    where: dict[str, Any] = {"device_map": "auto", "max_memory": dict(spread.max_memory)}
    folder = None if spread.folder is None else _own_folder(spread.folder)
    try:
        model, more = load({**where, "offload_folder": folder})
        placed = {_name(device) for device in _map_of(model).values()}
        if folder is None and "disk" in placed:
            raise _no_folder(name, f"{gib(held_by_device(model)['disk'].n_bytes)} of its weights")
        if spread.gpus and placed and placed.isdisjoint(spread.gpus):
            raise _no_gpu(name, spread)
    except BaseException as error:  # Ctrl-C too must leave nothing there
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        if (refused := _refused(error, name, spread)) is not None:
            raise refused from error
        raise
    _tie_on_disk(model)
    if folder is not None:
        # Weights that transformers has rewritten lie there for as long as the model lives.
        weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    return model, more


def _tie_on_disk(model: Any) -> None:  # noqa: ANN401
    """Let tied weights be found on disk under all their names.

    Transformers sees to that where it reads a checkpoint's safetensors in place. What it has to
    write anew it knows by one name alone, and the other one's module fails when it is called.
    """
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    for module in model.modules():
        found = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
        index = getattr(getattr(found, "dataset", None), "index", None)
        if index:  # it is one for all hooks of a model
            index.update({to: index[of] for to, of in tied.items() if of in index})
            return


def _own_folder(folder: Path) -> str:
    """A folder of one load: files in it are called by the weights' names, in every model."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.mkdtemp(prefix="compleak-", dir=folder)
    except OSError as error:
        raise ConfigError(
            "--offload-folder must be a folder that can be written",
            seen=f"{folder}: {error.strerror}",
            fix="name another one, on a fast local disk",
        ) from error


def _refused(
    error: BaseException, name: str, spread: Spread, *, label: str | None = None
) -> CompleakError | None:
    """What to say where transformers, or a library of quantized layers, would not offload.

    Args:
        error: What it raised.
        name: Of the checkpoint.
        spread: What it may take of each device.
        label: Of the variant, where there is one.
    """
    said = str(error)
    if not isinstance(error, ValueError | RuntimeError | NotImplementedError):
        return None
    if "offload_folder" in said:
        return _no_folder(name, "some of its weights")
    if "offload" not in said.lower() and "dispatched on the cpu" not in said.lower():
        return None
    return _not_whole(label or f"{name}, quantized,", f"some of it does not ({_taken(spread)})")


def _not_whole(what: str, seen: str) -> VariantError:
    return VariantError(
        f"{what} must fit whole into the devices that compute with it",
        seen=f"{seen}, and its library does not let it be offloaded",
        fix=f"{MORE_ROOM}; or leave it out",
    )


def _taken(spread: Spread) -> str:
    return ", ".join(f"{device}={gib(size)}" for device, size in spread.max_memory)


def _no_folder(name: str, what: str) -> ModelError:
    return ModelError(
        f"{name} must fit into the devices that it may use",
        seen=f"no room for {what}",
        fix="give --offload-folder DIR on a fast local disk: they are then read from disk for "
        f"every batch, which is slow; or {MORE_ROOM}",
    )


def _no_gpu(name: str, spread: Spread) -> ModelError:
    """Without a block on a GPU all is computed by the processor, which nobody has asked for."""
    return ModelError(
        f"{name} must have at least one of its blocks on a GPU that it may use",
        seen=f"none has room for it ({_taken(spread)})",
        fix=f"{MORE_ROOM}; or compute on the processor with --device cpu",
    )


# -- what can be told before it is loaded ---------------------------------------------------------


def foresee(checkpoint: "Checkpoint", placement: "Placement") -> dict[str, Held]:
    """Where the parts of a full-precision model will lie, by the same arithmetic as loading it.

    Returns:
        By device, as `held_by_device`; empty where the model goes to one device, and where the
        checkpoint is quantized, because then the library of its format has a say.
    """
    from auditor.compress.checkpoint import quantization_of
    from auditor.compress.matrices import new_skeleton

    if placement.spread is None or quantization_of(checkpoint.config):
        return {}
    bones = new_skeleton(checkpoint).to(placement.dtype)
    bones.hf_device_map = _get_device_map(bones, "auto", dict(placement.spread.max_memory), None)
    return held_by_device(bones)


def foreseen(checkpoint: "Checkpoint", placement: "Placement") -> str:
    """The same for a reader; empty where the whole model goes to one device."""
    if placement.spread is None:
        return ""
    parts = foresee(checkpoint, placement).items()
    return (
        "\n".join(f"{at}: {gib(part.n_bytes)} in {part.n_modules} modules" for at, part in parts)
        or "as the library of its format has it"
    )


def quantizations(specs: Iterable["VariantSpec"], placement: "Placement") -> dict[str, Any]:
    """By label, how transformers quantizes variants as it loads them over several devices."""
    found = [one for one in ((s, s.over or s) for s in specs) if one[1].id.startswith("bnb-")]
    if placement.spread is None or not found:
        return {}
    from auditor.compress.bitsandbytes import config_of

    kinds = {s.label: (over.id.removeprefix("bnb-"), over.options) for s, over in found}
    return {name: config_of(kind, more, placement) for name, (kind, more) in kinds.items()}


def must_hold(
    checkpoint: "Checkpoint",
    placement: "Placement",
    *,
    changed: Iterable[str] = (),
    quantized: Mapping[str, Any] | None = None,
) -> None:
    """Refuse, before anything is run, what would not fit where it must.

    Args:
        checkpoint: The original.
        placement: Where it and its variants go.
        changed: Labels of variants that change its weights in place.
        quantized: By label, the configuration with which transformers quantizes as it loads.

    Raises:
        ModelError: Part of the model fits nowhere but on disk, and no folder was given; or none of
            it onto a GPU.
        VariantError: A variant changes weights that would not be held in memory, or is quantized
            and would not fit whole.
    """
    spread = placement.spread
    if spread is None:
        return
    held = foresee(checkpoint, placement)
    if "disk" in held and spread.folder is None:
        raise _no_folder(checkpoint.name, f"{gib(held['disk'].n_bytes)} of its weights")
    if spread.gpus and held and set(held).isdisjoint(spread.gpus):
        raise _no_gpu(checkpoint.name, spread)
    away = _away(held, placement)
    if away and (label := next(iter(changed), None)) is not None:
        raise _not_held(label, away)
    for label, config in (quantized or {}).items():
        _must_fit_quantized(checkpoint, placement, label, config)


def _must_fit_quantized(
    checkpoint: "Checkpoint",
    placement: "Placement",
    label: str,
    config: Any,  # noqa: ANN401 - a configuration of any library
) -> None:
    """The same steps as `from_pretrained` takes before it reads a weight."""
    from transformers.quantizers.auto import AutoHfQuantizer

    from auditor.compress.matrices import new_skeleton

    spread = placement.spread
    if spread is None:
        return
    bones = new_skeleton(checkpoint).to(placement.dtype)
    quantizer = AutoHfQuantizer.from_config(config, pre_quantized=False)
    try:
        quantizer.preprocess_model(model=bones, dtype=placement.dtype, device_map="auto")
        _get_device_map(bones, "auto", dict(spread.max_memory), quantizer)
    except ValueError as error:
        # Whatever else is wrong is found, and said, where the variant is made.
        if (refused := _refused(error, checkpoint.name, spread, label=label)) is not None:
            raise refused from error


def must_be_held(model: Any, placement: "Placement", name: str) -> None:  # noqa: ANN401
    """Refuse a model of which some weights are offloaded, for those who would change them.

    Raises:
        VariantError: Says what is offloaded, and what to do.
    """
    if placement.spread is None or not is_offloaded(model):
        return
    away = _away(held_by_device(model), placement)
    if getattr(model.config, "quantization_config", None) is not None:
        raise _not_whole(f"{name}, quantized,", _said_away(away))
    raise _not_held(f"a variant of {name}", away)


def _away(held: Mapping[str, Held], placement: "Placement") -> dict[str, Held]:
    """What of a model is offloaded: what is on disk, and in memory beside a GPU."""
    offloads = ("disk",) if placement.device == "cpu" else ("cpu", "disk")
    return {name: part for name, part in held.items() if name in offloads}


def _said_away(away: Mapping[str, Held]) -> str:
    where = {"cpu": "to memory beside the GPU", "disk": "to disk"}
    parts = [f"{gib(part.n_bytes)} {where[name]}" for name, part in away.items()]
    return f"--device-map auto offloads {' and '.join(parts)}"


def _not_held(label: str, away: Mapping[str, Held]) -> VariantError:
    return VariantError(
        f"{label} changes weights where they are computed with, and all of them must lie there",
        seen=_said_away(away),
        fix=f"{MORE_ROOM}; or make it once on a larger machine (compleak-llm compress) and audit "
        "the folder as checkpoint:PATH; or leave this variant out",
    )


# -- a model that is loaded -----------------------------------------------------------------------


def _map_of(model: Any) -> dict[str, Any]:  # noqa: ANN401
    """The device of each part; empty where the whole lies on one."""
    return dict(getattr(model, "hf_device_map", None) or {})


def _name(device: Any) -> str:  # noqa: ANN401
    return f"cuda:{device}" if isinstance(device, int) else str(device)


def held_by_device(model: Any) -> dict[str, Held]:  # noqa: ANN401
    """How much of a model lies where, by its weights; tied ones are counted once.

    Returns:
        By device in the order of the model; what is offloaded under "cpu" or "disk".
    """
    from auditor.compress.measure import held_tensors

    placed = _map_of(model)
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    counts: dict[str, list[int]] = {}
    for module_name, module in model.named_modules():
        here: dict[str, int] = {}
        for key, tensor in _own_weights(module):
            name = f"{module_name}.{key}" if module_name else key
            if name in tied:
                continue
            where = _placed(name, placed) if tensor.is_meta else str(tensor.device)
            here[where] = here.get(where, 0) + sum(held.nbytes for held in held_tensors(tensor))
        for where, size in here.items():
            total = counts.setdefault(where, [0, 0])
            total[0] += 1
            total[1] += size
    return {name: Held(n_modules=n, n_bytes=size) for name, (n, size) in counts.items()}


def _own_weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, and the buffers that are saved with them, in which some layers pack weights."""
    unsaved = module._non_persistent_buffers_set
    buffers = module.named_buffers(recurse=False)
    there = ((key, buffer) for key, buffer in buffers if not buffer.is_meta and key not in unsaved)
    return chain(module.named_parameters(recurse=False), there)


def _placed(name: str, placed: Mapping[str, Any]) -> str:
    """The device of a parameter by the longest part of its name in a device map."""
    part = name
    while part not in placed and part:
        part = part.rpartition(".")[0]
    return _name(placed.get(part, "meta"))


def is_offloaded(model: Any) -> bool:  # noqa: ANN401
    """Whether some of a model's weights are fetched for every batch."""
    return any(parameter.device.type == "meta" for parameter in model.parameters())


def input_device(model: Any) -> torch.device:  # noqa: ANN401
    """Where a model takes its tokens: where its input embedding computes."""
    # What is no transformers model need not have one.
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else model
    device = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
    if device is None:
        device = next(embedding.parameters(), next(model.parameters())).device
    return torch.device(_name(device))


def said_where(made: "CompressedModel", placement: "Placement") -> "CompressedModel":
    """A version whose receipt says where its weights lie while it is scored."""
    if placement.spread is None:
        return made
    held = held_by_device(made.model)
    return replace(made, receipt=made.receipt.model_copy(update={"devices": held}))


def fetched(model: Any, name: str) -> Tensor:  # noqa: ANN401
    """A parameter's data by its name, fetched where it is offloaded."""
    from transformers.integrations.accelerate import load_offloaded_parameter

    found: Tensor = model.get_parameter(name)
    if found.device.type == "meta":
        found = load_offloaded_parameter(model, name)
    return found.detach()
