"""The page of a study: what was found in sentences, then the tables; a function of its results."""

from collections.abc import Sequence
from pathlib import Path

from auditor.files import write_text
from auditor.study.figures import write_figures
from auditor.study.recipe import Study
from auditor.study.run import results
from auditor.study.tables import (
    KINDS,
    LEVEL,
    Result,
    beside_table,
    beyond_training,
    controls_table,
    is_recovered,
    kinds_table,
    questions,
    recovery_table,
    settings_table,
    signs_of,
    targets_table,
    told,
    versions,
    versions_table,
)


def write_page(study: Study) -> Path:
    """Write `README.md` and the figures into the study's folder.

    Returns:
        The page.
    """
    found = [Result(*one) for one in results(study)]
    root = Path(study.output_path)
    figures = write_figures(found, root / "figures")
    path = root / "README.md"
    write_text(path, page(study, found, [p.relative_to(root).as_posix() for p in figures]))
    return path


def page(study: Study, found: Sequence[Result], figures: Sequence[str]) -> str:
    """The page in Markdown."""
    left = [name for name in study.targets if name not in {one.name for one in found}]
    parts = [
        f"# {study.study}",
        *([f"Not finished, and not in what follows: {', '.join(left)}."] if left else []),
        "## What was found",
        "\n".join(f"- {sentence}" for sentence in sentences(found)),
        "## The targets",
        targets_table(study, found),
        "## One version alone (NR), over all targets",
        f"↑ raised, ↓ lowered: told from the original at {LEVEL:g} after Holm's correction within "
        f"each audit, two-sided, paired on the same records; · not told.",
        kinds_table(found),
        "## Beside the original (SR) and together (MR)",
        beside_table(found),
        "## Controls",
        controls_table(found),
    ]
    for number, one in enumerate(found):
        parts += [f"## {one.name}", versions_table(one), settings_table(one)]
        if any(map(is_recovered, versions(one.reference))):
            parts.append(recovery_table(one))
        if number < len(figures):
            parts.append(f"![The versions of {one.name}]({figures[number]})")
    return "\n\n".join(parts) + "\n"


def sentences(found: Sequence[Result]) -> list[str]:
    """What can be said over all targets, null results as well as findings."""
    said = []
    for which, title in (("alone", "Without a reference"), ("reference", "With the base")):
        for kind in KINDS:
            signs = signs_of(kind, found, which)
            if signs:
                n, up, down = len(signs), signs.count("↑"), signs.count("↓")
                said.append(
                    f"{title}, {kind.title}: of {n} comparison{'s' * (n > 1)} with the original, "
                    "leakage was "
                    f"raised in {up}, lowered in {down}, and in {n - up - down} nothing could be "
                    "told."
                )
    trained = [
        c
        for result in found
        for version in versions(result.reference)
        if (c := beyond_training(result.reference, version)) is not None
    ]
    if trained:
        signs = [told(c.difference, c.p_adjusted) for c in trained]
        n, up, down = len(signs), signs.count("↑"), signs.count("↓")
        said.append(
            "Against the original trained further by the same steps: of "
            f"{n} version{'s' * (n > 1)} that were compressed and then trained on the members, "
            f"{up} gave away more, {down} less, and of {n - up - down} nothing could be told."
        )
    asked = [
        c
        for result in found
        for c in questions(result.reference)
        if c.question in ("SR over original and reference", "MR over original and reference")
    ]
    for setting in ("SR", "MR"):
        own = [c for c in asked if c.question.startswith(setting)]
        gained = sum(told(c.difference, c.p_adjusted) == "↑" for c in own)
        if own:
            said.append(f"{setting} added to original + reference in {gained} of {len(own)} cases.")
    return said
