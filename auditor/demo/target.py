"""The demo's target: a small Llama, trained on invented letters on the spot, that leaks.

First a base on letters of a third pile, which becomes the reference; then a fine-tune on the
members. Both are written as Hugging Face directories, so that the audit meets what it meets in
earnest. `target.json` is written last: a target without it is made again.
"""

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast
from transformers.utils import logging

from auditor.demo.letters import letters
from auditor.errors import StoreError
from auditor.files import write_text
from auditor.report.progress import Tell

END = "<|end|>"
MARK = ".demo"
IGNORED = -100
# What `audit --model .../target/model` reads by itself. The sides are halves of a shuffled list, so
# that no coin was thrown for each record: membership stays given.
AUDIT = {
    "model": "model",
    "members": "members.jsonl",
    "nonmembers": "nonmembers.jsonl",
    "reference": "base",
    "membership": "given",
}


@dataclass(frozen=True)
class Size:
    """How large the demo is; the default is made for three minutes on two cores."""

    n_base: int = 3000
    n_members: int = 1000
    n_nonmembers: int = 1000
    vocabulary: int = 1024
    width: int = 128
    layers: int = 3
    base_epochs: int = 2
    epochs: int = 5
    batch: int = 32
    learning_rate: float = 2e-3


@dataclass(frozen=True)
class Target:
    """Where the parts of a target lie."""

    folder: Path

    @property
    def model(self) -> Path:
        """The fine-tuned model."""
        return self.folder / "model"

    @property
    def reference(self) -> Path:
        """The base, which saw none of the members."""
        return self.folder / "base"

    @property
    def members(self) -> Path:
        """The letters that the model was fine-tuned on."""
        return self.folder / "members.jsonl"

    @property
    def nonmembers(self) -> Path:
        """Letters of the same pile that it never saw."""
        return self.folder / "nonmembers.jsonl"


def make_target(
    folder: Path, *, seed: int = 0, size: Size | None = None, tell: Tell = lambda _: None
) -> Target:
    """Train the demo's target, or find it where it was trained before.

    Args:
        folder: Where it goes; replaced as a whole when the seed or the size differ.
        seed: Of letters, split, weights and batches.
        size: How large.
        tell: Told what goes on.

    Raises:
        StoreError: The folder cannot be written.
    """
    size = size or Size()
    about = {"seed": seed, **asdict(size)}
    target = Target(folder)
    try:
        made = json.loads((folder / "target.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        made = {}
    if made.get("made_with") == about and made.get("audit") != AUDIT:
        # Of an earlier version, which wrote down no more than how it was made.
        _describe(folder, made)
    if made.get("made_with") == about:
        tell("the model is there already")
        return target
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MARK).is_file():
        raise StoreError(
            f"{folder} must be empty or hold a target of the demo",
            seen="other files",
            fix="choose another --output-path",
        )
    shutil.rmtree(folder, ignore_errors=True)
    write_text(folder / MARK, "made by compleak-llm demo; may be removed as a whole\n")
    pile = letters(size.n_base + size.n_members + size.n_nonmembers, seed=seed)
    base, rest = pile[: size.n_base], pile[size.n_base :]
    # One pile, shuffled: a record's side is chance and nothing else.
    order = np.random.default_rng(seed).permutation(len(rest))
    members = [rest[i] for i in order[: size.n_members]]
    nonmembers = [rest[i] for i in order[size.n_members :]]
    for path, texts in ((target.members, members), (target.nonmembers, nonmembers)):
        write_text(path, "".join(json.dumps({"text": text}) + "\n" for text in texts))

    logging.disable_progress_bar()
    begin = time.perf_counter()
    tokenizer = _tokenizer(base, size.vocabulary)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(_config(tokenizer, size), dtype=torch.float32)
    losses = {}
    for name, texts, epochs, path in (
        ("base", base, size.base_epochs, target.reference),
        ("fine-tune", members, size.epochs, target.model),
    ):
        tell(f"training the {name} on {len(texts):,} letters, {epochs} epochs")
        losses[name] = train(model, tokenizer, texts, epochs=epochs, size=size, seed=seed)
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
    seconds = time.perf_counter() - begin
    tell(f"trained in {seconds:.0f} s")
    _describe(folder, {"made_with": about, "losses": losses})
    return target


def _describe(folder: Path, made: dict[str, Any]) -> None:
    record = {**made, "schema_version": 1, "audit": AUDIT}
    write_text(folder / "target.json", json.dumps(record, indent=1) + "\n")


def _tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=END, eos_token=END, pad_token=END, model_max_length=256
    )


def _config(tokenizer: PreTrainedTokenizerFast, size: Size) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        intermediate_size=3 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=max(1, size.width // 32),
        num_key_value_heads=max(1, size.width // 32),
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )


def train(
    model: Any,  # noqa: ANN401 - any causal LM
    tokenizer: Any,  # noqa: ANN401
    texts: list[str],
    *,
    epochs: int,
    size: Size,
    seed: int,
) -> list[float]:
    """Train in place: AdamW, a linear fall of the rate, a record a row, never packed.

    Returns:
        The mean loss of each epoch, in nats per token.
    """
    ids = tokenizer(texts)["input_ids"]
    rng = np.random.default_rng(seed)
    n_steps = epochs * -(-len(ids) // size.batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=size.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / n_steps)
    model.train()
    means = []
    for _ in range(epochs):
        losses = []
        for rows, labels in _batches(ids, size.batch, rng):
            loss = model(input_ids=rows, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        means.append(float(np.mean(losses)))
    model.eval()
    return means


def _batches(
    ids: list[list[int]], batch: int, rng: np.random.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Shuffled batches, padded on the right; padding has no label."""
    order = rng.permutation(len(ids))
    for start in range(0, len(ids), batch):
        chosen = [ids[i] for i in order[start : start + batch]]
        width = max(map(len, chosen))
        rows = torch.zeros(len(chosen), width, dtype=torch.long)
        labels = torch.full((len(chosen), width), IGNORED, dtype=torch.long)
        for row, record in enumerate(chosen):
            rows[row, : len(record)] = labels[row, : len(record)] = torch.tensor(record)
        yield rows, labels
