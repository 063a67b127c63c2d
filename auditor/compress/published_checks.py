"""Is a published checkpoint a version of this original? Vocabulary, shapes, weights."""

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from auditor.compress.checkpoint import Checkpoint
from auditor.compress.dispatch import fetched
from auditor.compress.formats import Format
from auditor.compress.matrices import Matrix, embedding_weight, matrices, skeleton
from auditor.compress.measure import CHUNK, Ledger, OriginalWeights
from auditor.compress.published_load import Loaded
from auditor.compress.published_plain import findings
from auditor.errors import ModelError, VariantError, first_line

# Correlation with the original's weights, of all together and of every matrix, below which they are
# another model's. Measured on two models of 5M parameters: 2 bits 0.88, nine in ten zeroed by
# magnitude 0.67 and at random 0.32, columns scaled as by AWQ 0.6 to 0.9 and, beyond what is
# published, 0.29, of the worst matrix 0.17; another fine-tune of the same base 0.90. Random
# weights, or the same rows in another order, at most 0.02; queries and keys whose rows are in
# llama.cpp's order 2 over the width of a head.
LEAST_CORRELATION = 0.15
# Matrices with fewer weights than this correlate by chance.
FEW = 1024
FIX = "give a version of this model, or the model that it is a version of as --model"
# Formats that transformers knows for Linear layers alone.
LINEAR_ONLY = ("compressed-tensors", "torchao")
# Settings that change what a model computes from the same weights.
COMPUTING = (
    "activation_function",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "head_dim",
    "hidden_act",
    "hidden_activation",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "logit_scale",
    "logits_scaling",
    "max_position_embeddings",
    "n_positions",
    "num_attention_heads",
    "num_experts_per_tok",
    "num_key_value_heads",
    "query_pre_attn_scalar",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "use_parallel_residual",
)


def check_vocabulary(name: str, *, original: Mapping[str, int], found: Mapping[str, int]) -> None:
    """Refuse a version whose tokens are not the original's; it may have more.

    Args:
        name: What errors call it.
        original: Ids of the original's tokens.
        found: Ids of the version's tokens.

    Raises:
        ModelError: Says how many tokens differ and shows one.
    """
    different = [token for token, number in original.items() if found.get(token) != number]
    if not different:
        return
    first = min(different, key=lambda token: original[token])
    is_there = f"has the id {found[first]}" if first in found else "is not there"
    raise ModelError(
        "a published version must have the vocabulary of its original",
        seen=f"{len(different):,} of {len(original):,} tokens differ in {name}: {first!r} "
        f"{is_there}, in the original it has the id {original[first]}",
        fix=FIX,
    )


def check_shapes(published: Checkpoint, original: Checkpoint, *, n_tokens: int) -> None:
    """Refuse a version whose tensors have other shapes; its vocabulary may be padded.

    Args:
        published: The version.
        original: The original.
        n_tokens: The original's token ids are smaller than this.

    Raises:
        ModelError: Says which tensor is another.
    """
    wanted = skeleton(original)
    try:
        bones = skeleton(published)
    except Exception as error:  # whatever a configuration provokes in the model that it builds
        raise ModelError(
            f"{published.name} must have a configuration that a model can be built from",
            seen=first_line(error),
            fix="copy or download it again",
        ) from error
    rows = {id(embedding_weight(wanted)), id(getattr(wanted.get_output_embeddings(), "weight", 0))}
    there = {key: tuple(p.shape) for key, p in bones.named_parameters(remove_duplicate=False)}
    for key, parameter in wanted.named_parameters(remove_duplicate=False):
        shape, found = tuple(parameter.shape), there.get(key)
        if found == shape or parameter.dim() < 2:
            continue
        if found is not None and id(parameter) in rows and found[1:] == shape[1:]:
            if found[0] >= n_tokens:
                continue
            shape = (n_tokens, *shape[1:])
        raise ModelError(
            f"{published.name} must be a version of {original.name}",
            seen=f"{key} is {found or 'not there'}, of the original {shape}",
            fix=FIX,
        )


def check_layers(form: Format, original: Checkpoint) -> None:
    """Refuse formats whose libraries pass the layers of this family by.

    Raises:
        VariantError: Names them.
    """
    if form.kind not in LINEAR_ONLY:
        return
    if any(isinstance(module, Conv1D) for module in skeleton(original).modules()):
        raise VariantError(
            f"{form.kind} checkpoints must be of a model with Linear layers",
            seen=f"transformers builds {original.config.model_type} with Conv1D layers, whose "
            "packed weights it would leave out",
            fix="leave this variant out, or give it as GPTQ, bitsandbytes or GGUF",
        )


