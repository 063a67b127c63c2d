"""What `train` prints: how a target came out, and what to do with it."""

import shlex
from typing import Any

from rich.table import Table

from auditor.report.catalogue import new_table
from auditor.targets.config import TrainConfig
from auditor.targets.make import Target

COLUMNS = ("train", "members", "nonmembers", "validation")


def target_table(target: Target) -> Table:
    """Losses after each epoch, in nats per token; the kept one is marked."""
    about = target.about
    split: dict[str, Any] = about["split"]
    table = new_table("epoch", *(f"loss on {name}" for name in COLUMNS), "")
    table.title = (
        f"{target.folder}: {about['method']}, {split['n_members']:,} members, "
        f"{split['n_nonmembers']:,} nonmembers"
    )
    for epoch in about["epochs"]:
        is_kept = epoch["epoch"] == about["kept_epoch"]
        losses = (epoch.get(name) for name in COLUMNS)
        table.add_row(
            f"{epoch['epoch']:g}",
            *("" if loss is None else f"{loss:.3f}" for loss in losses),
            "kept" if is_kept else "",
        )
    return table


def next_commands(targets: list[Target], config: TrainConfig) -> str:
    """The commands that audit what was made."""
    first, *shadows = targets
    out = shlex.quote(str(first.folder))
    base = shlex.quote(config.model)
    # A target in training's folder is an adapter where the method says so.
    is_adapter = config.method != "full"
    model = f"--model {base} --adapter" if is_adapter else "--model"
    lines = ["to audit it:", f"  compleak-llm audit {model} {out}"]
    if shadows:
        runs = []
        for number, shadow in enumerate(shadows, 1):
            runs.append(f"runs/shadow-{number}")
            path = shlex.quote(str(shadow.folder))
            lines.append(f"  compleak-llm audit {model} {path} --output-path {runs[-1]}")
        lines.append(f"  compleak-llm audit {model} {out} --shadow {','.join(runs)}")
    if config.canaries:
        lines.append(
            f"  compleak-llm audit {model} {out} --membership randomized \\\n"
            f"    --members {out}/canaries/members.jsonl "
            f"--nonmembers {out}/canaries/nonmembers.jsonl --output-path runs/canaries"
        )
    return "\n".join(lines)
