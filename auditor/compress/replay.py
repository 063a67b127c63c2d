"""Running a decoder's blocks one by one, without the model around them, for any architecture.

How a block is called beside the hidden states (masks, positions) depends on the architecture and
is not written down here but recorded. Two passes must show that the blocks may be run so: one of
the model as it is, in which each block must be given what the block before it returned, and one in
which the blocks only hand their inputs on, in which they must be called as in the first. The second
costs little and is made over all texts.
"""

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Call(NamedTuple):
    """How a block is called, hidden states left out."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Replay:
    """The blocks, and all that is needed to run them.

    Attributes:
        blocks: The blocks, in order.
        device: Where they are.
        hidden: What the next block sees, batch by batch, on the CPU.
        calls: How each block is called, `calls[batch][block]`.
    """

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        self.blocks, self.device = blocks, device
        self.hidden: list[Tensor] = []
        self.calls: list[list[Call]] = []

    def add(self, hidden: Tensor, calls: list[Call]) -> None:
        """Take in a batch. What is the same for every batch, as masks mostly are, is kept once."""
        if self.calls:
            calls = [_reuse(*pair) for pair in zip(calls, self.calls[0], strict=True)]
        self.calls.append(calls)
        self.hidden.append(hidden.cpu())

    def run(self, number: int) -> None:
        """Run a block over all batches, for what its layers see."""
        for batch in range(len(self.hidden)):
            self._output(number, batch)

    def advance(self, number: int) -> None:
        """Run a block over all batches, for its outputs: they are what the next one sees."""
        for batch in range(len(self.hidden)):
            self.hidden[batch] = self._output(number, batch).cpu()

    def _output(self, number: int, batch: int) -> Tensor:
        args, kwargs = self.calls[batch][number]
        # A copy, because a block may add to its input in place.
        hidden = self.hidden[batch].to(self.device, copy=True)
        found: Tensor = _hidden_of(self.blocks[number](hidden, *args, **kwargs))
        return found


def record(model: Any, blocks: Sequence[nn.Module], batches: Sequence[Tensor]) -> Replay | None:  # noqa: ANN401
    """How the blocks are called for every batch, or None where they cannot be run one by one.

    Args:
        model: A causal language model in eval mode.
        blocks: The blocks of its decoder, in order.
        batches: Token ids, shape (samples, tokens) each.
    """
    real = _Pass()
    if not real.go(model, blocks, batches[0]):
        return None
    replay = Replay(blocks, model.device)
    for batch in batches:
        handed = _Pass(real.n_outputs)
        if not handed.go(model, blocks, batch):
            return None
        if not replay.calls and not (
            _same(handed.entered, real.entered) and all(map(_alike, handed.calls, real.calls))
        ):
            return None
        replay.add(handed.entered, handed.calls)
    return replay


class _Pass:
    """One pass of a model, in which every call of a block is written down.

    Args:
        n_outputs: Where it is given, the blocks only hand their hidden states on, in tuples of so
            many entries as they return themselves; 0 for a tensor.

    Attributes:
        calls: How the blocks were called, in order.
        entered: The hidden states that the first block was given.
        n_outputs: Entries in the tuple that each block returns.
    """

    def __init__(self, n_outputs: list[int] | None = None) -> None:
        self._hands_on = n_outputs is not None
        self._is_chain = True
        self._last: Any = None
        self.n_outputs = n_outputs or []
        self.calls: list[Call] = []
        self.entered: Any = None

    def go(self, model: Any, blocks: Sequence[nn.Module], batch: Tensor) -> bool:  # noqa: ANN401
        """Run the model.

        Returns:
            Whether each block was called once, in order, with what the one before it returned.
        """
        with _replaced(blocks, self._answer):
            model.base_model(input_ids=batch.to(model.device), use_cache=False)
        return self._is_chain and len(self.calls) == len(blocks)

    def _answer(self, number: int, forward: Callable[..., Any], call: Call) -> Any:  # noqa: ANN401
        hidden, rest = _taken_apart(call)
        if not self.calls:
            self.entered = self._last = _copy(hidden)
        is_next = number == len(self.calls) and isinstance(hidden, Tensor)
        self._is_chain &= is_next and _same(hidden, self._last)
        self.calls.append(rest)
        if self._hands_on:
            n = self.n_outputs[number]
            output = (hidden, *[None] * (n - 1)) if n else hidden
        else:
            output = forward(*call.args, **call.kwargs)
            self.n_outputs.append(len(output) if isinstance(output, tuple | list) else 0)
        self._last = _copy(_hidden_of(output))
        return output


@contextmanager
def _replaced(
    blocks: Sequence[nn.Module], answer: Callable[[int, Callable[..., Any], Call], Any]
) -> Iterator[None]:
    """Let `answer(number, forward, call)` speak for the forward of every block."""
    own = [block.__dict__.get("forward") for block in blocks]

    def stand_in(number: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: answer(number, forward, Call(args, kwargs))

    for number, block in enumerate(blocks):
        block.__dict__["forward"] = stand_in(number, block.forward)
    try:
        yield
    finally:
        for block, before in zip(blocks, own, strict=True):
            block.__dict__.pop("forward", None)
            if before is not None:
                block.__dict__["forward"] = before


def _taken_apart(call: Call) -> tuple[Any, Call]:
    """The hidden states of a call, given first or by name, and everything else."""
    args, kwargs = call
    if args:
        return args[0], Call(args[1:], kwargs)
    rest = {key: value for key, value in kwargs.items() if key != "hidden_states"}
    return kwargs.get("hidden_states"), Call((), rest)


def _copy(hidden: Any) -> Any:  # noqa: ANN401
    """A copy of hidden states, to which a model may add in place."""
    return hidden.clone() if isinstance(hidden, Tensor) else None


def _hidden_of(output: Any) -> Any:  # noqa: ANN401
    return output[0] if isinstance(output, tuple | list) else output


def _values(call: Call) -> list[Any]:
    return [*call.args, *(call.kwargs[key] for key in sorted(call.kwargs))]


def _same_names(one: Call, other: Call) -> bool:
    return len(one.args) == len(other.args) and one.kwargs.keys() == other.kwargs.keys()


def _alike(one: Call, other: Call) -> bool:
    """Whether two calls are the same, but for what blocks themselves keep in a mapping.

    Such a mapping, in which blocks leave keys and values for later ones (Gemma 3n), fills again
    whenever the blocks are run.
    """
    return _same_names(one, other) and all(
        _same(a, b) or (isinstance(a, MutableMapping) and isinstance(b, MutableMapping))
        for a, b in zip(_values(one), _values(other), strict=True)
    )


def _reuse(call: Call, earlier: Call) -> Call:
    """The call, with the values of an earlier one where they are the same."""
    if not _same_names(call, earlier):
        return call

    def chosen(new: Any, old: Any) -> Any:  # noqa: ANN401
        # Every batch has a mapping of its own, because blocks write into it.
        return old if _same(new, old) and not isinstance(new, MutableMapping) else new

    return Call(
        tuple(map(chosen, call.args, earlier.args)),
        {key: chosen(value, earlier.kwargs[key]) for key, value in call.kwargs.items()},
    )


def _same(one: Any, other: Any) -> bool:  # noqa: ANN401
    """Whether two arguments are the same; objects that cannot be compared are only themselves."""
    if one is other:
        return True
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and isinstance(one, int | float | str) and one == other