def check_stored(published: Checkpoint, files: Iterable[Path]) -> None:
    """Refuse plain weights whose shapes are not those of the model that they are for.

    Raises:
        ModelError: Says which tensor is another.
    """
    bones = skeleton(published)
    wanted = dict(bones.named_parameters(remove_duplicate=False))
    for file in (file for file in files if file.suffix == ".safetensors"):
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - the handle is no mapping
                parameter = wanted.get(key, wanted.get(f"{bones.base_model_prefix}.{key}"))
                shape = tuple(opened.get_slice(key).get_shape())
                if parameter is not None and shape != tuple(parameter.shape):
                    raise ModelError(
                        f"{published.name} must hold weights that fit its config.json",
                        seen=f"{key} is {shape}, and {tuple(parameter.shape)} in the model",
                        fix="save it as transformers does (GPT-2's layers are Conv1D, whose "
                        "weights are the other way round than those of Linear)",
                    )


def other_settings(published: Checkpoint, original: Checkpoint) -> list[str]:
    """What the receipt must say of settings that make it compute something else."""
    a, b = published.config.get_text_config(), original.config.get_text_config()
    found = [
        f"{key} is {getattr(a, key, None)}, of the original {getattr(b, key, None)}"
        for key in COMPUTING
        if getattr(a, key, None) != getattr(b, key, None)
    ]
    return [f"its config.json differs: {'; '.join(found)}"] if found else []


class Comparison(NamedTuple):
    """A version beside its original.

    Attributes:
        ledger: What was compressed.
        matrices: Names of all weight matrices, compressed or not.
        notes: What the receipt must say beside that.
    """

    ledger: Ledger
    matrices: frozenset[str]
    notes: list[str]


class Part(NamedTuple):
    """A piece of both models that is compared as one.

    Attributes:
        name: As in a receipt.
        kind: Class of the module in the version.
        parameter: The parameter that it lies in, by the original's name.
        before: The original's.
        after: What the version computes with, of the same shape.
        is_matrix: Whether it is one of the weight matrices that compression is for.
        in_axis: The axis of a matrix's inputs.
    """

    name: str
    kind: str
    parameter: str
    before: Tensor
    after: Tensor
    is_matrix: bool
    in_axis: int = 1


def compare(
    original: Checkpoint, loaded: Loaded, form: Format, *, dtype: torch.dtype
) -> Comparison:
    """Count what a version changed, and check that it is one.

    Args:
        original: The original.
        loaded: The version.
        form: What it was recognised as.
        dtype: Of the audit.

    Raises:
        ModelError: Its weights have too little in common with the original's.
    """
    ledger, left = Ledger(), dict[str, float]()
    foreign: list[str] = []
    is_plain = form.kind == "plain"
    names: set[str] = set()
    for part in parts(original, loaded, dtype=dtype):
        names |= {part.name} if part.is_matrix else set()
        changed = not torch.equal(part.before, part.after)
        # Experts go by other names in the files; a plain folder does not say what it compressed.
        packed = part.parameter in loaded.packed or (changed and "[" in part.name)
        if packed or (is_plain and (part.is_matrix or changed)):
            found = findings(part.after, part.in_axis) if is_plain and part.is_matrix else {}
            ledger.add(part.name, part.kind, before=part.before, after=part.after, **found)
        if part.is_matrix and part.before.numel() >= FEW and correlation(part) < LEAST_CORRELATION:
            foreign.append(part.name)
        if changed and not packed and not (is_plain and part.is_matrix):
            left |= {part.name: apart} if (apart := beyond_cast(part)) else {}
    _check_same_model(original, ledger, foreign)
    return Comparison(ledger, frozenset(names), _notes_on(left))


