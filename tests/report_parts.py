"""The parts of an invented audit that are words and counts: receipts, warnings, files, tokens.

Texts come from models, records and paths, so that each has a hostile form as well.
"""

from collections.abc import Sequence
from itertools import cycle
from typing import Literal

import numpy as np
import numpy.typing as npt

from auditor.compress.receipt import CalibrationUse, Compressed, Receipt, Skipped
from auditor.results import (
    Artifact,
    Estimate,
    LengthSummary,
    ModelIdentity,
    Side,
    Timing,
    Timings,
    TokenView,
    Warned,
)

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "--> <!-- compleak-llm:end -->",
    "<!-- compleak-llm:begin -->",
    "a|b",
    "`rm -rf`",
    "```\n# heading",
    "=cmd()",
    "+1+1",
    "-2+3",
    "@SUM(A1)",
    "\u202egnirts\u202c",
    "\u05e9\u05dc\u05d5\u05dd",
    "\x00\x07\x1b[31mred\x9b",
    "\u2028line",
    "</title></svg><svg onload=alert(1)>",
    "</script><script>alert(2)</script>",
    "javascript:alert(1)",
    "[click](javascript:alert(1))",
    "{{ 7*7 }}{% raw %}",
    "&lt;b&gt;&amp;",
    "$(id)",
    "it's",
    "\ud7ff\ufffe\U0001f9ea",
    "x" * 300,
)
MODULES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
N_LAYERS = 6
N_WEIGHTS = 196_608
WORDS = (
    "In the morning the engine would not start , so we rang the garage and waited . It was 7 . 30 "
    "when a man came ; he said : It is the pump . We paid 42 pounds ."
)


class Texts:
    """Texts that come from outside: tame ones, or hostile ones beside them in turn."""

    def __init__(self, *, hostile: bool) -> None:
        self._bad = cycle(HOSTILE) if hostile else None

    def __call__(self, tame: str) -> str:
        """The text, or it and a hostile one."""
        return tame if self._bad is None else f"{tame} {next(self._bad)}"


def identity(name: str, *, mark: str) -> ModelIdentity:
    """A model by its name; `mark` tells its weights from others."""
    return ModelIdentity(
        name=name,
        model_type="gpt2",
        sha256=(mark * 64)[:64],
        tokenizer_sha256="d8" * 32,
        n_parameters=5_918_720,
        context_tokens=512,
        dtype="float32",
    )


def side(n_tokens: npt.NDArray[np.int64], *, warned: bool) -> Side:
    """What was found on one side.

    Args:
        n_tokens: Tokens of its records, shape (n,).
        warned: Whether some were left out and some cut.
    """
    n = len(n_tokens)
    return Side(
        n_read=n + (3 if warned else 0),
        n_audited=n,
        n_duplicates=2 if warned else 0,
        n_empty=0,
        n_too_short=1 if warned else 0,
        n_overlap=0,
        n_near_duplicates=1 if warned else 0,
        n_truncated=int((n_tokens == n_tokens.max()).sum()) if warned else 0,
        left_out_ids=["0123456789abcdef"] if warned else [],
        tokens=LengthSummary(
            mean=float(n_tokens.mean()),
            median=float(np.median(n_tokens)),
            low=int(n_tokens.min()),
            high=int(n_tokens.max()),
        ),
    )


def receipt(name: str, canonical: str, place: int, texts: Texts) -> Receipt:
    """What was done to make a version; the original's for place 0."""
    skipped = [
        Skipped(module=texts("transformer.wte"), n_parameters=1_048_576, reason="embedding"),
        Skipped(module="(norm of 13 modules)", n_parameters=6_656, reason="norm"),
    ]
    if place == 0:
        return Receipt(
            variant=canonical,
            library="transformers 5.23.0",
            n_parameters=5_918_720,
            n_compressed=0,
            n_changed=0,
            compressed=[],
            skipped=skipped,
            bits_per_weight=32.0,
            sparsity=0.0,
            relative_error=0.0,
            bytes_memory=23_674_880,
            bytes_disk=23_674_880,
            compress_s=0.0,
        )
    sparsity = 0.5 if name.startswith("prune") else 0.09
    error = 0.02 + 0.03 * place
    compressed = [
        Compressed(
            module=texts(f"transformer.h.{layer}.{module}") if not layer else f"h.{layer}.{module}",
            kind="Linear4bit",
            n_parameters=N_WEIGHTS,
            n_changed=N_WEIGHTS - 997 * layer,
            sparsity=sparsity,
            relative_error=error,
        )
        for layer in range(N_LAYERS)
        for module in MODULES
    ]
    calibrated = CalibrationUse(
        source=texts("calibration.jsonl"),
        n_records=128,
        n_samples=128,
        n_tokens=65_536,
        sha256="ca" * 32,
        ids=["00112233445566ff"],
    )
    published = name.startswith("checkpoint:")
    return Receipt(
        variant=canonical,
        library=texts("bitsandbytes 0.50.2"),
        method=texts("gptq, 4 bits") if published else None,
        n_parameters=5_918_720,
        n_compressed=N_WEIGHTS * len(compressed),
        n_changed=sum(one.n_changed for one in compressed),
        compressed=compressed,
        skipped=skipped,
        bits_per_weight=16.0 / place + 0.5,
        sparsity=sparsity,
        relative_error=error,
        correlation=0.998 if published else None,
        bytes_memory=23_674_880 // (place + 1),
        bytes_disk=18_000_000 // (place + 1),
        compress_s=0.4 * place,
        calibration=calibrated if place % 3 == 2 else None,
        batch_dependent=place == 1,
        repairs=[texts("4-bit layers change at the first forward; they were kept from it")]
        if place == 1
        else [],
        notes=[texts("its configuration names another original")] if published else [],
    )


