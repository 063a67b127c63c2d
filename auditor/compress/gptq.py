"""GPTQ (Frantar et al. 2023) through gptqmodel and optimum, which transformers' GPTQConfig calls.

Matrices are quantized one after the other, symmetrically, each scale for a group of weights along
the inputs; what is rounded off a column is made up for in the columns that follow, so that the
layer's outputs on the calibration texts change least. Scales and biases are kept in float16.

A folder that `save_pretrained` writes holds packed weights. `AutoModelForCausalLM.from_pretrained`
loads it to the same logits, to the bit on a CPU, wherever gptqmodel and optimum are installed,
because the folder's `config.json` names the kernel (`"backend": "gptq_torch"`). Left to itself the
library takes for 4 bits on a CPU a kernel that rounds activations and scales to bfloat16, whose
logits are 0.5 to 1.5% off (relative, tiny models). On a CPU the library has that kernel's unpacking
compiled at its first call, which takes a C++ compiler; `TORCHDYNAMO_DISABLE=1` does without, with
the same logits, and `without_compiler` does so here. transformers cannot load packed layers of
GPT-2 and its like; these are written as plain models with the weights that the layers compute with.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.metadata import version
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import GPTQConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from auditor.calibration import Calibration
from auditor.compress.checkpoint import Checkpoint, CompressedModel, Placement, load_model
from auditor.compress.conv1d import dense_model
from auditor.compress.matrices import linear_layers, skeleton
from auditor.compress.measure import Ledger, OriginalWeights, write_receipt
from auditor.compress.observe import BATCH_TOKENS, decoder_blocks
from auditor.compress.options import GptqOptions
from auditor.compress.quiet import quietly
from auditor.compress.replay import Call, record
from auditor.errors import VariantError, first_line

# The kernel that computes in the precision of the activations, for every number of bits.
BACKEND = "gptq_torch"
# No compiler is started: neither for packing, nor for kernels of CUDA and Triton.
SETTINGS = {
    "GPTQMODEL_CPU_WORKERS": "1",
    "GPTQMODEL_DISABLE_GPTQ_CUDA": "1",
    "GPTQMODEL_DISABLE_PACK_EXT": "1",
    "GPTQ_TORCH_TRITON_DEQUANT": "0",
}
# Folders that a dependency of gptqmodel makes while it is imported.
CACHES = ("HF_HOME", "HF_HUB_CACHE", "HF_MODULES_CACHE", "TRANSFORMERS_CACHE")
# What holds a packed weight: codes, scales, zero points and the group of each input.
PARTS = ("qweight", "scales", "qzeros", "g_idx")
PROBE_TOKENS = 8  # the packed model is tried on
OWN_CALLS = (
    "optimum calls all blocks as the first one is called, with its mask and its positions: each "
    "block was given its own"
)
PLAIN = (
    "transformers cannot load packed layers of this model: it is written with the weights that "
    "they compute with, unpacked"
)


class Fit(NamedTuple):
    """How the library got on with a matrix.

    Attributes:
        name: Its module.
        damp: The damping that it took.
        unseen: Whether no token went through it, so that it was rounded to the nearest.
    """

    name: str
    damp: float
    unseen: bool


class Quantized(NamedTuple):
    """What the library has done to a model.

    Attributes:
        fits: One for each matrix.
        reloads: Whether transformers can load packed layers of this family.
        repairs: What the library does wrong for this model, and what was done about it.
    """

    fits: list[Fit]
    reloads: bool
    repairs: list[str]


def make(
    checkpoint: Checkpoint,
    options: GptqOptions,
    placement: Placement,
    *,
    variant: str,
    calibration: Calibration,
) -> CompressedModel:
    """Quantize every linear layer of the decoder's blocks; output head, embeddings, norms stay.

    Args:
        checkpoint: The original.
        options: Bits, group size, order of columns, damping.
        placement: Where the variant goes; the library computes there as well.
        variant: Its canonical spelling.
        calibration: The texts, of which the library is given token ids alone.

    Raises:
        VariantError: The model's blocks cannot be found or run one by one, or the library fails.
    """
    model = load_model(checkpoint, placement)
    in_axes = {n: 0 if isinstance(layer, Conv1D) else 1 for n, layer in linear_layers(model)}
    with quietly(**SETTINGS), torch.no_grad():
        done = _quantize(checkpoint, model, options, calibration)
    original = OriginalWeights(checkpoint, model, dtype=placement.dtype)
    ledger, n_bits = Ledger(), 0
    for name, in_axis in in_axes.items():
        layer, before = model.get_submodule(name), original.read(name)
        if not is_packed(layer):
            # The library may have rounded it and not packed it: it must be what the receipt says.
            layer.weight.data.copy_(before)  # type: ignore[operator]
            continue
        weight = unpacked_weight(layer, dtype=placement.dtype).cpu()
        after = weight.T if in_axis == 0 else weight
        ledger.add(name, type(layer).__name__, before=before, after=after)
        n_bits += sum(8 * getattr(layer, part).nbytes for part in PARTS)
    receipt = write_receipt(
        checkpoint,
        model,
        ledger,
        variant=variant,
        library=_library_name(),
        bits_per_weight=n_bits / max(1, ledger.n_compressed),
        repairs=done.repairs,
        notes=[*_notes(done.fits, options), *([] if done.reloads else [PLAIN])],
    )
    dense = partial(unpacked_model, checkpoint, placement, model)
    return CompressedModel(model, receipt, dense=None if done.reloads else dense)


# -- the library ---------------------------------------------------------------------------------


def library() -> Any:  # noqa: ANN401
    """Import optimum's module of GPTQ, and gptqmodel with it, without a trace.

    gptqmodel prints a banner, sets environment variables and the root logger, and makes folders
    for caches where it is told, which here is a folder that is gone afterwards.
    """
    # It reads the place of its cache once, when it is imported; gptqmodel imports it too.
    import_module("datasets")
    with TemporaryDirectory() as folder, quietly(**SETTINGS, **dict.fromkeys(CACHES, folder)):
        return import_module("optimum.gptq.quantizer")


def without_compiler(model: nn.Module) -> None:
    """Let the packed layers of a model unpack their weights without `torch.compile`.

    For models that transformers has loaded as well. What is computed stays the same.
    """
    for layer in model.modules():
        if is_packed(layer):
            # The library puts the compiled function before the class's own.
            layer.__dict__.pop("dequantize_weight", None)


def is_packed(layer: nn.Module) -> bool:
    """Whether a module holds its weight in GPTQ's format."""
    return isinstance(getattr(layer, "qweight", None), Tensor)


