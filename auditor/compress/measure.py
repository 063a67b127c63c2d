"""Counting what a variant really changed, on the model that will be scored."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers.pytorch_utils import Conv1D

from auditor.compress.checkpoint import Checkpoint, Placement, load_model
from auditor.compress.dispatch import is_offloaded
from auditor.compress.matrices import embedding_weight, expert_tensors, skeleton
from auditor.compress.receipt import LEFT, Compressed, Receipt, Skipped
from auditor.compress.weights import weight_files

# Entries of a matrix that are compared at once, so that no second copy of a large one is made.
CHUNK = 2**22


class OriginalWeights:
    """The original's matrices, read one at a time, so that the original is never held beside."""

    def __init__(self, checkpoint: Checkpoint, model: Any, *, dtype: torch.dtype) -> None:  # noqa: ANN401
        """Find the tensors in the checkpoint's files.

        Args:
            checkpoint: The original.
            model: The variant, for the prefix that base models are saved without.
            dtype: What they are cast to, so that the cast alone does not count as a change.
        """
        self._checkpoint, self._dtype = checkpoint, dtype
        self._prefix = f"{model.base_model_prefix}."
        self._files: dict[str, Any] = {}
        self._model: Any = None
        files = weight_files(checkpoint.name, checkpoint.weights_path, allow_pickle=True)
        for file in (file for file in files if file.suffix == ".safetensors"):
            with safe_open(file, framework="pt") as opened:
                self._files.update(dict.fromkeys(opened.keys(), file))

    def read(self, module: str) -> Tensor:
        """The weight of a module by its name in the model, on the CPU."""
        return self.parameter(f"{module}.weight")

    def parameter(self, name: str) -> Tensor:
        """A parameter by its name in the model, on the CPU."""
        for key in (name, name.removeprefix(self._prefix)):
            if key in self._files:
                with safe_open(self._files[key], framework="pt") as opened:
                    found: Tensor = opened.get_tensor(key)
                return found.to(self._dtype)
        # Pickles, and old checkpoints with other names, which only transformers can tell.
        if self._model is None:
            self._model = load_model(self._checkpoint, Placement("cpu", self._dtype))
        loaded: Tensor = self._model.get_parameter(name)
        return loaded.detach()


@dataclass
class Ledger:
    """What was compressed so far, with the sums that the whole needs."""

    compressed: list[Compressed] = field(default_factory=list)
    squared_error: float = 0.0
    squared_norm: float = 0.0
    squared_norm_after: float = 0.0
    n_zeros: int = 0

    def add(
        self,
        name: str,
        kind: str,
        *,
        before: Tensor,
        after: Tensor,
        n_values: int | None = None,
        pattern: str | None = None,
    ) -> None:
        """Count one matrix.

        Args:
            name: Name of the matrix, as in `Matrix`.
            kind: Class of the module in the variant.
            before: The original's weight, cast to the variant's precision.
            after: What the variant computes with, of the same shape.
            n_values: Distinct values, counted by the caller, where they are the point.
            pattern: N:M, where the caller has found it in every group.

        Raises:
            ValueError: The shapes differ, so that something else would be counted.
        """
        if before.shape != after.shape:
            raise ValueError(f"{name}: {tuple(before.shape)} against {tuple(after.shape)}")
        changed = zeros = 0
        error = old_norm = new_norm = 0.0
        old, new = before.reshape(-1), after.reshape(-1)
        for start in range(0, old.numel(), CHUNK):
            a = old[start : start + CHUNK].float()
            b = new[start : start + CHUNK].float()
            changed += int((a != b).sum())
            zeros += len(b) - int(b.count_nonzero())
            # Norms of a chunk in float32 are right to seven digits; their squares add up in double.
            error += float(torch.linalg.vector_norm(a - b)) ** 2
            old_norm += float(torch.linalg.vector_norm(a)) ** 2
            new_norm += float(torch.linalg.vector_norm(b)) ** 2
        self.squared_error += error
        self.squared_norm += old_norm
        self.squared_norm_after += new_norm
        self.n_zeros += zeros
        self.compressed.append(
            Compressed(
                module=name,
                kind=kind,
                n_parameters=before.numel(),
                n_changed=changed,
                sparsity=zeros / before.numel(),
                relative_error=relative(error, old_norm),
                n_values=n_values,
                pattern=pattern,
            )
        )

    @property
    def correlation(self) -> float:
        """Of the weights before and after, about zero, over all matrices together."""
        product = (self.squared_norm + self.squared_norm_after - self.squared_error) / 2
        norms = math.sqrt(self.squared_norm * self.squared_norm_after)
        return product / norms if norms else 0.0

    @property
    def n_compressed(self) -> int:
        """Weights in the matrices counted so far."""
        return sum(item.n_parameters for item in self.compressed)


def relative(squared_error: float, squared_norm: float) -> float:
    """||W' - W|| / ||W||; of zeros 0 where they stayed so, else no number."""
    if squared_norm:
        return math.sqrt(squared_error / squared_norm)
    return math.nan if squared_error else 0.0


