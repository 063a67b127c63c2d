"""The embedded demo: a small model, trained on invented letters on the spot, then audited."""

from pathlib import Path

from auditor.config import AuditConfig

VARIANTS = "bnb-int8,bnb-nf4,bnb-fp4,prune-magnitude:sparsity=0.5,prune-magnitude:sparsity=0.7"


def demo_config(output: Path, *, variants: str | None = None, seed: int = 0) -> AuditConfig:
    """The audit of the demo's target in `output`/target, which need not be there yet.

    Args:
        output: The output folder of the demo.
        variants: Variants to audit; a selection of what needs no calibration when left out.
        seed: Of letters, split, training and audit.
    """
    target = output / "target"
    return AuditConfig.model_validate(
        {
            "model": str(target / "model"),
            "reference": str(target / "base"),
            "members": str(target / "members.jsonl"),
            "nonmembers": str(target / "nonmembers.jsonl"),
            "variants": variants or VARIANTS,
            "output_path": str(output),
            "seed": seed,
        }
    )
