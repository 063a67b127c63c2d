"""Counting what a variant really changed, on the model that will be scored."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from auditor.compress.receipt import Compressed, Receipt, Skipped

# Rows of a matrix that are compared at once, so that no second copy of a large one is made.
CHUNK = 2**24


def matrices(model: Any) -> Iterator[tuple[str, nn.Module]]:  # noqa: ANN401
    """The modules that compression is for: every Linear and Conv1D but the output head."""
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not head:
            yield name, module


@dataclass
class Ledger:
    """What was compressed so far, with the sums that the whole needs."""

    compressed: list[Compressed] = field(default_factory=list)
    squared_error: float = 0.0
    squared_norm: float = 0.0
    n_zeros: int = 0

    def add(self, name: str, kind: str, before: Tensor, after: Tensor) -> None:
        """Count one matrix.

        Args:
            name: Module name.
            kind: Class of the module in the variant.
            before: The original's weight, cast to the variant's precision.
            after: What the variant computes with, of the same shape.
        """
        changed = zeros = 0
        error = norm = 0.0
        old, new = before.reshape(-1), after.reshape(-1)
        for start in range(0, old.numel(), CHUNK):
            a = old[start : start + CHUNK].float()
            b = new[start : start + CHUNK].float()
            changed += int((a != b).sum())
            zeros += int((b == 0).sum())
            error += float((a - b).double().square().sum())
            norm += float(a.double().square().sum())
        self.squared_error += error
        self.squared_norm += norm
        self.n_zeros += zeros
        self.compressed.append(
            Compressed(
                module=name,
                kind=kind,
                n_parameters=old.numel(),
                n_changed=changed,
                sparsity=zeros / old.numel(),
                relative_error=math.sqrt(error / norm) if norm else 0.0,
            )
        )

    @property
    def n_compressed(self) -> int:
        """Weights in the matrices counted so far."""
        return sum(item.n_parameters for item in self.compressed)


def skipped_modules(model: Any, compressed: set[str]) -> list[Skipped]:  # noqa: ANN401
    """Every module with parameters of its own that was left alone, and why."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head is not None and getattr(head, "weight", None) is embedding.weight
    found, others = [], 0
    for name, module in model.named_modules():
        if name in compressed:
            others += sum(
                p.numel() for key, p in module.named_parameters(recurse=False) if key == "bias"
            )
            continue
        size = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        if module is head:
            reason = "output head" + (", tied to the input embedding" if tied else "")
        elif isinstance(module, nn.Embedding):
            reason = "embedding"
        elif isinstance(module, nn.Linear | Conv1D):
            reason = "left in full precision by the library"
        else:
            others += size
            continue
        if size:
            found.append(Skipped(module=name, n_parameters=size, reason=reason))
    if others:
        found.append(
            Skipped(module="(all others)", n_parameters=others, reason="norms, biases and the like")
        )
    return found


def unique_bytes(tensors: list[Tensor], *, floats_as: torch.dtype | None = None) -> int:
    """Bytes of tensors, shared storage counted once.

    Args:
        tensors: Any tensors.
        floats_as: Count matrices of floating point as if they were stored in this dtype.
    """
    seen: set[tuple[int, int]] = set()
    total = 0
    for tensor in tensors:
        key = (tensor.data_ptr(), tensor.numel())
        if key in seen:
            continue
        seen.add(key)
        size = tensor.element_size()
        if floats_as is not None and tensor.is_floating_point():
            size = min(size, floats_as.itemsize)
        total += tensor.numel() * size
    return total


def state_tensors(model: Any) -> list[Tensor]:  # noqa: ANN401
    """The tensors that saving the model would write."""
    return [tensor for tensor in model.state_dict().values() if isinstance(tensor, Tensor)]


def write_receipt(
    model: Any,  # noqa: ANN401
    ledger: Ledger,
    *,
    variant: str,
    library: str,
    n_parameters: int,
    bits_per_weight: float,
    stored_dtype: torch.dtype,
    batch_dependent: bool = False,
    repairs: list[str] | None = None,
) -> Receipt:
    """The receipt of a variant, from what was counted on it.

    Args:
        model: The variant.
        ledger: Its compressed matrices.
        variant: Its canonical spelling.
        library: Library and version.
        n_parameters: Parameters of the original, tied ones once.
        bits_per_weight: Of the compressed matrices, scales included.
        stored_dtype: What the checkpoint stores; what stays uncompressed is published in it.
        batch_dependent: Whether scores depend on the batch.
        repairs: What a probe found and how it was mended.
    """
    state = state_tensors(model)
    live = [*model.parameters(), *model.buffers()]
    quantized = {item.module for item in ledger.compressed}
    weights = ledger.n_compressed
    return Receipt(
        variant=variant,
        library=library,
        n_parameters=n_parameters,
        n_compressed=weights,
        n_changed=sum(item.n_changed for item in ledger.compressed),
        compressed=ledger.compressed,
        skipped=skipped_modules(model, quantized),
        bits_per_weight=bits_per_weight,
        sparsity=ledger.n_zeros / weights if weights else 0.0,
        relative_error=math.sqrt(ledger.squared_error / ledger.squared_norm)
        if ledger.squared_norm
        else 0.0,
        bytes_memory=unique_bytes([*live, *state]),
        bytes_disk=unique_bytes(state, floats_as=stored_dtype),
        compress_s=0.0,
        batch_dependent=batch_dependent,
        repairs=repairs or [],
    )


def count_parameters(model: Any) -> int:  # noqa: ANN401
    """Parameters, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def stored_dtype(config: Any, placement_dtype: torch.dtype) -> torch.dtype:  # noqa: ANN401
    """The dtype that the checkpoint's weights are stored in, as its configuration says."""
    found = getattr(config, "dtype", None)
    if isinstance(found, str):
        found = getattr(torch, found, None)
    return found if isinstance(found, torch.dtype) else placement_dtype
