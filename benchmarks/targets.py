"""Does the auditor find what is there, and nothing else? Targets whose leak is known beforehand.

    python -m benchmarks.targets --model ../shared/models/llama-base \\
        --data ../shared/data/gsm8k.jsonl

One split of the data; the same base is trained on its members for 1, 2 and 4 epochs, whole and with
an adapter (LoRA) for twice as many. More epochs must leak more; an adapter is compared with the
whole model at the loss on nonmembers that is nearest to its own. Then the null: a model that was
trained on none of these records (a shadow, whose members are others) is audited with them, in all
settings, and nothing may be found.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from auditor import AuditConfig, AuditResult, audit
from auditor.targets.config import TrainConfig
from auditor.targets.make import train
from benchmarks.machine import machine

EPOCHS = {"full": (1, 2, 4), "lora": (2, 4, 8)}
NULL_VARIANTS = "bnb-nf4,prune-magnitude:sparsity=0.5,cluster:k=8"


def target(given: argparse.Namespace, name: str, **more: Any) -> Path:  # noqa: ANN401
    """Train a target, or find it."""
    keys = {
        "model": given.model,
        "data": given.data,
        "out": str(given.out / name),
        "limit": given.limit,
        "max_length": 192,
        "patience": 0,
        "validation_share": 0.05,
        "eval_records": 1000,
    }
    made = train(TrainConfig.model_validate({**keys, **more}), tell=print)
    return made[0].folder


def audited(
    given: argparse.Namespace,
    name: str,
    model: Path,
    records: Path,
    **more: Any,  # noqa: ANN401
) -> AuditResult:
    """Audit a model on the records of a target."""
    is_adapter = (model / "adapter_config.json").is_file()
    keys = {
        "model": given.model if is_adapter else str(model),
        "adapter": str(model) if is_adapter else None,
        "reference": given.model,
        "members": str(records / "members.jsonl"),
        "nonmembers": str(records / "nonmembers.jsonl"),
        "variants": "original",
        "settings": "NR",
        "attacks": "loss,min-k-plus-plus,ref,ez",
        "fpr": "0.05",
        "max_length": 192,
        "output_path": str(given.out / "audits" / name),
    }
    return audit(AuditConfig.model_validate({**keys, **more}))


def leak(result: AuditResult, folder: Path) -> dict[str, Any]:
    """Losses and figures of a target."""
    about = json.loads((folder / "target.json").read_text(encoding="utf-8"))
    last = about["epochs"][-1]
    return {
        "loss_members": round(last["members"], 3),
        "loss_nonmembers": round(last["nonmembers"], 3),
        **{
            name: [round(n, 3) for n in (a.auc.value or 0, a.auc.low or 0, a.auc.high or 0)]
            for name, a in result.variants[0].attacks.items()
        },
    }


def run(given: argparse.Namespace) -> dict[str, Any]:
    """All of it."""
    table = {}
    for method, epochs in EPOCHS.items():
        for n in epochs:
            name = f"{method}-{n}"
            folder = target(given, name, method=method, epochs=n)
            table[name] = leak(audited(given, name, folder, folder), folder)
            print(name, json.dumps(table[name]), flush=True)
    records = target(given, "null", epochs=2, shadows=1, limit=None)
    null = audited(
        given,
        "null",
        records / "shadow-1",
        records,
        settings="NR,SR,MR",
        attacks="",
        variants=NULL_VARIANTS,
    )
    return {"machine": machine(), "leak": table, "null": nothing(null)}


def nothing(result: AuditResult) -> dict[str, Any]:
    """What was told on a model that saw none of the records."""
    leakage = result.leakage
    learned = [] if leakage is None else leakage.comparisons
    told = [c for c in [*result.comparisons, *learned] if (c.p_adjusted or 1) < 0.05]
    settings = [] if leakage is None else leakage.settings
    alone = result.variants[0].attacks["ez"].auc
    over = [s for s in settings if (s.figures.auc.low or 0) > 0.5]
    return {
        "comparisons": len(result.comparisons) + len(learned),
        "told": len(told),
        "attackers": len(settings),
        "whose interval lies above a half": len(over),
        "best of the training-free attacks, p": None
        if leakage is None or leakage.best is None
        else leakage.best.p_value,
        "AUC of ez on the original": [
            round(n or 0, 3) for n in (alone.value, alone.low, alone.high)
        ],
    }


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description="Targets whose leak is known beforehand.")
    parser.add_argument("--model", required=True, help="The base.")
    parser.add_argument("--data", required=True, help="The pool, as for train.")
    parser.add_argument("--limit", type=int, default=1200, help="Records of the pool.")
    parser.add_argument("--out", type=Path, default=Path("runs/targets"))
    print(json.dumps(run(parser.parse_args()), indent=1))


if __name__ == "__main__":
    main()
