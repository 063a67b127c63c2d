"""The table of releases: readable at every width, with names of any length."""

import io
from itertools import combinations, pairwise

import pytest
from rich.console import Console

from auditor.leakage.advice import described
from auditor.leakage.bounds import parse_bound, verdict_of
from auditor.leakage.releases import frontier
from auditor.report.figures import interval
from auditor.report.releases import MAX_ROWS, releases_table
from auditor.results import Estimate, Part, Release, Releases

NAMES = (
    "original",
    "bnb-int8",
    "bnb-nf4",
    "gptq:bits=3,group_size=64",
    "prune-magnitude:sparsity=0.5",
    "prune-magnitude:sparsity=0.7",
    "wanda:sparsity=0.5",
    "hqq:bits=4",
    "[red]torchao-int4[/red]",
)


def estimate(value: float, reach: float) -> Estimate:
    return Estimate(
        value=value,
        low=value - reach,
        high=value + reach,
        n_members=1000,
        n_nonmembers=1000,
        method="",
        absent=None,
    )


def made(bound: str | None = None, names: tuple[str, ...] = NAMES) -> Releases:
    """Each version adds to the leakage and to the perplexity what its place says."""
    limit = parse_bound(bound) if bound else None
    sets = []
    for held in [s for k in range(len(names), 0, -1) for s in combinations(range(len(names)), k)]:
        tpr = 0.01 + 0.002 * sum((i * 5) % 9 for i in held)
        figures = {"0.01": estimate(tpr, 0.006), "0.05": estimate(3 * tpr, 0.01)}
        auc = estimate(0.5 + 2 * tpr, 0.02)
        costs = [10 + 1.5 * i for i in held]
        metric = None if limit is None else auc if limit.metric == "auc" else figures["0.01"]
        sets.append(
            Release(
                versions=[names[i] for i in held],
                auc=auc,
                tpr_at_fpr=figures,
                perplexity_worst=max(costs),
                perplexity_mean=sum(costs) / len(costs),
                on_frontier=False,
                verdict=None if limit is None or metric is None else verdict_of(metric, limit),
            )
        )
    sets.sort(key=lambda r: (-len(r.versions), r.perplexity_mean))
    on_it = frontier(
        [len(r.versions) for r in sets],
        [r.perplexity_mean for r in sets],
        [r.tpr_at_fpr["0.01"].value or 0.0 for r in sets],
    )
    sets = [r.model_copy(update={"on_frontier": bool(x)}) for r, x in zip(sets, on_it, strict=True)]
    parts = [
        Part(version=n, auc=0.004 * i, tpr_at_fpr={"0.01": 0.002 * i, "0.05": 0.01})
        for i, n in enumerate(names)
    ]
    return Releases(
        with_reference=True,
        metric=limit.metric if limit else "tpr@0.01",
        search="every set",
        sets=sets,
        parts=parts,
        bound=limit,
        gate=sets[0],
        advice="Leave out hqq:bits=4 and all is well.",
    )


def printed(releases: Releases, width: int) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, color_system=None)
    console.print(releases_table(releases, width=width))
    return file.getvalue()


