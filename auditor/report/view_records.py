"""Records on the page: the members that are newly exposed, and a few records token by token."""

import math
from dataclasses import dataclass

from auditor.report.figures import p_value
from auditor.report.view import Fact, plural, rate_in_words
from auditor.results import AuditResult, Exposed, TokenView
from auditor.stats.figures import rate_name

REFERENCE = "reference"
MAX_IDS = 100
# Nats below 0, and nats of difference, at which a colour is at its strongest.
DEEPEST = 8.0
FARTHEST = 3.0
# Steps of a scale; of a difference on either side.
STEPS = 8
SIDE_STEPS = 4
# Characters of all tokens' numbers together; long records with many versions are cut to it.
MAX_CHARACTERS = 1_500_000
PER_NUMBER = 12


@dataclass(frozen=True)
class ExposedView:
    """Members that are found only once the compressed versions are out.

    Attributes:
        facts: How many, and how many by chance.
        ids: The first of them, the surest first.
        n_ids: All of them.
        absent: Why there is no list; empty where there is one.
    """

    facts: list[Fact]
    ids: list[str]
    n_ids: int
    absent: str


@dataclass(frozen=True)
class Track:
    """One way of colouring tokens.

    Attributes:
        key: A letter and a number; CSS classes begin with it.
        label: What is shown.
        kind: log-p or difference.
    """

    key: str
    label: str
    kind: str


@dataclass(frozen=True)
class Token:
    """One token.

    Attributes:
        text: Its text.
        classes: A class for each track that colours it.
        title: Its numbers in words; empty before the first that is scored.
    """

    text: str
    classes: str
    title: str


@dataclass(frozen=True)
class ViewedRecord:
    """One record.

    Attributes:
        record_id: Its id.
        why: Its side, and why it is shown.
        tokens: Its tokens.
        cut: What is left out of it; empty where nothing is.
    """

    record_id: str
    why: str
    tokens: list[Token]
    cut: str


@dataclass(frozen=True)
class TokensView:
    """Records token by token.

    Attributes:
        tracks: The ways of colouring, the first chosen.
        records: The records.
        steps: Classes of a log p's scale, from sure to unlikely.
        side_steps: Classes of a difference, from less to more.
    """

    tracks: list[Track]
    records: list[ViewedRecord]
    steps: list[int]
    side_steps: list[int]


def exposed_view(result: AuditResult) -> ExposedView | None:
    """The newly exposed members; None where nobody looked for them."""
    exposed = result.leakage.exposed if result.leakage is not None else None
    if exposed is None:
        return None
    if exposed.absent or exposed.fpr is None:
        return ExposedView([], [], 0, exposed.absent or "no false positive rate was asked for")
    return ExposedView(_exposed_facts(exposed), exposed.ids[:MAX_IDS], len(exposed.ids), "")


def _exposed_facts(exposed: Exposed) -> list[Fact]:
    at = f"at {rate_in_words(rate_name(exposed.fpr or 0.0))} FPR"
    counts = (
        (f"Found with the original alone, {at}", exposed.n_found_original, 0),
        (f"Found with all versions, {at}", exposed.n_found_together, 0),
        ("Newly found: with all, not with the original", exposed.n_newly, 0),
        ("No longer found: with the original, not with all", exposed.n_no_longer, 0),
        ("Newly found by chance: half of those that change places", exposed.expected_by_chance, 1),
        (
            "Newly found if as large a share were as of the nonmembers",
            exposed.n_expected_of_nonmembers,
            1,
        ),
    )
    facts = [Fact(name, f"{n:,.{digits}f}") for name, n, digits in counts if n is not None]
    if exposed.p_value is not None:
        name = "p, one-sided, that all versions find no more members than the original"
        facts.append(Fact(name, p_value(exposed.p_value)))
    return facts


def tokens_view(result: AuditResult) -> TokensView | None:
    """Records token by token; None where no text may be shown."""
    if not result.token_views:
        return None
    names = list(dict.fromkeys(name for view in result.token_views for name in view.log_p))
    tracks = _tracks(result, names)
    per_token = sum(len(name) + PER_NUMBER for name in names) + 4 * len(tracks)
    most = max(50, MAX_CHARACTERS // (per_token * len(result.token_views)))
    original = result.variants[0].variant
    records = [_viewed(view, names, most, original) for view in result.token_views]
    return TokensView(
        tracks, records, list(range(STEPS + 1)), list(range(-SIDE_STEPS, SIDE_STEPS + 1))
    )


def _tracks(result: AuditResult, names: list[str]) -> list[Track]:
    original = result.variants[0].variant
    tracks = [Track(f"p{at}", name, "log-p") for at, name in enumerate(names)]
    return tracks + [
        Track(f"d{at}", name, "difference")
        for at, name in enumerate(names)
        if name not in (original, REFERENCE)
    ]


def _viewed(view: TokenView, names: list[str], most: int, original: str) -> ViewedRecord:
    side = "member" if view.is_member else "nonmember"
    # "nonmember most like a member" says the side itself.
    why = view.chosen if side in view.chosen else f"{side}, {view.chosen}"
    tokens = [_token(view, names, at, original) for at in range(min(len(view.tokens), most))]
    n_left = len(view.tokens) - len(tokens)
    cut = f"and {plural(n_left, 'token')} more, in audit.json" if n_left else ""
    return ViewedRecord(view.record_id, why, tokens, cut)


def _token(view: TokenView, names: list[str], at: int, original: str) -> Token:
    """A token with its colours, which are classes: a letter and place for the track, a step."""
    scored = at - view.first
    text = view.tokens[at]
    if scored < 0:
        return Token(text, "", "")
    found = {
        name: view.log_p[name][scored]
        for name in names
        if name in view.log_p and scored < len(view.log_p[name])
    }
    if not found:
        return Token(text, "", "")
    classes = [f"p{names.index(name)}-{_step(value)}" for name, value in found.items()]
    classes += [
        f"d{names.index(name)}-{_side_step(value - found[original])}"
        for name, value in found.items()
        if original in found and name not in (original, REFERENCE)
    ]
    numbers = (f"{name} {_nats(value)}" for name, value in found.items())
    return Token(text, " ".join(classes), "log p: " + ", ".join(numbers))


def _nats(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _step(log_p: float) -> int:
    """0 where a token is sure, `STEPS` where it is as unlikely as the scale goes."""
    if math.isnan(log_p):
        return STEPS
    return min(STEPS, max(0, round(-log_p / DEEPEST * STEPS)))


def _side_step(difference: float) -> int:
    """0 where nothing changes, positive where the variant finds the token likelier."""
    if math.isnan(difference):
        return 0
    return min(SIDE_STEPS, max(-SIDE_STEPS, round(difference / FARTHEST * SIDE_STEPS)))
