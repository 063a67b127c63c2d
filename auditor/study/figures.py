"""The figures of a study: every version's AUC with its interval, the original as a line."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from auditor.files import written_whole
from auditor.study.tables import ORIGINAL, Result, is_control, is_recovered, versions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from auditor.results import AuditResult

COLOURS = {"one-shot": "#1f5fa8", "recovered": "#b3541e", "control": "#6b6b6b"}


def write_figures(found: Sequence[Result], folder: Path) -> list[Path]:
    """One SVG for each target, the same byte for byte for the same results."""
    return [_write(one, folder / f"{one.name}.svg") for one in found]


def _write(result: Result, path: Path) -> Path:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    names = versions(result.alone)
    with mpl.rc_context({"svg.hashsalt": "compleak", "font.size": 8}):
        figure = Figure(figsize=(9, 0.9 + 0.22 * len(names)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, one in ((left, result.alone), (right, result.reference)):
            _draw(axes, one, names)
        left.set_yticks(range(len(names)), names)
        left.invert_yaxis()
        right.set_title(f"{result.reference.primary_attack}, with the base")
        left.set_title(result.alone.primary_attack)
        with written_whole(path, private=False) as part:
            figure.savefig(part, format="svg", metadata={"Date": None})
    return path


def _draw(axes: "Axes", result: "AuditResult", names: Sequence[str]) -> None:
    for place, name in enumerate(names):
        attack = result.variant(name).attacks.get(result.primary_attack)
        if attack is None or attack.auc.value is None:
            continue
        kind = "recovered" if is_recovered(name) else "control" if is_control(name) else "one-shot"
        auc = attack.auc
        value = attack.auc.value
        low, high = auc.low if auc.low is not None else value, auc.high or value
        axes.errorbar(
            value,
            place,
            xerr=[[value - low], [high - value]],
            fmt="o",
            ms=3.5,
            lw=1.2,
            color=COLOURS[kind],
        )
        if name == ORIGINAL:
            axes.axvline(value, color="#222222", lw=0.8)
            axes.axvspan(low, high, color="#222222", alpha=0.07, lw=0)
    axes.set_xlabel("AUC")
    axes.spines[["top", "right"]].set_visible(False)
