"""Text to tokens: truncation, prompts, special tokens, and the bytes that zlib sees."""

import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors

from auditor.scoring.encode import Encoder, RecordText
from tests.tiny import byte_tokenizer


def with_bos() -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = "<|endoftext|>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    return tokenizer


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=40)


@given(texts=st.lists(TEXT, min_size=1, max_size=5))
@settings(deadline=None, max_examples=50)
def test_whole_texts(texts: list[str]) -> None:
    tokenizer = byte_tokenizer()
    encoded = Encoder(tokenizer, 10_000).encode([RecordText(text) for text in texts])
    for text, record in zip(texts, encoded, strict=True):
        assert record.ids == tokenizer(text)["input_ids"]
        assert record.first == 1
        assert not record.truncated
        assert record.n_scored == len(record.ids) - 1
        assert record.text_bytes == len(text.encode())
        assert record.zlib_bytes == len(zlib.compress(text.encode()))


@given(text=TEXT, limit=st.integers(2, 30))
@settings(deadline=None, max_examples=50)
def test_truncated_text_is_what_zlib_sees(text: str, limit: int) -> None:
    (record,) = Encoder(byte_tokenizer(), limit).encode([RecordText(text)])
    data = text.encode()
    assert record.truncated == (len(data) > limit)
    if record.truncated:
        assert len(record.ids) == limit
        # A cut inside a character decodes to the replacement character, and that is what is scored.
        scored = data[:limit].decode(errors="replace").encode()
        assert (record.text_bytes, record.zlib_bytes) == (len(scored), len(zlib.compress(scored)))


@given(prompt=st.text("ab ", max_size=12), text=st.text("cd ", min_size=1, max_size=12))
@settings(deadline=None, max_examples=50)
def test_only_the_completion_is_scored(prompt: str, text: str) -> None:
    (record,) = Encoder(byte_tokenizer(), 100).encode([RecordText(text, prompt=prompt)])
    assert record.n_scored == (len(text) if prompt else len(text) - 1)
    assert record.text_bytes == len(text)


def test_a_prompt_after_a_special_token() -> None:
    (record,) = Encoder(with_bos(), 100).encode([RecordText("cd", prompt="ab")])
    assert len(record.ids) == 5
    assert (record.first, record.n_scored) == (3, 2)


def test_special_tokens_are_added_once() -> None:
    encoder = Encoder(with_bos(), 100)
    plain, templated = encoder.encode(
        [RecordText("abc"), RecordText("abc", add_special_tokens=False)]
    )
    assert len(plain.ids) == len(templated.ids) + 1
    assert plain.n_scored == 3


def test_a_prompt_as_long_as_the_context_leaves_nothing_to_score() -> None:
    (record,) = Encoder(byte_tokenizer(), 10).encode([RecordText("x" * 5, prompt="y" * 12)])
    assert record.truncated
    assert record.n_scored == 0


def test_one_token_has_nothing_to_predict() -> None:
    assert [r.n_scored for r in Encoder(byte_tokenizer(), 9).encode([RecordText("a")])] == [0]


def test_tokens_over_the_seam_belong_to_the_completion() -> None:
    """With merges a token can hold the prompt's end and the completion's start."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"a": 0, "b": 1, "ab": 2, "c": 3}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    (record,) = Encoder(tokenizer, 9).encode([RecordText("bc", prompt="ca")])
    assert record.ids == [3, 2, 3]
    assert record.first == 1


@pytest.mark.parametrize("n", [0, 1])
def test_few(n: int) -> None:
    assert len(Encoder(byte_tokenizer(), 9).encode([RecordText("ab")] * n)) == n