def skipped_modules(
    model: Any,  # noqa: ANN401
    compressed: Iterable[str],
    *,
    left: str = LEFT,
    reasons: Mapping[str, str] | None = None,
) -> list[Skipped]:
    """Everything with parameters of its own that was left alone, and why.

    Norms and the biases of compressed modules are one entry each. A tied head is listed with its
    size, although the model holds its weights once, under the embedding.

    Args:
        model: The original's model, with or without its weights.
        compressed: Names of the matrices that were compressed.
        left: The reason for a matrix that could have been compressed.
        reasons: Other reasons for some of them, by name.
    """
    embedding, head = embedding_weight(model), model.get_output_embeddings()
    done = {parameter_of(name, model) for name in compressed}
    reasons = reasons or {}
    found: list[Skipped] = []
    groups = {"norm": [0, 0], "bias": [0, 0]}
    seen: set[int] = set()
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        weight = own.get("weight")
        is_tied = weight is not None and weight is embedding
        kept = {key: p for key, p in own.items() if f"{name}.{key}" not in done}
        if is_tied and id(weight) in seen and _embedding_name(model) in done:
            continue  # a tied head went with its embedding
        n = sum(p.numel() for p in kept.values() if id(p) not in seen or is_tied)
        seen.update(id(p) for p in own.values())
        if len(kept) < len(own):
            # Experts may be compressed in one of their tensors and not in the other.
            n_left = sum(p.numel() for key, p in expert_tensors(module) if key in kept)
            _count(groups["bias"], sum(p.numel() for p in kept.values()) - n_left)
            if n_left:
                reason = reasons.get(name, left)
                found.append(Skipped(module=name, n_parameters=n_left, reason=reason))
        elif not n:
            continue
        elif module is head:
            reason = "output head, tied to the input embedding" if is_tied else "output head"
            found.append(Skipped(module=name, n_parameters=n, reason=reason))
        elif isinstance(module, nn.Embedding):
            found.append(Skipped(module=name, n_parameters=n, reason="embedding"))
        elif isinstance(module, nn.Linear | Conv1D) or any(expert_tensors(module)):
            reason = "tied to the input embedding" if is_tied else reasons.get(name, left)
            found.append(Skipped(module=name, n_parameters=n, reason=reason))
        elif all(parameter.dim() < 2 for parameter in own.values()):
            _count(groups["norm"], n)
        else:
            found.append(Skipped(module=name, n_parameters=n, reason="not a linear layer"))
    for reason, (n_modules, n) in groups.items():
        if n:
            label = f"({reason} of {n_modules} modules)"
            found.append(Skipped(module=label, n_parameters=n, reason=reason))
    return found


def _embedding_name(model: Any) -> str:  # noqa: ANN401
    """The name of the input embedding's weight."""
    embedding = embedding_weight(model)
    return next((name for name, p in model.named_parameters() if p is embedding), "")


def parameter_of(name: str, model: Any) -> str:  # noqa: ANN401
    """The parameter that a compressed matrix lies in: `x.weight` of a module, or `x.experts.y`."""
    plain = name.partition("[")[0]
    parent, _, key = plain.rpartition(".")
    own = dict(model.get_submodule(parent).named_parameters(recurse=False))
    return plain if key in own else f"{plain}.weight"


def _count(group: list[int], n: int) -> None:
    group[0] += n > 0
    group[1] += n


