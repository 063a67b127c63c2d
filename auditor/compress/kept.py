"""The original read once for all versions that are made from it, where that pays and memory allows.

An audit of several versions starts each of them from the same weights. On a GPU they are read,
cast and sent over once, and every version starts from a copy on the device. On a CPU nothing is
gained: safetensors are memory-mapped, so that what is "read again" is the file's pages in memory,
and a copy of them costs what reading them costs (GPT-2 124M, one thread, loaded and every matrix
then changed: 0.16 s read against 0.26 s copied from bfloat16, 0.35 against 0.37 from float32). So
there nothing is kept.

A copy is the model that a fresh reading gives, to the bit; the last version is given the kept one.
What is kept is given up at once when memory runs out, and versions are read from disk again.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

from auditor.memory import ran_out, spare_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from auditor.compress.checkpoint import Checkpoint, Placement

# Kinds of devices on which a copy is quicker than reading.
PAYS_ON = ("cuda",)
# Beside what is kept, the device must have room for so many copies: the version that is scored, and
# one that is made meanwhile or what making one takes.
ROOM_COPIES = 2


class NotKeptError(Exception):
    """A version that may not be read from disk at this moment found no kept original."""


class Source(Protocol):
    """Where `load_model` gets the original from, in the audit of several versions."""

    def is_of(self, checkpoint: "Checkpoint", placement: "Placement") -> bool:
        """Whether it is this checkpoint, placed so."""

    def take(self, read: "Callable[[], PreTrainedModel]") -> "PreTrainedModel":
        """A model that the caller may change; `read` reads it from disk."""

    def bones(self, checkpoint: "Checkpoint") -> Any | None:  # noqa: ANN401
        """The model without weights, for the caller to change; None for another checkpoint."""


# Set only while an audit scores its versions: a single `compress` reads as it always did.
KEPT: ContextVar[Source | None] = ContextVar("kept", default=None)


class Kept:
    """The original of an audit.

    Args:
        checkpoint: The original; only this very object is meant.
        placement: Where it goes, and in which precision.
    """

    def __init__(self, checkpoint: "Checkpoint", placement: "Placement") -> None:
        from auditor.compress.matrices import new_skeleton

        self.checkpoint, self.placement = checkpoint, placement
        self._model: PreTrainedModel | None = None
        self._n_later = 0
        self._is_given_up = False
        # Made here, because transformers sets torch's default dtype for the process meanwhile,
        # which must not happen beside a forward pass.
        self._bones = new_skeleton(checkpoint)

    def is_of(self, checkpoint: "Checkpoint", placement: "Placement") -> bool:
        """See `Source`."""
        return checkpoint is self.checkpoint and placement == self.placement

    @property
    def is_here(self) -> bool:
        """Whether the original is held now."""
        return self._model is not None

    def expect(self, *, is_user: bool, n_later: int) -> None:
        """Be told of the version whose turn it is.

        Args:
            is_user: Whether it is made from the original.
            n_later: How many of the versions after it are.
        """
        self._n_later = n_later
        if not is_user and not n_later:
            self.give_up()

    def take(self, read: "Callable[[], PreTrainedModel]") -> "PreTrainedModel":
        """The original, read where it is not held, and kept where others need it later."""
        model = read() if self._model is None else self._model
        self._model = None
        if not self._n_later or self._is_given_up or not self._has_room(model):
            return model
        try:
            copied = copy_of(model)
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            self.give_up()
            return model
        self._model = model
        return copied

    def lend(self, *, n_later: int) -> "Lent | None":
        """The original for one version that another thread makes; None where it must not be made.

        It must not where nothing is kept, because it would be read, and not where there is no room.

        Args:
            n_later: How many versions after that one are made from the original.
        """
        model = self._model
        if model is None or not self._has_room(model):
            return None
        if not n_later:
            self._model = None
        return Lent(self, model, is_last=not n_later)

    def bones(self, checkpoint: "Checkpoint") -> Any | None:  # noqa: ANN401
        """See `Source`."""
        return copy.deepcopy(self._bones) if checkpoint is self.checkpoint else None

    def give_up(self) -> bool:
        """Let go of the original for good; whether there was one."""
        was_here = self.is_here
        self._model, self._is_given_up = None, True
        return was_here

    def _has_room(self, model: Any) -> bool:  # noqa: ANN401
        n_bytes: int = sum(tensor.nbytes for tensor in _tensors(model))
        return spare_bytes(self.placement.device) >= ROOM_COPIES * n_bytes


class Lent:
    """The kept original for one version, made while another is scored: nothing is read from disk.

    Args:
        kept: Whose it is.
        model: The original.
        is_last: Whether no other version needs it, so that it may be handed out itself.
    """

    def __init__(self, kept: Kept, model: "PreTrainedModel", *, is_last: bool) -> None:
        self._kept, self._is_last = kept, is_last
        self._model: PreTrainedModel | None = model

    def is_of(self, checkpoint: "Checkpoint", placement: "Placement") -> bool:
        """See `Source`."""
        return self._kept.is_of(checkpoint, placement)

    def take(self, read: "Callable[[], PreTrainedModel]") -> "PreTrainedModel":
        """The original, once.

        Raises:
            NotKeptError: At the second call, which would have to read it.
        """
        del read
        model, self._model = self._model, None
        if model is None:
            raise NotKeptError
        return model if self._is_last else copy_of(model)

    def bones(self, checkpoint: "Checkpoint") -> Any | None:  # noqa: ANN401
        """See `Source`."""
        return self._kept.bones(checkpoint)


@contextmanager
def kept_original(
    checkpoint: "Checkpoint", placement: "Placement", *, n_users: int
) -> Iterator[Kept | None]:
    """Keep the original while versions of it are made; `load_model` then hands out copies.

    Pickles, checkpoints that are quantized already and models with code of their own are read
    each time, as they always were; so are models over several devices, which are there because no
    device has room for two of them, and whose hooks a copy would share.

    Args:
        checkpoint: The original.
        placement: Where it goes, and in which precision.
        n_users: Versions that are made from it and are not stored yet.

    Yields:
        What is kept, or None where it does not pay.
    """
    from auditor.compress.checkpoint import quantization_of

    args = checkpoint.load_args
    is_plain = args.get("use_safetensors") and not args.get("trust_remote_code")
    pays = placement.device.partition(":")[0] in PAYS_ON and n_users > 1
    pays = pays and placement.spread is None
    if not pays or not is_plain or quantization_of(checkpoint.config):
        yield None
        return
    kept = Kept(checkpoint, placement)
    token = KEPT.set(kept)
    try:
        yield kept
    finally:
        KEPT.reset(token)
        kept.give_up()


def give_up() -> bool:
    """Let go of the original where one is kept here; whether memory was freed by it."""
    kept = KEPT.get()
    return isinstance(kept, Kept) and kept.give_up()


def copy_of(model: "PreTrainedModel") -> "PreTrainedModel":
    """A model with weights and buffers of its own, tied where the original's are, and its settings.

    Each tensor is copied by itself: the default would copy the whole storage behind a view.
    """
    from torch import nn

    own: dict[int, Any] = {}
    for parameter in model.parameters():
        data = parameter.detach().clone()
        own[id(parameter)] = nn.Parameter(data, requires_grad=parameter.requires_grad)
    own |= {id(buffer): buffer.clone() for buffer in model.buffers()}
    return copy.deepcopy(model, own)


def _tensors(model: Any) -> Iterator[Any]:  # noqa: ANN401
    return chain(model.parameters(), model.buffers())
