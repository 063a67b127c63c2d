"""From the text of records to token ids, and to the bytes of the text that is really scored."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

ZLIB_LEVEL = 6


class RecordText(NamedTuple):
    """The text of one record.

    Attributes:
        text: The text whose tokens are scored.
        prompt: What stands before it and is not scored.
        add_special_tokens: False where a chat template has already put them in.
    """

    text: str
    prompt: str = ""
    add_special_tokens: bool = True


@dataclass(frozen=True)
class Encoded:
    """One record as the model sees it.

    Attributes:
        ids: All token ids, after truncation.
        first: Position of the first token that is scored; at least 1.
        truncated: Whether tokens were cut off at the end.
        text_bytes: UTF-8 bytes of the text that is scored.
        zlib_bytes: Bytes of that text after zlib.
    """

    ids: list[int]
    first: int
    truncated: bool
    text_bytes: int
    zlib_bytes: int

    @property
    def n_scored(self) -> int:
        """How many tokens are scored; 0 for a record with nothing to predict."""
        return max(0, len(self.ids) - self.first)


class Encoder:
    """A tokenizer with the length that records are cut to.

    Args:
        tokenizer: A Hugging Face tokenizer.
        max_length: Tokens of a record at most.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:  # noqa: ANN401
        self.tokenizer = tokenizer
        self.max_length = max_length

    def encode(self, texts: Sequence[RecordText]) -> list[Encoded]:
        """Encode records in order."""
        raise NotImplementedError
