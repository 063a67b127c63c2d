"""GPT-2 with Linear layers in the place of Conv1D is the same model to the bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from auditor.compress.checkpoint import Checkpoint, Placement, load_model, open_checkpoint
from auditor.compress.conv1d import dense_model, linear_from_conv1d
from tests.families import CPU, matrix_names
from tests.tiny import VOCABULARY, save, tiny_model

IDS = torch.randint(1, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    model: Any = tiny_model("gpt2")
    for name in matrix_names("gpt2"):
        model.get_submodule(name).bias.data.normal_()
    return open_checkpoint(str(save(model, tmp_path_factory.mktemp("gpt2"))))


def logits(model: Any) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS).logits.float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_layer_is_the_same(gpt2: Checkpoint, dtype: torch.dtype) -> None:
    original: Any = load_model(gpt2, Placement("cpu", dtype))
    model: Any = load_model(gpt2, Placement("cpu", dtype))
    assert linear_from_conv1d(model) == matrix_names("gpt2")
    for name in matrix_names("gpt2"):
        old, new = original.get_submodule(name), model.get_submodule(name)
        assert type(new) is nn.Linear
        assert (new.in_features, new.out_features) == tuple(old.weight.shape)
        assert torch.equal(new.weight, old.weight.T)
        assert new.weight.is_contiguous()
        assert torch.equal(new.bias, old.bias)
        assert not new.training
        assert not new.weight.requires_grad
    assert not any(isinstance(module, Conv1D) for module in model.modules())
    # The weights are the same bits; a product may be summed in another order.
    expected = logits(original)
    difference = float((logits(model) - expected).norm() / expected.norm())
    assert difference < 10 * torch.finfo(dtype).eps
    assert linear_from_conv1d(model) == []


def test_other_families_are_left_alone() -> None:
    model: Any = tiny_model("llama")
    before = dict(model.named_modules())
    assert linear_from_conv1d(model) == []
    assert dict(model.named_modules()) == before


def test_there_and_back(gpt2: Checkpoint, tmp_path: Path) -> None:
    turned: Any = load_model(gpt2, CPU)
    weights = [(n, turned.get_submodule(n).weight.data) for n in linear_from_conv1d(turned)]
    weights = [(name, weight * 2) for name, weight in weights[1:]]
    dense: Any = dense_model(gpt2, CPU, iter(weights))
    original: Any = load_model(gpt2, CPU)
    for name, parameter in original.named_parameters():
        is_other = name.removesuffix(".weight") in dict(weights)
        assert torch.equal(dense.get_parameter(name), parameter * 2 if is_other else parameter)
    dense.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(logits(again.eval()), logits(dense))


@pytest.mark.parametrize(("factor", "dtype"), [(0.5, torch.bfloat16), (1 / 3, torch.float32)])
def test_nothing_is_rounded(gpt2: Checkpoint, factor: float, dtype: torch.dtype) -> None:
    """A model in bfloat16 is widened as soon as a weight needs it, and only then."""
    placement = Placement("cpu", torch.bfloat16)
    original: Any = load_model(gpt2, placement)
    names = matrix_names("gpt2")
    given = {n: original.get_submodule(n).weight.float().T for n in names}
    given[names[3]] *= factor
    dense: Any = dense_model(gpt2, placement, iter(given.items()))
    assert {parameter.dtype for parameter in dense.parameters()} == {dtype}
    for name, weight in given.items():
        assert torch.equal(dense.get_submodule(name).weight.float(), weight.T)
