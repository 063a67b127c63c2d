"""What compression has settled and training must keep: zeros, patterns of zeros, shared values.

A pruned weight is w m with a mask m, so that its gradient is the weight's times m. A clustered
matrix is c[a] with k values c and places a: the values are trained, and the gradient of a value is
the sum over all weights that share it (Han et al. 2016, "Deep Compression", section 3). Both are
held outside the model, whose own parameters stay what they are: nothing is wrapped, so that fused
experts, Conv1D and tied weights need no care.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from auditor.compress.measure import parameter_of

# Values are numbered in a byte.
MOST_VALUES = 256


class Place(NamedTuple):
    """A compressed matrix in a model: a parameter, or one expert of it.

    Attributes:
        name: Of the parameter.
        parameter: The parameter.
        expert: Which of its matrices; None where it is one.
    """

    name: str
    parameter: nn.Parameter
    expert: int | None

    def of(self, tensor: Tensor) -> Tensor:
        """The matrix in a tensor of the parameter's shape."""
        return tensor if self.expert is None else tensor[self.expert]


def place_of(matrix: str, model: Any) -> Place:  # noqa: ANN401
    """Where a matrix lies, by the name that a receipt gives it."""
    name = parameter_of(matrix, model)
    _, bracket, rest = matrix.partition("[")
    number = int(rest.rstrip("]")) if bracket else None
    return Place(name, model.get_parameter(name), number)


class Form:
    """A model of which everything is trained, and nothing must be kept.

    Args:
        model: In float32, its parameters taking gradients.
    """

    kept = "nothing was compressed"

    def __init__(self, model: Any) -> None:  # noqa: ANN401
        self.model = model

    @property
    def trained(self) -> list[nn.Parameter]:
        """What the optimizer moves."""
        return list(self.model.parameters())

    def gather(self) -> None:
        """Called when the gradients of the model's parameters are there."""

    def spread(self) -> None:
        """Called when the optimizer has moved what is trained."""


class Masked(Form):
    """A model in which pruned weights stay zero.

    Args:
        model: As for `Form`.
        matrices: Names of the pruned ones.
    """

    kept = "masks kept"

    def __init__(self, model: Any, matrices: Iterable[str]) -> None:  # noqa: ANN401
        super().__init__(model)
        places = [place_of(name, model) for name in matrices]
        self._masks = [(place, place.of(place.parameter.detach()) != 0) for place in places]

    @torch.no_grad()
    def gather(self) -> None:
        """See `Form`. Adam moves a zero without a gradient by exactly nothing."""
        for place, mask in self._masks:
            if place.parameter.grad is not None:
                place.of(place.parameter.grad).mul_(mask)


class Shared(Form):
    """A model in which the weights of each matrix share values, and the values are trained.

    Args:
        model: As for `Form`.
        matrices: Names of the clustered ones.

    Raises:
        ValueError: A matrix has more values than a byte can number.
    """

    kept = "codebooks kept: each weight keeps its place, the shared values were trained"

    def __init__(self, model: Any, matrices: Iterable[str]) -> None:  # noqa: ANN401
        super().__init__(model)
        self._books: list[tuple[Place, nn.Parameter, Tensor]] = []
        for name in matrices:
            place = place_of(name, model)
            values, codes = place.of(place.parameter.detach()).unique(return_inverse=True)
            if len(values) > MOST_VALUES:
                raise ValueError(f"{name} has {len(values)} values")
            self._books.append((place, nn.Parameter(values), codes.to(torch.uint8)))

    @property
    def trained(self) -> list[nn.Parameter]:
        """What the optimizer moves: shared values, and what is not compressed."""
        clustered = {id(place.parameter) for place, _, _ in self._books}
        others = [p for p in self.model.parameters() if id(p) not in clustered]
        return [*others, *(values for _, values, _ in self._books)]

    @torch.no_grad()
    def gather(self) -> None:
        """See `Form`."""
        for place, values, codes in self._books:
            gradient = place.parameter.grad
            values.grad = None if gradient is None else summed(place.of(gradient), codes, values)

    @torch.no_grad()
    def spread(self) -> None:
        """See `Form`."""
        for place, values, codes in self._books:
            place.of(place.parameter).copy_(values[codes.int()])


def summed(gradient: Tensor, codes: Tensor, values: Tensor) -> Tensor:
    """The gradient of every shared value: the sum over the weights that share it.

    Args:
        gradient: Of the weights, any shape.
        codes: uint8, of the same shape: which value each weight has.
        values: Shape (k,).
    """
    if gradient.device.type == "cpu":
        weights = gradient.reshape(-1).double()
        return torch.bincount(codes.reshape(-1).int(), weights, len(values)).to(values.dtype)
    # Value by value: what counts on a GPU adds up in an order that changes from run to run.
    sums = [torch.where(codes == number, gradient, 0).sum() for number in range(len(values))]
    return torch.stack(sums).to(values)
