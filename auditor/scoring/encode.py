"""From the text of records to token ids, and to the bytes of the text that is really scored."""

import zlib
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

    @property
    def words(self) -> str:
        """Prompt and text in one string, for what looks at words and not at tokens."""
        return f"{self.prompt} {self.text}"


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
        tokenizer: A Hugging Face tokenizer; special tokens are added as it does by itself.
        max_length: Tokens of a record at most; what stands after them is cut off.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:  # noqa: ANN401
        self.tokenizer = tokenizer
        self.max_length = max_length

    def encode(self, texts: Sequence[RecordText]) -> list[Encoded]:
        """Encode records, in order.

        zlib sees the bytes of the very text that is scored (Carlini 2021): the raw text where
        nothing was cut, the decoded tokens where it was.
        """
        token_ids: list[list[int]] = [[] for _ in texts]
        firsts = [1] * len(texts)
        for special in {text.add_special_tokens for text in texts}:
            for prompted in (False, True):
                rows = [
                    row
                    for row, text in enumerate(texts)
                    if text.add_special_tokens == special and bool(text.prompt) == prompted
                ]
                if rows:
                    batch, starts = self._tokenize(
                        [texts[row] for row in rows], special=special, prompted=prompted
                    )
                    for row, ids, first in zip(rows, batch, starts, strict=True):
                        token_ids[row], firsts[row] = ids, first
        return [
            self._measure(text, ids, first)
            for text, ids, first in zip(texts, token_ids, firsts, strict=True)
        ]

    def _tokenize(
        self, texts: list[RecordText], *, special: bool, prompted: bool
    ) -> tuple[list[list[int]], list[int]]:
        """Token ids of each text, and the position of the first token that is scored."""
        whole = [text.prompt + text.text for text in texts]
        offsets = prompted and self.tokenizer.is_fast
        encoding = self.tokenizer(
            whole,
            add_special_tokens=special,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=offsets,
            verbose=False,
        )
        ids: list[list[int]] = encoding["input_ids"]
        if not prompted:
            return ids, [1] * len(ids)
        if offsets:
            # A token that reaches over the seam belongs to the completion: leaving it out would
            # leave out the completion's first characters.
            ends = [[end for _, end in record] for record in encoding["offset_mapping"]]
            starts = [
                next((i for i, end in enumerate(record) if end > len(text.prompt)), len(record))
                for record, text in zip(ends, texts, strict=True)
            ]
        else:
            prompts = self.tokenizer(
                [text.prompt for text in texts], add_special_tokens=special, verbose=False
            )["input_ids"]
            starts = [len(prompt) for prompt in prompts]
        return ids, [max(1, start) for start in starts]

    def _measure(self, text: RecordText, ids: list[int], first: int) -> Encoded:
        truncated = len(ids) > self.max_length
        scored = text.text
        if truncated:
            ids = ids[: self.max_length]
            scored = self.tokenizer.decode(
                ids[first:] if text.prompt else ids,
                skip_special_tokens=True,
                clean_up_tokenization_spaces=False,
            )
        data = scored.encode("utf-8", errors="replace")
        return Encoded(ids, first, truncated, len(data), len(zlib.compress(data, ZLIB_LEVEL)))
