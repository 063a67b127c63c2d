"""The release picture: which sets it shows, what it marks, and where its labels stand."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from auditor.finished import Finished, read_finished
from auditor.leakage.bounds import verdict_of
from auditor.report.plots import Drawings, draw
from auditor.report.plots.canvas import plain, plain_style
from auditor.report.plots.drawing import Drawing
from auditor.report.plots.labels import Box, Wanted, place
from auditor.report.plots.release import draw_release, lower_edge, thinned
from auditor.report.plots.sets import advised, find_picture
from auditor.results import Bound, Releases
from tests.report_cases import invented_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Three variants, every set of them."""
    return read_finished(invented_run(tmp_path_factory.mktemp("release") / "run"))


@pytest.fixture(scope="module")
def largest(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Twelve variants with an attacker's names, hundreds of sets."""
    folder = tmp_path_factory.mktemp("largest") / "run"
    return read_finished(invented_run(folder, n_variants=12, hostile=True, n=200))


def releases_of(finished: Finished) -> Releases:
    assert finished.result.leakage is not None
    assert finished.result.leakage.releases is not None
    return finished.result.leakage.releases


def with_releases(finished: Finished, **changes: Any) -> Finished:
    """The same audit with another judgement of its sets."""
    assert finished.result.leakage is not None
    releases = releases_of(finished).model_copy(update=changes)
    leakage = finished.result.leakage.model_copy(update={"releases": releases})
    return replace(finished, result=finished.result.model_copy(update={"leakage": leakage}))


def bounded(finished: Finished, at_most: float) -> Finished:
    """The same audit with a bound, each set judged by its own interval."""
    releases = releases_of(finished)
    bound = Bound(metric=releases.metric, at_most=at_most)
    rate = bound.metric.partition("@")[2]
    sets = [
        one.model_copy(update={"verdict": verdict_of(one.tpr_at_fpr[rate], bound)})
        for one in releases.sets
    ]
    return with_releases(finished, bound=bound, sets=sets, gate=sets[0])


def drawn(finished: Finished) -> list[Drawing]:
    with plain_style():
        return draw_release(finished)


def axes_of(drawing: Drawing) -> Axes:
    (axes,) = drawing.figure.axes
    return axes


def words_of(drawing: Drawing) -> set[str]:
    return {text.get_text() for text in drawing.figure.texts}


def test_every_set_stands_where_its_figures_say(finished: Finished) -> None:
    releases = releases_of(finished)
    rate = releases.metric.partition("@")[2]
    for drawing in drawn(finished):
        assert len(drawing.notes) == len(releases.sets)
        for one, gid in zip(releases.sets, drawing.notes, strict=True):
            (mark,) = drawing.figure.findobj(lambda artist, gid=gid: artist.get_gid() == gid)
            assert isinstance(mark, Line2D)
            found = one.tpr_at_fpr[rate]
            assert (mark.get_xdata(), mark.get_ydata()) == ([one.perplexity_mean], [found.value])
            filled = mark.get_markerfacecolor() != "#ffffff"
            assert filled == one.on_frontier
            assert f"{100 * (found.value or 0):.1f}% [" in drawing.notes[gid]
            assert f"mean perplexity {one.perplexity_mean:.2f}" in drawing.notes[gid]


def test_no_set_lies_below_and_left_of_the_edge(finished: Finished) -> None:
    picture = find_picture(finished)
    assert picture is not None
    corners = lower_edge(picture, 1e9)
    for (x0, y0), (x1, y1) in pairwise(corners):
        assert (x0 == x1 and y1 < y0) or (y0 == y1 and x0 <= x1)
    on_it = set(corners)
    for point in picture.points:
        beaten = [
            other
            for other in picture.points
            if other.perplexity < point.perplexity
            and (other.leakage.value or 0) < (point.leakage.value or 0)
        ]
        if (point.perplexity, point.leakage.value) in on_it:
            assert not beaten and point.on_frontier


def test_the_advised_set_is_the_first_that_is_under_the_bound(finished: Finished) -> None:
    # A bound that the largest set breaks and some set keeps.
    releases = releases_of(finished)
    rate = releases.metric.partition("@")[2]
    highs = sorted(one.tpr_at_fpr[rate].high or 0.0 for one in releases.sets)
    one = bounded(finished, highs[3] + 1e-6)
    judged = releases_of(one)
    chosen = advised(judged)
    under = [found for found in judged.sets if found.verdict == "under"]
    assert chosen == tuple(under[0].versions)
    for drawing in drawn(one):
        words = words_of(drawing)
        assert any(text.startswith("advised: ") for text in words)
        assert any(text.startswith("bound: at most ") for text in words)
        assert any(text.startswith("to be released: ") for text in words)
        levels = [
            line.get_ydata()[0] for line in axes_of(drawing).lines if len(line.get_ydata()) == 2
        ]
        assert judged.bound is not None and judged.bound.at_most in levels


def test_no_set_is_advised_where_none_is_shown_to_keep_the_bound(finished: Finished) -> None:
    one = bounded(finished, 1e-6)
    assert advised(releases_of(one)) is None
    assert not any(word.startswith("advised") for word in words_of(drawn(one)[0]))


def test_without_a_bound_all_but_the_version_to_leave_out_are_advised(finished: Finished) -> None:
    names = [part.version for part in releases_of(finished).parts]
    sentence = f"Leave out {names[2]} and TPR at 5% FPR falls from 20.0% to 10.0%."
    one = with_releases(finished, advice=sentence)
    assert advised(releases_of(one)) == (names[0], names[1], names[3])
    assert f"advised: all but {names[2]}" in words_of(drawn(one)[0])


def test_that_no_difference_is_shown_is_no_advice(finished: Finished) -> None:
    advice = "No difference is shown between publishing all 4 versions and the original alone: ..."
    one = with_releases(finished, advice=advice)
    assert advised(releases_of(one)) is None
    words = words_of(drawn(one)[0])
    assert "all 4 versions: no increase shown" in words
    assert "advised" not in words


def test_versions_stand_alone_where_no_set_was_judged(tmp_path: Path) -> None:
    finished = read_finished(invented_run(tmp_path / "run", beyond=False))
    wide, narrow = drawn(finished)
    assert wide.title == narrow.title == "Each version alone"
    assert len(wide.notes) == len(finished.signals)
    bare = [one.model_copy(update={"perplexity": None}) for one in finished.result.variants]
    result = finished.result.model_copy(update={"variants": bare})
    assert drawn(replace(finished, result=result)) == []


def test_of_many_quiet_sets_those_at_the_edges_are_kept(largest: Finished) -> None:
    picture = find_picture(largest)
    assert picture is not None
    points = [
        point._replace(perplexity=float(at), leakage=point.leakage.model_copy(update={"value": y}))
        for at, y in enumerate([0.5, 0.1] + [0.3] * 5000 + [0.9, 0.4])
        for point in picture.points[:1]
    ]
    kept = thinned(points)
    assert len(kept) <= 400
    ys = [point.leakage.value for point in kept]
    assert (min(ys), max(ys)) == (0.1, 0.9)
    assert {kept[0].perplexity, kept[-1].perplexity} == {0.0, 5003.0}
    assert thinned(points[:400]) == points[:400]


def boxes_of(drawing: Drawing) -> list[tuple[str, Bbox]]:
    """Every text of a figure with the rectangle that it takes."""
    canvas = FigureCanvasAgg(drawing.figure)
    with plain_style():
        canvas.draw()
        renderer = canvas.get_renderer()
        texts = list(drawing.figure.texts)
        for axes in drawing.figure.axes:
            texts += [*axes.texts, axes.xaxis.label, axes.yaxis.label]
            for axis in (axes.xaxis, axes.yaxis):
                if axis.get_visible():
                    low, high = sorted(axis.get_view_interval())
                    ticks = axis.get_major_ticks(len(axis.get_majorticklocs()))
                    texts += [tick.label1 for tick in ticks if low <= tick.get_loc() <= high]
        return [
            (text.get_text(), text.get_window_extent(renderer))
            for text in texts
            if text.get_text() and text.get_visible()
        ]


@pytest.fixture(scope="module")
def many(largest: Finished) -> Drawings:
    return draw(largest)


def test_no_text_lies_on_another_or_leaves_its_figure(finished: Finished, many: Drawings) -> None:
    shown = [
        *many.release,
        many.roc,
        many.roc_narrow,
        *many.forest,
        *many.roc_of.values(),
        *many.signals.values(),
        *drawn(bounded(finished, 0.2)),
    ]
    for drawing in shown:
        boxes = boxes_of(drawing)
        assert len(boxes) > 8
        page = drawing.figure.bbox
        for text, box in boxes:
            inside = (
                page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
            )
            assert inside, (drawing.name, drawing.width, text)
        for (first, one), (second, other) in combinations(boxes, 2):
            assert not _meet(one, other), (drawing.name, drawing.width, first, second)


def _meet(one: Bbox, other: Bbox) -> bool:
    """Whether two rectangles share more than half a pixel's edge."""
    across = min(one.x1, other.x1) - max(one.x0, other.x0)
    down = min(one.y1, other.y1) - max(one.y0, other.y0)
    return across > 0.5 and down > 0.5


def test_no_name_covers_a_mark_of_the_frontier(largest: Finished, many: Drawings) -> None:
    names = {plain(name) for name in largest.signals} | {"original alone"}
    for drawing in many.release:
        boxes = [(text, box) for text, box in boxes_of(drawing) if text in names]
        assert len(boxes) >= 4
        axes = axes_of(drawing)
        for gid in drawing.notes:
            (mark,) = drawing.figure.findobj(lambda artist, gid=gid: artist.get_gid() == gid)
            assert isinstance(mark, Line2D)
            (x,), (y,) = mark.get_xdata(), mark.get_ydata()
            right, up = axes.transData.transform((x, y))
            assert not [text for text, box in boxes if box.contains(right, up)]


@given(
    st.lists(
        st.tuples(
            st.text("abcdefgh", min_size=1, max_size=30), st.floats(0, 600), st.floats(0, 300)
        ),
        max_size=14,
    )
)
@settings(max_examples=30, deadline=None)
def test_labels_never_meet_and_never_leave(marks: Sequence[tuple[str, float, float]]) -> None:
    within = Box(0, 0, 600, 300)
    covered = [Box(x - 5, y - 5, x + 5, y + 5) for _, x, y in marks]
    placed = place([Wanted(*mark, reach=5) for mark in marks], within=within, covered=covered)
    boxes = [found.box for found in placed]
    assert all(within.holds(box) for box in boxes)
    assert not [pair for pair in combinations(boxes, 2) if pair[0].meets(pair[1])]
    assert not [box for box in boxes if any(box.meets(mark) for mark in covered)]
    if len(marks) == 1:
        assert len(placed) == 1