@torch.no_grad()
def unpacked_weight(layer: Any, *, dtype: torch.dtype) -> Tensor:  # noqa: ANN401
    """The weight that a packed layer computes with, float32, shape (outputs, inputs).

    It is unpacked in float16, as the scales are stored, and multiplied with in `dtype`.
    """
    weight: Tensor = layer.dequantize_weight().to(dtype).float().T
    return weight


def _library_name() -> str:
    return f"gptqmodel {version('gptqmodel')} with optimum {version('optimum')}"


# -- quantizing ----------------------------------------------------------------------------------


def _quantize(
    checkpoint: Checkpoint, model: PreTrainedModel, options: GptqOptions, calibration: Calibration
) -> Quantized:
    windows = torch.from_numpy(calibration.windows)
    batch_size = max(1, BATCH_TOKENS // windows.shape[1])
    name, blocks = _blocks(model)
    calls = _calls(model, blocks, windows.split(batch_size))
    optimum = library()
    quantizer = optimum.GPTQQuantizer(
        bits=options.bits,
        dataset=[
            {"input_ids": window[None], "attention_mask": torch.ones_like(window)[None]}
            for window in windows
        ],
        group_size=options.group_size,
        damp_percent=options.damp,
        desc_act=options.desc_act,
        # The library's default, for which there must be groups to order.
        act_group_aware=options.group_size != -1 and not options.desc_act,
        model_seqlen=windows.shape[1],
        block_name_to_quantize=name,
        batch_size=batch_size,
        pad_token_id=0,  # asked for, and not needed: windows are of one length
        backend=BACKEND,
    )
    try:
        with _own_calls(blocks, calls), _watched(optimum, model) as fits:
            quantizer.quantize_model(model)
        without_compiler(model)
        # Layers that a model reaches past are found here, and not when it is scored.
        model.base_model(input_ids=windows[:1, :PROBE_TOKENS].to(model.device), use_cache=False)
    except (AttributeError, LookupError) as error:  # about names that it takes every model to have
        raise VariantError(
            "gptq must know how this model is built",
            seen=f"{_library_name()} raised {type(error).__name__}: {first_line(error)}",
            fix="leave this variant out, or take hqq or prune-sparsegpt",
        ) from error
    # Neither the calibration's token ids nor a kernel that is chosen anew may be saved.
    settings = quantizer.to_dict()
    settings |= {"dataset": None, "backend": BACKEND, "block_name_to_quantize": name}
    model.config.quantization_config = GPTQConfig.from_dict(settings)
    is_special = any(not _is_like_first(call, batch[0]) for batch in calls for call in batch)
    repairs = [OWN_CALLS] if is_special else []
    return Quantized(fits, _reloads(checkpoint, optimum, settings), repairs)


def _blocks(model: PreTrainedModel) -> tuple[str, list[nn.Module]]:
    """The list of the decoder's blocks: its name in the model, and the blocks.

    Raises:
        VariantError: There is none.
    """
    found = decoder_blocks(model, dict(linear_layers(model)))
    if found is None:
        raise VariantError(
            "gptq needs a decoder whose blocks stand in a list, with linear layers in them",
            seen=f"none in {type(model).__name__}",
            fix="leave this variant out, or take hqq",
        )
    names = {id(module): name for name, module in model.named_modules()}
    return names[id(found.modules[0])].rpartition(".")[0], found.modules


def _calls(
    model: PreTrainedModel, blocks: Sequence[nn.Module], batches: Sequence[Tensor]
) -> list[list[Call]]:
    """How the model calls each block beside its hidden states: `calls[batch][block]`.

    Raises:
        VariantError: The blocks are no chain, so that the library would run them on other inputs
            than they have.
    """
    replay = record(model, blocks, batches)
    if replay is None:
        raise VariantError(
            "gptq needs a decoder whose blocks run one after the other",
            seen=f"{type(model).__name__} hands more from block to block than hidden states",
            fix="leave this variant out, or take hqq",
        )
    return replay.calls


def _is_like_first(call: Call, first: Call) -> bool:
    """Whether the library would call a block rightly: by name alone, and as the first block."""
    return (
        all(argument is None for argument in call.args)
        and call.kwargs.keys() == first.kwargs.keys()
        and all(value is first.kwargs[key] for key, value in call.kwargs.items())
    )


@contextmanager
def _own_calls(blocks: Sequence[nn.Module], calls: Sequence[Sequence[Call]]) -> Iterator[None]:
    """Call every block as the model calls it, whatever the library calls it with.

    It keeps what the first block is called with by name, for all blocks, and drops what is handed
    over by place. So blocks with a sliding window and blocks without (Gemma 3) would be calibrated
    on each other's masks and positions. It always runs a block over all batches in order.
    """

    def hook_of(number: int) -> Any:  # noqa: ANN401
        n_seen = 0

        def hook(_block: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:  # noqa: ANN401
            nonlocal n_seen
            own = calls[n_seen % len(calls)][number]
            n_seen += 1
            hidden = args[0] if args else kwargs["hidden_states"]
            return (hidden, *own.args), own.kwargs

        return hook

    handles = [
        block.register_forward_pre_hook(hook_of(number), with_kwargs=True)
        for number, block in enumerate(blocks)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _watched(optimum: Any, model: nn.Module) -> Iterator[list[Fit]]:  # noqa: ANN401
    """Note how the library gets on, which it says in its log only; keep it where the model is.

    It moves blocks to the first GPU that it sees, also where the model is on a CPU or on another
    GPU. And where it cannot invert a Hessian, it goes on and gives groups each other's scales.

    Raises:
        VariantError: It cannot.
    """
    fits: list[Fit] = []
    names = {id(module): name for name, module in model.named_modules()}

    class Watched(optimum.GPTQ):  # type: ignore[misc]
        def fasterquant(self, **settings: Any) -> Any:  # noqa: ANN401
            name = names[id(self.module)]
            found = super().fasterquant(**settings)
            *_, loss, damp = found
            if self.nsamples and (not isinstance(loss, float) or self.qcfg.mock_quantization):
                raise VariantError(
                    "what the layers of a model see must be finite to quantize by it",
                    seen=f"the inputs of {name} on the calibration texts have no Hessian that can "
                    "be inverted",
                    fix="try --dtype float32; if it stays, the model is broken",
                )
            fits.append(Fit(name, damp, unseen=not self.nsamples))
            return found

    there = optimum.GPTQ, optimum.has_device_more_than_cpu
    optimum.GPTQ, optimum.has_device_more_than_cpu = Watched, lambda: False
    try:
        yield fits
    finally:
        optimum.GPTQ, optimum.has_device_more_than_cpu = there


def _notes(fits: Sequence[Fit], options: GptqOptions) -> list[str]:
    """What the reader of the receipt must know of matrices that gave trouble."""
    notes = []
    if unseen := [fit.name for fit in fits if fit.unseen]:
        notes.append(
            "rounded to the nearest, because no token of the calibration texts was seen to go "
            f"through them: {', '.join(unseen)}"
        )
    if raised := [fit.damp for fit in fits if fit.damp > options.damp]:
        notes.append(
            f"damp={options.damp} was too little to invert {len(raised)} of {len(fits)} Hessians: "
            f"the library raised it there, to {max(raised):.4g} at most"
        )
    return notes


# -- saving --------------------------------------------------------------------------------------


def _reloads(checkpoint: Checkpoint, optimum: Any, settings: dict[str, Any]) -> bool:  # noqa: ANN401
    """Whether transformers can load packed layers of this family, tried on a model without weights.

    It initialises modules before it fills them, and some families (GPT-2, GPTBigCode) do so with
    the weights of layers that they name, which packed layers do not have.
    """
    bones = skeleton(checkpoint)
    with torch.device("meta"):
        optimum.GPTQQuantizer.from_dict(settings).convert_model(bones, device_map={"": "cpu"})
    try:
        for module in bones.modules():
            bones._init_weights(module)
    except (AttributeError, TypeError):
        return False
    return True


@torch.no_grad()
def unpacked_model(
    checkpoint: Checkpoint, placement: Placement, model: PreTrainedModel
) -> PreTrainedModel:
    """The original's model with the weights and biases that the packed layers compute with."""
    layers: dict[str, Any] = {n: layer for n, layer in model.named_modules() if is_packed(layer)}
    weights = (
        (name, unpacked_weight(layer, dtype=placement.dtype).to(placement.dtype))
        for name, layer in layers.items()
    )
    dense = dense_model(checkpoint, placement, weights)
    for name, layer in layers.items():
        if layer.bias is not None:  # rounded to float16
            dense.get_submodule(name).bias.data.copy_(layer.bias)  # type: ignore[operator]
    return dense