def parts(original: Checkpoint, loaded: Loaded, *, dtype: torch.dtype) -> Iterator[Part]:
    """Every parameter of the original beside the version's, experts one by one, matrices first."""
    model: Any = loaded.model
    bones = skeleton(original)
    weights = OriginalWeights(original, bones, dtype=dtype)
    found = list(matrices(bones))
    done: set[str] = set()
    whole: tuple[str, Tensor, Tensor] = ("", torch.empty(0), torch.empty(0))
    for matrix in found:
        name, _, index = matrix.name.partition("[")
        parameter = name if index else f"{name}.weight"
        done.add(parameter)
        if whole[0] != parameter:
            whole = (parameter, weights.parameter(parameter), _after(loaded, matrix, parameter))
        before, after = whole[1], whole[2]
        if index:
            number = int(index.rstrip("]"))
            before, after = before[number], after[number]
        module = name.rpartition(".")[0] if index else name
        kind = loaded.kinds.get(module, type(model.get_submodule(module)).__name__)
        yield Part(matrix.name, kind, parameter, before, after, True, matrix.in_axis)
    for parameter, shape in bones.named_parameters():
        if parameter in done:
            continue
        before = weights.parameter(parameter)
        after = _read(loaded, parameter)
        # A padded vocabulary is compared as far as both go.
        rows = min(len(before), len(after)) if shape.dim() else 0
        name = parameter.removesuffix(".weight")
        module = parameter.rpartition(".")[0]
        kind = loaded.kinds.get(module, type(model.get_submodule(module)).__name__)
        yield Part(name, kind, parameter, before[:rows], after[:rows], False)


def _after(loaded: Loaded, matrix: Matrix, parameter: str) -> Tensor:
    """What the version computes with in the place of a matrix, in the original's orientation."""
    after = _read(loaded, parameter)
    shape = matrix.module.get_parameter(parameter.rpartition(".")[2]).shape
    if tuple(after.shape) != tuple(shape):
        raise ModelError(
            "a published version must hold the matrices of its original",
            seen=f"{matrix.name} is {tuple(after.shape)}, of the original {tuple(shape)}",
            fix=FIX,
        )
    return after


def _read(loaded: Loaded, parameter: str) -> Tensor:
    module, _, key = parameter.rpartition(".")
    model: Any = loaded.model
    if key == "weight" and (found := loaded.read(module)) is not None:
        # Libraries hold a Conv1D of GPT-2 as a Linear, the other way round.
        source = getattr(model.get_submodule(module), "source_cls", nn.Linear)
        return (found if issubclass(source, nn.Linear) else found.T).cpu()
    return fetched(model, parameter).cpu()


def correlation(part: Part) -> float:
    """Of the part with the original's, about zero; 1 where it is all zeros, which is pruning."""
    a, b = part.before.float().flatten(), part.after.float().flatten()
    norms = float(torch.linalg.vector_norm(a)) * float(torch.linalg.vector_norm(b))
    return float(a @ b) / norms if norms else 1.0


def beyond_cast(part: Part) -> float:
    """Relative difference from the original's, or 0 where a cast to 16 bits or back explains it."""
    error = norm = 0.0
    explained = True
    old, new = part.before.reshape(-1), part.after.reshape(-1)
    for start in range(0, old.numel(), CHUNK):
        a = old[start : start + CHUNK].float()
        apart = (new[start : start + CHUNK].float() - a).abs()
        # Half an ulp of bfloat16 twice over, and what adding 1 and taking it off costs a norm.
        limit = a.abs() * torch.finfo(torch.bfloat16).eps + 1e-6
        explained = explained and bool(apart.le(limit).all())
        error += float(torch.linalg.vector_norm(apart)) ** 2
        norm += float(torch.linalg.vector_norm(a)) ** 2
    if explained:
        return 0.0
    return math.sqrt(error / norm) if norm else math.inf


def _check_same_model(original: Checkpoint, ledger: Ledger, foreign: list[str]) -> None:
    found = ledger.correlation
    if ledger.compressed and not found >= LEAST_CORRELATION:
        raise ModelError(
            f"a published version must be a version of {original.name}; this is another model",
            seen=f"its weights correlate with the original's by {found:.3f}; versions do by "
            f"{LEAST_CORRELATION} and more",
            fix=FIX,
        )
    if foreign:
        raise ModelError(
            f"a published version must be a version of {original.name}",
            seen=f"{len(foreign)} of its matrices have nothing in common with the original's, "
            f"such as {foreign[0]}",
            fix="it is another model, or was saved by a tool that turned or rotated them; " + FIX,
        )


def _notes_on(left: Mapping[str, float]) -> list[str]:
    """What differs although the format leaves it alone: a sign of another fine-tune."""
    if not left:
        return []
    worst = max(left, key=lambda name: left[name])
    told = f"{len(left)} parts that were not compressed differ from the original's by more than a "
    told += f"cast explains, {worst} most (by {left[worst]:.2g} of its norm): "
    if all("norm" in name or "ln_" in name for name in left):
        return [told + "methods that scale by activations (AWQ, SmoothQuant) change norms so"]
    return [told + "it may be a version of another fine-tune of the same base"]