def unique_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, those at the same place in memory counted once."""
    return sum({(t.data_ptr(), t.numel()): t.numel() * t.element_size() for t in tensors}.values())


def held_tensors(tensor: Any) -> list[Tensor]:  # noqa: ANN401
    """The tensors that take the memory: of a wrapper (torchao's) those within it, else itself."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [held for name in names for held in held_tensors(getattr(tensor, name))]


def live_tensors(model: Any) -> Iterator[Tensor]:  # noqa: ANN401
    """Parameters, buffers, and the tensors that a quantized layer keeps beside them."""
    yield from model.buffers()
    for module in model.modules():
        # Layers of hqq keep scales and zero points in a dictionary, the bias as an attribute.
        meta = getattr(module, "meta", None)
        values = [getattr(module, "bias", None), *(meta.values() if type(meta) is dict else ())]
        holders: list[object] = [getattr(module, "state", None)]
        for parameter in module.parameters(recurse=False):
            yield from held_tensors(parameter)
            state = getattr(parameter, "quant_state", None)
            holders += [state, getattr(state, "state2", None)]
            if not is_traceable_wrapper_subclass(parameter):
                holders.append(parameter)
        values += [v for holder in holders for v in getattr(holder, "__dict__", {}).values()]
        yield from (value for value in values if isinstance(value, Tensor))


def bytes_on_disk(model: Any, stored: torch.dtype) -> int:  # noqa: ANN401
    """Bytes of the tensors that saving would write, tied ones once.

    Args:
        model: The variant.
        stored: The checkpoint's dtype: a model that is scored in float32 is published as it was
            stored. Scales of quantized layers keep the dtype that they have.
    """
    state = {name: t for name, t in model.state_dict().items() if isinstance(t, Tensor)}
    plain = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    sizes: dict[tuple[int, int], int] = {}
    for name, tensor in state.items():
        for held in held_tensors(tensor):
            size = held.element_size()
            if name in plain and held is tensor and held.is_floating_point():
                size = min(size, stored.itemsize)
            sizes[held.data_ptr(), held.numel()] = held.numel() * size
    return sum(sizes.values())


def _dense_bytes(bones: Any, dtype: torch.dtype, *, live: bool = True) -> int:  # noqa: ANN401
    """Bytes of a model whose every weight is stored in `dtype`, tied ones once.

    Args:
        bones: The model without its weights.
        dtype: Of its weights.
        live: Whether buffers that are not saved count too.
    """
    saved = bones.state_dict().keys()
    n_weights: int = sum(parameter.numel() for parameter in bones.parameters())
    buffers = (buffer for name, buffer in bones.named_buffers() if live or name in saved)
    n_others: int = sum(buffer.nbytes for buffer in buffers)
    return n_weights * dtype.itemsize + n_others


def stored_dtype(config: Any, placement_dtype: torch.dtype) -> torch.dtype:  # noqa: ANN401
    """The dtype that the checkpoint's weights are stored in, as its configuration says."""
    found = getattr(config, "dtype", None)
    if isinstance(found, str):
        found = getattr(torch, found, None)
    return found if isinstance(found, torch.dtype) else placement_dtype


def write_receipt(
    checkpoint: Checkpoint,
    model: Any,  # noqa: ANN401
    ledger: Ledger,
    *,
    variant: str,
    library: str,
    bits_per_weight: float,
    left: str = LEFT,
    reasons: Mapping[str, str] | None = None,
    disk: int | None = None,
    **more: Any,  # noqa: ANN401 - further fields of Receipt
) -> Receipt:
    """The receipt of a variant, from what was counted on it; the caller fills in what it cost.

    Args:
        checkpoint: The original.
        model: The variant.
        ledger: Its compressed matrices.
        variant: Its canonical spelling.
        library: Library and version.
        bits_per_weight: Of the compressed matrices, scales included.
        left: The reason for matrices that were left alone.
        reasons: Other reasons for some of them, by module name.
        disk: Bytes on disk, where the variant's `state_dict` does not tell.
        more: Further fields of the receipt.
    """
    weights = ledger.n_compressed
    bones = skeleton(checkpoint)
    names = [item.module for item in ledger.compressed]
    stored = stored_dtype(checkpoint.config, model.dtype)
    memory = unique_bytes(live_tensors(model))
    if is_offloaded(model):  # what is not there has no place in memory to be told apart by
        narrow = min(stored, model.dtype, key=lambda dtype: dtype.itemsize)
        memory, written = _dense_bytes(bones, model.dtype), _dense_bytes(bones, narrow, live=False)
        disk = written if disk is None else disk
    elif disk is None:
        disk = bytes_on_disk(model, stored)
    return Receipt(
        variant=variant,
        library=library,
        n_parameters=sum(parameter.numel() for parameter in bones.parameters()),
        n_compressed=weights,
        n_changed=sum(item.n_changed for item in ledger.compressed),
        compressed=ledger.compressed,
        skipped=skipped_modules(bones, names, left=left, reasons=reasons),
        bits_per_weight=bits_per_weight,
        sparsity=ledger.n_zeros / weights if weights else 0.0,
        relative_error=relative(ledger.squared_error, ledger.squared_norm),
        bytes_memory=memory,
        bytes_disk=disk,
        compress_s=0.0,
        **more,
    )


def pruned_bits(
    checkpoint: Checkpoint,
    ledger: Ledger,
    *,
    dtype: torch.dtype,
    n_m: tuple[int, int] | None = None,
) -> float:
    """Bits per weight of pruned matrices: the weights that are kept, and what says where they are.

    Without a pattern that is every nonzero weight, and one bit a weight. With N:M it is M - N
    weights of every group, whatever their value, and their places in it: in 2:4, which processors
    read, 2 bits for each kept weight; else the least whole number of bits that tells the possible
    places apart, 7 for the 70 of 4:8.

    Args:
        checkpoint: The original, whose stored precision the weights are published in.
        ledger: The pruned matrices.
        dtype: The precision where the checkpoint does not name one.
        n_m: (N, M) of the pattern.
    """
    width = 8.0 * stored_dtype(checkpoint.config, dtype).itemsize
    if n_m is None:
        kept = 1 - ledger.n_zeros / max(1, ledger.n_compressed)
        return width * kept + 1.0
    n, m = n_m
    index_bits = 4 if n_m == (2, 4) else math.ceil(math.log2(math.comb(m, n)))
    return ((m - n) * width + index_bits) / m
