"""The model that is trained: whole, with an adapter, or with an adapter over its base in NF4."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from auditor.compress.checkpoint import Checkpoint, Placement, load_model
from auditor.compress.quiet import quiet_transformers, quietly
from auditor.errors import ConfigError, ModelError, first_line
from auditor.memory import ran_out
from auditor.report.progress import Tell
from auditor.targets.config import TrainConfig

ADAPTER_FACTOR = 4.0


@dataclass(frozen=True)
class Trainable:
    """A model that is ready to be trained.

    Attributes:
        model: With gradients where it is trained.
        learning_rate: The highest.
        n_parameters: Of the whole model.
        n_trained: Of what is trained.
        adapter: How its adapter is made; empty where there is none.
    """

    model: Any
    learning_rate: float
    n_parameters: int
    n_trained: int
    adapter: dict[str, Any] = field(default_factory=dict)


def default_rate(n_parameters: int, *, is_adapter: bool) -> float:
    """0.001 over the cube root of the millions of parameters: 5e-5 at 7B, 2e-4 at 124M.

    Small models learn slowly at the rates that large ones are fine-tuned with, and an adapter at
    those of whole models.
    """
    rate = 1e-3 / max(1.0, n_parameters / 1e6) ** (1 / 3)
    return float(f"{rate * (ADAPTER_FACTOR if is_adapter else 1.0):.2g}")


def load_trainable(
    checkpoint: Checkpoint, config: TrainConfig, *, device: str, seed: int, tell: Tell
) -> Trainable:
    """Load the base and make it trainable.

    Raises:
        ModelError: It cannot be loaded, or takes no adapter.
        ConfigError: bitsandbytes does not run here.
    """
    is_adapter = config.method != "full"
    model = _base(checkpoint, config, device)
    n_parameters = sum(parameter.numel() for parameter in _unpacked(model))
    model.config.use_cache = False
    adapter: dict[str, Any] = {}
    if is_adapter:
        adapter = {
            "rank": config.rank,
            "lora_alpha": config.lora_alpha or 2 * config.rank,
            "lora_dropout": config.lora_dropout,
        }
        model = _with_adapter(model, checkpoint, config, adapter, seed)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    rate = config.learning_rate or default_rate(n_parameters, is_adapter=is_adapter)
    tell(f"{trained:,} of {n_parameters:,} parameters are trained, at a rate of {rate:g} at most")
    return Trainable(model, rate, n_parameters, trained, adapter)


def _unpacked(model: Any) -> list[torch.Tensor]:  # noqa: ANN401
    """Parameters with as many entries as the model has weights, however they are packed."""
    found = []
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        found.append(torch.empty(state.shape, device="meta") if state is not None else parameter)
    return found


def _base(checkpoint: Checkpoint, config: TrainConfig, device: str) -> Any:  # noqa: ANN401
    if config.method == "qlora":
        return _in_four_bits(checkpoint, device)
    with quietly():
        # Weights that are trained are held in float32: a step is smaller than what 16 bits see.
        model: Any = load_model(checkpoint, Placement("cpu", torch.float32))
    return model.requires_grad_(requires_grad=True)


def _in_four_bits(checkpoint: Checkpoint, device: str) -> Any:  # noqa: ANN401
    """The base in NF4 with double quantization (Dettmers et al. 2023), right on this machine."""
    from auditor.compress.options import FourBitOptions

    compute = torch.float32 if device == "cpu" else torch.bfloat16
    placement = Placement(device, compute)
    try:
        with quietly(), quiet_transformers():
            from auditor.compress.bitsandbytes import config_of, load_quantized

            settings = config_of("nf4", FourBitOptions(double_quant=True), placement)
            return load_quantized(checkpoint, placement, settings).model
    except (ImportError, NotImplementedError, RuntimeError, ValueError) as error:
        if ran_out(error):
            raise
        raise ConfigError(
            "--method qlora needs bitsandbytes to run here",
            seen=first_line(error),
            fix="give --method lora; `compleak-llm doctor` says what works here",
        ) from error


def _with_adapter(
    model: Any,  # noqa: ANN401
    checkpoint: Checkpoint,
    config: TrainConfig,
    adapter: dict[str, Any],
    seed: int,
) -> Any:  # noqa: ANN401
    with quietly():
        from peft import LoraConfig, TaskType, get_peft_model, prepare_model_for_kbit_training

    if config.method == "qlora":
        prepare: Any = prepare_model_for_kbit_training
        model = prepare(model, use_gradient_checkpointing=False)
    lora = LoraConfig(
        r=adapter["rank"],
        lora_alpha=adapter["lora_alpha"],
        lora_dropout=adapter["lora_dropout"],
        target_modules="all-linear",
        task_type=TaskType.CAUSAL_LM,
        # GPT-2 keeps its matrices the other way round; elsewhere peft turns this off by itself.
        fan_in_fan_out=_has_conv1d(model),
    )
    held = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        with quietly():  # every library that packs weights is asked whether a layer is its own
            found = get_peft_model(model, lora)
    except ValueError as error:
        raise ModelError(
            f"{checkpoint.name} must have linear layers that an adapter can lie over",
            seen=first_line(error),
            fix="give --method full",
        ) from error
    finally:
        torch.set_rng_state(held)
    for parameter in found.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    # What the adapter says it belongs to: the path or id as it was given, and not where it lay.
    found.peft_config["default"].base_model_name_or_path = checkpoint.name
    return found


def _has_conv1d(model: Any) -> bool:  # noqa: ANN401
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(module, Conv1D) for module in model.modules())


def save(trainable: Trainable, checkpoint: Checkpoint, tokenizer: Any, folder: Path) -> None:  # noqa: ANN401
    """Write the adapter, or the model in the precision of its base, with the tokenizer."""
    model = trainable.model
    if not trainable.adapter:
        stored = getattr(checkpoint.config, "dtype", None)
        if isinstance(stored, torch.dtype):
            model = model.to(stored)
        model.config.use_cache = getattr(checkpoint.config, "use_cache", True)
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    # The library writes a card of its own, with blanks to be filled in, beside an adapter.
    (folder / "README.md").unlink(missing_ok=True)