def squeezed(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("width", [60, 80, 83, 84, 100, 119, 120, 160, 240])
@pytest.mark.parametrize("bound", [None, "tpr=0.05@fpr=0.01", "tpr=0.001@fpr=0.01", "auc=0.6"])
def test_no_figure_is_cut_off(width: int, bound: str | None) -> None:
    releases = made(bound)
    text = printed(releases, width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    for name in NAMES:
        assert name in text
    assert releases.advice in " ".join(text.split())
    under = [r for r in releases.sets if r.verdict == "under" or (not bound and r.on_frontier)]
    # Nothing is under: what gives away least is one version that adds nothing.
    shown = under[0] if under else next(r for r in releases.sets if r.versions == ["original"])
    metric = shown.auc if releases.metric == "auc" else shown.tpr_at_fpr["0.01"]
    value, rest = interval(metric, percent=releases.metric != "auc").split(" ", 1)
    assert value in text
    assert rest in text


@pytest.mark.parametrize("width", [100, 160])
def test_a_set_keeps_to_its_lines(width: int) -> None:
    """At the widths that people have no row of the sets is longer than four lines."""
    for bound in (None, "tpr=0.05@fpr=0.01"):
        text = printed(made(bound), width)
        table = text[text.index("published together") : text.index("what each adds")].splitlines()
        starts = [i for i, line in enumerate(table) if line[:1] not in ("", " ")]
        assert max(b - a for a, b in pairwise(starts)) <= 4


def test_with_a_bound_those_under_it_come_first_and_the_rest_is_counted() -> None:
    releases = made("tpr=0.05@fpr=0.01")
    text = printed(releases, 160)
    under = [r for r in releases.sets if r.verdict == "under"]
    assert len(under) > MAX_ROWS
    table = text[text.index("published together") : text.index("what each adds")]
    rows = [line for line in table.splitlines() if line.rstrip().endswith("under")]
    assert len(rows) == MAX_ROWS
    assert squeezed(described(under[0].versions, NAMES))[:30] in squeezed(rows[0])
    counts = {v: sum(r.verdict == v for r in releases.sets) for v in ("undecided", "over")}
    assert (
        f"of 511 sets: {len(under)} under, {counts['undecided']} undecided, {counts['over']} over; "
        f"{len(under) - MAX_ROWS} more that are under in audit.json"
    ) in text
    gate = releases.sets[0]
    found = 100 * (gate.tpr_at_fpr["0.01"].value or 0.0)
    assert f"to be released: all 9 versions: TPR at 1% FPR {found:.1f}%" in text
    assert "at most 5%: over" in text


def test_where_nothing_is_under_the_least_is_shown() -> None:
    releases = made("tpr=0.001@fpr=0.01")
    text = printed(releases, 160)
    table = text[text.index("published together") : text.index("what each adds")]
    assert sum(line.rstrip().endswith("over") for line in table.splitlines()) >= 3
    assert "0 under" in table
    assert "shown are those that give away least" in table
    least = min(releases.sets, key=lambda r: r.tpr_at_fpr["0.01"].value or 0.0)
    assert interval(least.tpr_at_fpr["0.01"], percent=True) in table


def test_without_a_bound_the_frontier_and_the_whole_are_shown() -> None:
    releases = made()
    text = printed(releases, 240)
    table = text[text.index("published together") : text.index("frontier:")].splitlines()
    table = [line for line in table if "  " in line.strip()][1:]
    assert len(table) == MAX_ROWS
    assert table[0].startswith("all 9 versions")
    on_it = [r for r in releases.sets if r.on_frontier]
    called = {squeezed(described(r.versions, NAMES)): len(r.versions) for r in on_it}
    sizes = set()
    for line in table:
        found = [name for name in called if squeezed(line).startswith(name)]
        sizes.add(called[max(found, key=len)])
    assert sizes == set(called.values())
    assert len(on_it) > MAX_ROWS
    assert f"gives away less; {len(on_it) - MAX_ROWS} more in audit.json" in text
    assert "verdict" not in text


def test_parts_and_their_sum() -> None:
    text = printed(made(), 100)
    line = next(row for row in text.splitlines() if row.startswith("all together"))
    assert line.split()[-3:] == ["+0.144", "+7.2", "+9.0"]
    line = next(row for row in text.splitlines() if row.startswith("wanda:sparsity=0.5  "))
    assert line.split()[-3:] == ["+0.024", "+1.2", "+1.0"]


def test_two_versions_and_one() -> None:
    assert "both versions" in printed(made(names=NAMES[:2]), 100)
    assert "original" in printed(made(names=NAMES[:1]), 100)


def test_how_a_set_is_called() -> None:
    names = ("a", "b", "c", "d", "e")
    assert described(names, names) == "all 5 versions"
    assert described(("a", "c", "d", "e"), names) == "all but b"
    assert described(("a", "c", "e"), names) == "all but b and d"
    assert described(("a", "e"), names) == "a and e"
    assert described(("b",), names) == "b"
    assert described(("a",), ("a",)) == "a"
    assert described(("a", "b"), ("a", "b")) == "both versions"
