"""Counting what a variant really changed, on the model that will be scored."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from auditor.compress.checkpoint import Checkpoint, Placement, load_model
from auditor.compress.receipt import LEFT, Compressed, Receipt, Skipped
from auditor.compress.weights import weight_files

# Entries of a matrix that are compared at once, so that no second copy of a large one is made.
CHUNK = 2**22


def matrices(model: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    """The modules that compression is for: every Linear and Conv1D with a weight of its own.

    The output head is none of them, nor is a module that shares the input embedding's weight; a
    weight that several modules share comes once.
    """
    head, seen = model.get_output_embeddings(), {id(_embedding_weight(model))}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | Conv1D) or module is head:
            continue
        if id(module.weight) not in seen:
            seen.add(id(module.weight))
            yield name, module


def _embedding_weight(model: Any) -> Tensor | None:  # noqa: ANN401
    return getattr(model.get_input_embeddings(), "weight", None)


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
        files = weight_files(checkpoint.name, checkpoint.path, allow_pickle=True)
        for file in (file for file in files if file.suffix == ".safetensors"):
            with safe_open(file, framework="pt") as opened:
                self._files.update(dict.fromkeys(opened.keys(), file))

    def read(self, module: str) -> Tensor:
        """The weight of a module by its name in the model, on the CPU."""
        name = f"{module}.weight"
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
    n_zeros: int = 0

    def add(self, name: str, kind: str, *, before: Tensor, after: Tensor) -> None:
        """Count one matrix.

        Args:
            name: Module name.
            kind: Class of the module in the variant.
            before: The original's weight, cast to the variant's precision.
            after: What the variant computes with, of the same shape.

        Raises:
            ValueError: The shapes differ, so that something else would be counted.
        """
        if before.shape != after.shape:
            raise ValueError(f"{name}: {tuple(before.shape)} against {tuple(after.shape)}")
        changed = zeros = 0
        error = norm = 0.0
        old, new = before.reshape(-1), after.reshape(-1)
        for start in range(0, old.numel(), CHUNK):
            a = old[start : start + CHUNK].double()
            b = new[start : start + CHUNK].double()
            changed += int((a != b).sum())
            zeros += int((b == 0).sum())
            error += float((a - b).square().sum())
            norm += float(a.square().sum())
        self.squared_error += error
        self.squared_norm += norm
        self.n_zeros += zeros
        self.compressed.append(
            Compressed(
                module=name,
                kind=kind,
                n_parameters=before.numel(),
                n_changed=changed,
                sparsity=zeros / before.numel(),
                relative_error=relative(error, norm),
            )
        )

    @property
    def n_compressed(self) -> int:
        """Weights in the matrices counted so far."""
        return sum(item.n_parameters for item in self.compressed)


def relative(squared_error: float, squared_norm: float) -> float:
    """||W' - W|| / ||W||, or 0 for a matrix of zeros, which nothing here changes."""
    return math.sqrt(squared_error / squared_norm) if squared_norm else 0.0


def skipped_modules(model: Any, compressed: set[str], *, left: str = LEFT) -> list[Skipped]:  # noqa: ANN401
    """Everything with parameters of its own that was left alone, and why.

    Norms and the biases of compressed modules are one entry each. A tied head is listed with its
    size, although the model holds its weights once, under the embedding.

    Args:
        model: The variant.
        compressed: Names of the modules that were compressed.
        left: The reason for a matrix that could have been compressed.
    """
    embedding, head = _embedding_weight(model), model.get_output_embeddings()
    found: list[Skipped] = []
    groups = {"norm": [0, 0], "bias": [0, 0]}
    seen: set[int] = set()
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        weight = own.get("weight")
        is_tied = weight is not None and weight is embedding
        n = sum(size_of(p) for p in own.values() if id(p) not in seen or is_tied)
        seen.update(id(p) for p in own.values())
        if name in compressed:
            _count(groups["bias"], sum(p.numel() for key, p in own.items() if key != "weight"))
        elif not n:
            continue
        elif module is head:
            reason = "output head, tied to the input embedding" if is_tied else "output head"
            found.append(Skipped(module=name, n_parameters=n, reason=reason))
        elif isinstance(module, nn.Embedding):
            found.append(Skipped(module=name, n_parameters=n, reason="embedding"))
        elif isinstance(module, nn.Linear | Conv1D):
            reason = "tied to the input embedding" if is_tied else left
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


