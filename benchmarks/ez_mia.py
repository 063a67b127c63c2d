"""EZ-MIA's protocol at any scale: fine-tune on chunks of one shuffled pool, attack with the base.

    python -m benchmarks.ez_mia --model ../shared/models/gpt2-base --text ../shared/data/gsm8k.jsonl
    python -m benchmarks.ez_mia --model gpt2 --text wiki.train.tokens --chunks 20000

The paper (arXiv 2601.12104) cuts a text into chunks of 128 tokens, shuffles them into one pool,
fine-tunes on a half of it for 3 epochs, and attacks with the untouched base as reference. It
reports for GPT-2 on WikiText an AUC of 0.98 and a TPR of 66.3% at 1% FPR. What is made here is a
target like any other (`compleak-llm train`), and an audit of it. What came out, and what differs
from the paper, stands in benchmarks/README.md.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

from auditor import AuditConfig, audit
from auditor.compress.checkpoint import load_tokenizer, open_checkpoint
from auditor.files import write_text
from auditor.targets.config import TrainConfig
from auditor.targets.make import train
from benchmarks.machine import machine

CHUNK = 128
EPOCHS = 3
PUBLISHED = {"auc": 0.98, "tpr@0.01": 0.663}
ATTACKS = ("loss", "zlib", "min-k", "min-k-plus-plus", "ref", "ez")


def text_of(path: Path) -> str:
    """All text of a file: of JSON lines their `text`, else the file as it is."""
    content = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return "\n".join(json.loads(line)["text"] for line in content.splitlines() if line)
    return content


def chunks_of(texts: list[str], tokenizer: Any, *, n: int, seed: int) -> list[str]:  # noqa: ANN401
    """Chunks of `CHUNK` tokens that are the same tokens when they are read again, shuffled."""
    found: dict[str, None] = {}
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        for start in range(0, len(ids) - CHUNK + 1, CHUNK):
            chunk = tokenizer.decode(ids[start : start + CHUNK])
            again = tokenizer(chunk, add_special_tokens=False)["input_ids"]
            if len(again) == CHUNK:
                found.setdefault(chunk)
    pool = list(found)
    random.Random(seed).shuffle(pool)
    return pool[:n]


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Make the target, audit it, and give back the figures."""
    out: Path = given.out
    tokenizer = load_tokenizer(open_checkpoint(given.model))
    texts = [text_of(path) for path in given.text]
    pool = chunks_of(texts, tokenizer, n=given.chunks, seed=given.seed)
    data = out / "pool.jsonl"
    write_text(data, "".join(json.dumps({"text": chunk}) + "\n" for chunk in pool))
    made = TrainConfig.model_validate(
        {
            "model": given.model,
            "data": str(data),
            "out": str(out / "target"),
            "epochs": EPOCHS,
            "patience": 0,
            "learning_rate": given.learning_rate,
            "batch_size": given.batch_size,
            "max_length": CHUNK,
            "validation_share": 0.02,
            "eval_records": 300,
            "seed": given.seed,
        }
    )
    (target,) = train(made, tell=print)
    config = AuditConfig.model_validate(
        {
            "model": str(target.folder),
            "members": str(target.folder / "members.jsonl"),
            "nonmembers": str(target.folder / "nonmembers.jsonl"),
            "reference": given.model,
            "attacks": ",".join(ATTACKS),
            "settings": "NR",
            "fpr": "0.01,0.05",
            "max_length": CHUNK,
            "output_path": str(out / "audit"),
        }
    )
    result = audit(config)
    original = result.variants[0]
    last = target.about["epochs"][-1]
    return {
        "machine": machine(),
        "model": Path(given.model).name,
        "texts": [path.name for path in given.text],
        "members": target.about["split"]["n_members"],
        "nonmembers": target.about["split"]["n_nonmembers"],
        "learning_rate": target.about["training"]["learning_rate"],
        "loss_members": round(last["members"], 3),
        "loss_nonmembers": round(last["nonmembers"], 3),
        "attacks": {
            name: {
                "auc": _rounded(found.auc),
                "tpr@0.01": _rounded(found.tpr_at_fpr["0.01"]),
            }
            for name, found in original.attacks.items()
        },
        "published": PUBLISHED,
    }


def _rounded(estimate: Any) -> list[float] | str:  # noqa: ANN401
    if estimate.value is None:
        return str(estimate.absent)
    return [round(number, 3) for number in (estimate.value, estimate.low, estimate.high)]


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", required=True, help="The base: a folder or a model id.")
    parser.add_argument("--text", type=Path, nargs="+", required=True, help=".jsonl or plain text.")
    parser.add_argument("--chunks", type=int, default=2200, help="Chunks in the pool.")
    parser.add_argument("--learning-rate", type=float, default=None, help="As for train.")
    parser.add_argument("--batch-size", type=int, default=16, help="As for train.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/ez-mia"))
    given = parser.parse_args()
    print(json.dumps(run(given), indent=1))


if __name__ == "__main__":
    main()