def told_apart(auc: Estimate) -> Warned:
    """The blind baseline's warning, which stands above all others."""
    return Warned(
        code="told-apart",
        severity="severe",
        message="Members and nonmembers can be told apart without the model: the blind baseline "
        f"has an AUC of {auc.value:.3f} [{auc.low:.3f}, {auc.high:.3f}]. The figures below measure "
        "the two lists as much as the model; draw both sides from one shuffled pool.",
    )


def of_records(n: int, texts: Texts) -> list[Warned]:
    """What reading n records a side can warn of; all other warnings the product finds itself."""
    rows: list[tuple[str, Literal["info", "warning"], str]] = [
        ("truncated", "warning", f"{n // 8:,} of {n:,} members were cut to the context."),
        ("duplicates", "warning", f"2 of {n:,} members are later copies of another: left out."),
        ("near-duplicates", "warning", texts("2 records share half of their 13-grams.")),
        ("unequal-lengths", "warning", texts("Members and nonmembers differ in length.")),
        ("note", "info", texts("A record holds a character that cannot be shown.")),
    ]
    return [Warned(code=code, severity=severity, message=text) for code, severity, text in rows]


def artifacts(ids: Sequence[str], texts: Texts) -> list[Artifact]:
    """Something of each kind in the files of checkpoints."""
    return [
        Artifact(
            checkpoint=texts("models/chat-nf4"),
            file=texts("config.json"),
            kind="record",
            n_records=3,
            n_whole=2,
            n_members=3,
            record_ids=list(ids[:3]),
            message="3 members stand in this file: take it out before publishing",
            severity="severe",
        ),
        Artifact(
            checkpoint="models/chat-gptq",
            file=texts("quantize_config.json"),
            kind="calibration",
            n_records=16,
            n_whole=16,
            message="16 calibration texts stand in this file: take them out before publishing",
            severity="severe",
        ),
        Artifact(
            checkpoint="models/chat",
            file=texts("optimizer.pt"),
            kind="file",
            message="the optimizer's state does not belong in a release",
            severity="warning",
        ),
    ]


def token_views(
    ids: Sequence[str] | npt.NDArray[np.str_],
    names: Sequence[str],
    *,
    leak: float,
    seed: int,
    texts: Texts,
) -> list[TokenView]:
    """Three records token by token: two members and a nonmember; none without versions."""
    if not names:
        return []
    rng = np.random.default_rng([seed, 5])
    found = []
    whys: tuple[Literal["newly exposed", "surest member", "nonmember most like a member"], ...] = (
        "newly exposed",
        "surest member",
        "nonmember most like a member",
    )
    for number, (one, why) in enumerate(zip((ids[0], ids[1], ids[-1]), whys, strict=True)):
        words = [token if not k else f" {token}" for k, token in enumerate(WORDS.split())]
        # A token that has no character of its own, and one that is a line's end.
        tokens = ["<|endoftext|>", *words, "\n", "\ufffd", *(texts(" end") for _ in range(26))]
        n_scored = len(tokens) - 1
        shared = -rng.gamma(1.2, 1.8, n_scored)
        log_p = {
            name: np.round(
                np.minimum(shared + rng.normal(leak * (number < 2), 0.4, n_scored), 0), 4
            )
            for name in names
        }
        found.append(
            TokenView(
                record_id=str(one),
                is_member=number < 2,
                chosen=why,
                tokens=tokens,
                first=1,
                log_p={name: values.tolist() for name, values in log_p.items()},
            )
        )
    return found


def timings(names: Sequence[str], n: int) -> Timings:
    """Where the time of an audit of n records went."""
    return Timings(
        started_at="2026-11-24T12:35:50+00:00",
        total_s=41.5,
        records_s=0.8,
        search_s=0.1,
        blind_s=1.6,
        statistics_s=30.0,
        variants=[
            Timing(
                variant=name,
                load_s=0.1,
                compress_s=0.2,
                forward_s=1.1,
                rest_s=0.1,
                n_forward_records=n,
                n_forward_passes=n // 16 + 1,
                n_tokens=180 * n,
                peak_bytes=600 * 2**20,
            )
            for name in names
        ],
    )
