"""What an estimate stands on: a model's shape, and the rate of a matrix product on this device."""

import os
import time
from typing import TYPE_CHECKING, Any

from auditor.cost import Shape

if TYPE_CHECKING:
    import torch

    from auditor.compress.checkpoint import Placement

# Sides of the square products that are tried, as long as there is time: what a library reaches
# grows with the side, and a processor that lacks the dtype's instructions must hold nobody up.
SIDES = (256, 512, 1024, 2048, 4096, 8192)
ROUNDS = 6
MOST_S = 0.5


def shape_of(model: Any) -> Shape:  # noqa: ANN401 - a transformers model, or its bones
    """The shape of a model, which may be one without weights (`compress.matrices.skeleton`)."""
    from auditor.compress.matrices import expert_tensors, linear_layers

    config = model.config.get_text_config()
    weights = sum(layer.weight.numel() for _, layer in linear_layers(model))
    chosen = getattr(config, "num_experts_per_tok", None) or getattr(config, "top_k_experts", None)
    for module in model.modules():
        for _, parameter in expert_tensors(module):
            n_experts = len(parameter)
            weights += parameter.numel() * min(int(chosen or n_experts), n_experts) // n_experts
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    return Shape(
        weights=weights + model.get_output_embeddings().weight.numel(),
        n_layers=int(config.num_hidden_layers) if heads else 0,
        width=heads * int(size),
    )


def matrix_rate(device: str, dtype: "torch.dtype") -> float:
    """Floating-point operations per second of a matrix product, measured on the spot.

    The best of some: what the device does where nobody disturbs it.
    """
    import torch

    def wait() -> None:
        if device != "cpu":
            torch.cuda.synchronize(device)

    best, started = 0.0, time.perf_counter()
    with torch.inference_mode():
        for side in SIDES:
            operations = 2.0 * side**3
            left = MOST_S - (time.perf_counter() - started)
            # Two sides in any case: others may have disturbed the first.
            if side > SIDES[1] and ROUNDS * operations / best > left:
                break
            a = torch.randn(side, side, device=device).to(dtype)
            for _ in range(ROUNDS):
                wait()
                begin = time.perf_counter()
                torch.nn.functional.linear(a, a)
                wait()
                best = max(best, operations / (time.perf_counter() - begin))
    return best


def n_devices(placement: "Placement") -> float:
    """Devices that this process holds: GPUs, or its part of a machine where it runs on the CPU."""
    if placement.device == "cpu":
        return 1 / int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
    return len(placement.computing)