def _count(group: list[int], n: int) -> None:
    group[0] += n > 0
    group[1] += n


def size_of(parameter: Tensor) -> int:
    """Weights that a parameter stands for; 4-bit ones are packed, two to a byte."""
    state = getattr(parameter, "quant_state", None)
    return int(parameter.numel() if state is None else math.prod(state.shape))


def count_parameters(model: Any) -> int:  # noqa: ANN401
    """Parameters, tied ones counted once."""
    return sum(size_of(parameter) for parameter in model.parameters())


def unique_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, those at the same place in memory counted once."""
    return sum({(t.data_ptr(), t.numel()): t.numel() * t.element_size() for t in tensors}.values())


def live_tensors(model: Any) -> Iterator[Tensor]:  # noqa: ANN401
    """Parameters, buffers, and the tensors that a quantized layer keeps beside them."""
    yield from model.buffers()
    for module in model.modules():
        holders: list[object] = [getattr(module, "state", None)]
        for parameter in module.parameters(recurse=False):
            yield parameter
            state = getattr(parameter, "quant_state", None)
            holders += [parameter, state, getattr(state, "state2", None)]
        for holder in holders:
            for value in getattr(holder, "__dict__", {}).values():
                if isinstance(value, Tensor):
                    yield value


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
        size = tensor.element_size()
        if name in plain and tensor.is_floating_point():
            size = min(size, stored.itemsize)
        sizes[tensor.data_ptr(), tensor.numel()] = tensor.numel() * size
    return sum(sizes.values())


def stored_dtype(config: Any, placement_dtype: torch.dtype) -> torch.dtype:  # noqa: ANN401
    """The dtype that the checkpoint's weights are stored in, as its configuration says."""
    found = getattr(config, "dtype", None)
    if isinstance(found, str):
        found = getattr(torch, found, None)
    return found if isinstance(found, torch.dtype) else placement_dtype


def write_receipt(
    model: Any,  # noqa: ANN401
    ledger: Ledger,
    *,
    variant: str,
    library: str,
    bits_per_weight: float,
    stored: torch.dtype,
    batch_dependent: bool = False,
    repairs: list[str] | None = None,
    left: str = LEFT,
) -> Receipt:
    """The receipt of a variant, from what was counted on it; the time is filled in by the caller.

    Args:
        model: The variant.
        ledger: Its compressed matrices.
        variant: Its canonical spelling.
        library: Library and version.
        bits_per_weight: Of the compressed matrices, scales included.
        stored: What the checkpoint stores; what stays uncompressed is published in it.
        batch_dependent: Whether scores depend on the batch.
        repairs: What a probe found and how it was mended.
        left: The reason for matrices that were left alone.
    """
    weights = ledger.n_compressed
    return Receipt(
        variant=variant,
        library=library,
        n_parameters=count_parameters(model),
        n_compressed=weights,
        n_changed=sum(item.n_changed for item in ledger.compressed),
        compressed=ledger.compressed,
        skipped=skipped_modules(model, {item.module for item in ledger.compressed}, left=left),
        bits_per_weight=bits_per_weight,
        sparsity=ledger.n_zeros / weights if weights else 0.0,
        relative_error=relative(ledger.squared_error, ledger.squared_norm),
        bytes_memory=unique_bytes(live_tensors(model)),
        bytes_disk=bytes_on_disk(model, stored),
        compress_s=0.0,
        batch_dependent=batch_dependent,
        repairs=repairs or [],
    )
