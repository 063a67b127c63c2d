"""The figures show what the audit says: curves, marks, notes, bins and rows against the numbers."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D

from auditor.finished import Finished, read_finished
from auditor.report.figures import interval
from auditor.report.plots import Drawings, draw, roc_drawing
from auditor.report.plots.canvas import SPOT, plain_style, tone
from auditor.report.plots.curves import Curves, find_sources, most_leaking
from auditor.report.plots.drawing import Drawing
from auditor.report.plots.forest import draw_forest, find_blocks
from auditor.report.plots.signals import draw_signals, find_spreads
from auditor.results import SettingResult
from auditor.stats.curves import roc_curve
from tests.report_cases import invented_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """An audit of three variants with a reference."""
    return read_finished(invented_run(tmp_path_factory.mktemp("plots") / "run"))


@pytest.fixture(scope="module")
def drawings(finished: Finished) -> Drawings:
    return draw(finished)


def axes_of(drawing: Drawing) -> Axes:
    (axes,) = drawing.figure.axes
    return axes


def marked(drawing: Drawing, gid: str) -> Line2D:
    """The mark with a gid."""
    (found,) = drawing.figure.findobj(lambda artist: artist.get_gid() == gid)
    assert isinstance(found, Line2D)
    return found


def setting(finished: Finished, attack: str, versions: list[str]) -> SettingResult:
    """What the audit found with the reference, cross-fitted."""
    assert finished.result.leakage is not None
    (found,) = (
        one
        for one in finished.result.leakage.settings
        if (one.attack, one.versions, one.with_reference) == (attack, versions, True)
        and one.supervision == "crossfit"
    )
    return found


def test_drawn_curves_are_the_statistics_with_their_widened_bands(
    finished: Finished, drawings: Drawings
) -> None:
    names = list(finished.signals)
    held = {
        "original": ("single", names[:1], finished.signals[names[0]]["single-ref"]),
        "together": ("combined", names, finished.over_all["combined-ref"]),
    }
    axes = axes_of(drawings.roc)
    bands = {to_hex(found.get_facecolor()[0]): found for found in axes.collections}
    config = finished.config
    for kind, (attack, versions, signal) in held.items():
        found = setting(finished, attack, versions)
        assert found.noise_share
        curve = roc_curve(
            signal[finished.is_member],
            signal[~finished.is_member],
            confidence=finished.result.confidence,
            draws=config.bootstrap,
            seed=config.seed,
            inflation=float(np.sqrt(1 + found.noise_share)),
            rates=config.fpr,
        )
        (line,) = (line for line in axes.lines if line.get_label() == kind)
        seen = curve.tpr > axes.get_ylim()[0]
        np.testing.assert_array_equal(line.get_xdata(), curve.fpr)
        np.testing.assert_array_equal(np.asarray(line.get_ydata())[seen], curve.tpr[seen])
        corners = {(x, y) for x, y in bands[tone(kind)].get_paths()[0].vertices}
        begin = int(np.argmax(curve.low > 0))
        assert 0 < begin < 10
        assert {*zip(curve.fpr[begin:], curve.high[begin:], strict=True)} <= corners
        assert {*zip(curve.fpr[begin:], curve.low[begin:], strict=True)} <= corners
        assert min(x for x, _ in corners) == curve.fpr[begin]


def test_marks_and_notes_of_the_reported_rate_are_the_audits_own_figures(
    finished: Finished, drawings: Drawings
) -> None:
    names = list(finished.signals)
    found = setting(finished, "combined", names).figures.tpr_at_fpr["0.05"]
    assert found.value is not None and found.low is not None and found.high is not None
    mark = marked(drawings.roc, "together-at-0-05")
    assert (mark.get_xdata(), mark.get_ydata()) == ([0.05], [found.value])
    note = drawings.roc.notes["together-at-0-05"]
    digits = f"{100 * found.value:.1f}% [{100 * found.low:.1f}%, {100 * found.high:.1f}%]"
    assert f"TPR {digits} at 5% FPR; 200 members, 200 nonmembers" in note


def test_curves_answer_to_the_pointer_where_they_are(drawings: Drawings) -> None:
    spots = [gid for gid in drawings.roc.notes if gid.startswith(f"{SPOT}original-")]
    assert len(spots) >= 6
    (line,) = (line for line in axes_of(drawings.roc).lines if line.get_label() == "original")
    points = {*zip(line.get_xdata(), line.get_ydata(), strict=True)}
    for gid in spots:
        mark = marked(drawings.roc, gid)
        (x,), (y,) = mark.get_xdata(), mark.get_ydata()
        assert (x, y) in points
        assert f"TPR {100 * y:.1f}% [" in drawings.roc.notes[gid]
        assert f"at {100 * x:.2g}% FPR" in drawings.roc.notes[gid]


def test_alone_beside_and_together_are_attacks_of_one_kind(finished: Finished) -> None:
    learned = find_sources(finished)
    assert learned.original is not None and learned.together is not None
    assert learned.original.attack == "single-ref"
    assert {one.attack for one in learned.variants.values()} == {"single-ref"}
    assert {one.attack for one in learned.pairs.values()} == {"paired-ref"}
    assert learned.together.attack == "combined-ref"

    signals = {
        name: {attack: x for attack, x in found.items() if not attack.startswith("single")}
        for name, found in finished.signals.items()
    }
    free = find_sources(replace(finished, signals=signals))
    assert free.original is not None and free.together is not None
    primary = finished.result.primary_attack
    assert {free.original.attack, *(one.attack for one in free.variants.values())} == {primary}
    assert {one.attack for one in free.pairs.values()} == {"gap"}
    assert (free.together.attack, free.together.inflation) == ("mean-rank", 1.0)


def test_most_leaking_is_of_the_largest_auc_and_never_noise(finished: Finished) -> None:
    variants = find_sources(finished).variants
    chosen = most_leaking(variants)
    assert chosen is not None
    assert chosen.auc.value == max(one.auc.value or 0.0 for one in variants.values())
    name = chosen.versions[0]
    other = most_leaking(
        {f"noise({key})" if key == name else key: variants[key] for key in variants}
    )
    assert other is not None and other is not chosen
    assert most_leaking({f"noise({name})": chosen}) is None


def test_records_that_the_blind_baseline_left_out_are_left_out_of_its_curve(
    finished: Finished,
) -> None:
    blind = finished.over_all["blind"].copy()
    blind[np.flatnonzero(finished.is_member)[:50]] = np.nan
    curves = Curves(replace(finished, over_all={**finished.over_all, "blind": blind}))
    assert curves.sources.blind is not None
    curve = curves.of(curves.sources.blind)
    assert (curve.n_members, curve.n_nonmembers) == (150, 200)


def test_what_is_absent_is_left_out_of_the_curves(tmp_path: Path) -> None:
    finished = read_finished(invented_run(tmp_path / "run", beyond=False, n=100))
    bare = replace(finished, over_all={})
    drawn = draw(bare)
    labels = [line.get_label() for line in axes_of(drawn.roc).lines]
    assert "original" in labels and "variant" in labels
    assert not {"pair", "together", "blind"} & {*labels}
    assert [line.setting for block in find_blocks(bare.result) for line in block.rows] == ["NR"] * 3
    assert "AUC" in drawn.roc.description
    assert {*drawn.roc_of} == {*list(bare.signals)[1:]}
    # 50 nonmembers support no TPR, so that there is no mark at a rate.
    assert not [gid for gid in drawn.roc.notes if "-at-" in gid]


def test_the_card_gets_the_same_roc_figure(finished: Finished, drawings: Drawings) -> None:
    alone = roc_drawing(finished, width="wide")
    assert (alone.name, alone.notes) == (drawings.roc.name, drawings.roc.notes)


def test_forest_rows_are_the_comparisons_and_filled_where_left(
    finished: Finished, drawings: Drawings
) -> None:
    result = finished.result
    assert result.leakage is not None
    wide, narrow = drawings.forest
    rows = [row for block in find_blocks(result) for row in block.rows]
    assert len(rows) == len(wide.notes) == len(narrow.notes)
    differences = {item.difference for item in result.comparisons if item.metric == "auc"}
    gains = {item.difference for item in result.leakage.comparisons if item.metric == "auc"}
    asked = [
        item
        for item in result.leakage.comparisons
        if item.metric == "auc" and item.family == "primary" and item.supervision == "crossfit"
    ]
    assert {item.with_reference for item in asked} == {True, False}
    assert {item.difference for item in asked} <= {row.found for row in rows}
    assert sum("(R)" in row.label for row in rows) >= sum(item.with_reference for item in asked)
    for drawing in (wide, narrow):
        low, high = axes_of(drawing).get_xlim()
        for row, gid in zip(rows, drawing.notes, strict=True):
            assert row.found in (differences if row.setting == "NR" else gains)
            mark = marked(drawing, gid)
            assert mark.get_xdata() == [row.found.value]
            assert low < (row.found.low or 0.0) and (row.found.high or 0.0) < high
            assert row.p_adjusted is not None
            assert row.is_left == (row.p_adjusted < 0.05)
            assert to_hex(mark.get_markerfacecolor()) == (
                to_hex(mark.get_markeredgecolor()) if row.is_left else tone("paper")
            )
            figures = re.findall(r"[\d.]+", interval(row.found))
            assert re.findall(r"[\d.]+", drawing.notes[gid].split("AUC ")[1])[:3] == figures
    assert {row.is_left for row in rows} == {True, False}


def test_a_difference_that_is_left_is_starred_and_bold(finished: Finished) -> None:
    rows = [row for block in find_blocks(finished.result) for row in block.rows]
    with plain_style():
        wide, _ = draw_forest(finished)
    texts = {text.get_text() for text in wide.figure.texts}
    bold = [text for text in wide.figure.texts if text.get_weight() == "bold"]
    stars = [text for text in bold if text.get_text() == "*"]
    assert len(stars) == sum(row.is_left for row in rows)
    assert "filled and *: left after Holm's correction" in " ".join(texts)


def test_nothing_compared_is_no_forest(finished: Finished) -> None:
    bare = finished.result.model_copy(update={"comparisons": [], "leakage": None})
    with plain_style():
        assert draw_forest(replace(finished, result=bare)) == []


def test_bins_hold_every_record_of_each_side_and_are_the_same_for_all(finished: Finished) -> None:
    spreads = find_spreads(finished)
    assert spreads is not None
    assert {*spreads.of} == {*finished.signals}
    for name, found in spreads.of.items():
        signal = finished.signals[name][spreads.attack]
        for shares, side in ((found.members, True), (found.nonmembers, False)):
            values = signal[finished.is_member == side]
            assert shares.sum() == pytest.approx(1)
            inner = spreads.edges[1:-1]
            counts = np.bincount(
                np.searchsorted(inner, values, side="right"), minlength=len(shares)
            )
            np.testing.assert_allclose(shares, counts / len(values))
        assert found.median_member == np.median(signal[finished.is_member])


def test_signals_of_all_versions_share_their_axes(drawings: Drawings) -> None:
    ends = {(axes_of(one).get_xlim(), axes_of(one).get_ylim()) for one in drawings.signals.values()}
    assert len(ends) == 1


@pytest.mark.parametrize("shape", ["equal", "long tail", "zeros"])
def test_signals_of_any_shape_are_drawn(finished: Finished, shape: str) -> None:
    n, rng = len(finished), np.random.default_rng(0)
    signal = {
        "equal": np.full(n, -3.0),
        "long tail": np.exp(rng.normal(0, 2, n)),
        "zeros": np.where(rng.random(n) < 0.5, 0.0, 7.0),
    }[shape]
    attack = finished.result.primary_attack
    signals = {name: {**found, attack: signal} for name, found in finished.signals.items()}
    one = replace(finished, signals=signals)
    spreads = find_spreads(one)
    assert spreads is not None and spreads.in_powers == (shape == "long tail")
    assert (np.diff(spreads.edges) > 0).all()
    with plain_style():
        drawn = draw_signals(one)
    for drawing in drawn.values():
        assert axes_of(drawing).get_xscale() == ("log" if shape == "long tail" else "linear")
