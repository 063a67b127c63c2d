"""Which ROC curves a reader compares, so that alone, beside the original and together are alike.

Alone (NR), in pairs (SR) and together (MR) are all learned attacks, with the reference where the
audit has one, or else all are training-free: a learned attacker of all versions beside a
training-free one of the original would compare two ways of attacking.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from auditor.compress.noise import is_noise
from auditor.finished import Finished
from auditor.results import Estimate, SettingResult
from auditor.scoring.scores import Float64
from auditor.stats.curves import Curve, roc_curve

DRAWS = 2000  # of a band, where the configuration is one of another version
LEARNED = ("single", "paired", "combined")
# What a curve stands for: also the name of its colour.
Kind = Literal["original", "variant", "pair", "together", "blind"]


@dataclass(frozen=True, eq=False)
class Source:
    """One signal to draw, with what the audit says of it.

    Attributes:
        kind: What it stands for.
        versions: The versions that the attacker holds; none for the blind baseline.
        attack: The attack's id, with `-ref` where it is learned beside the reference.
        signal: Shape (n,); NaN where a record was left out.
        auc: Its AUC.
        tpr_at_fpr: Its TPR, keyed by the rate.
        inflation: Factor on the reach of its band.
    """

    kind: Kind
    versions: tuple[str, ...]
    attack: str
    signal: Float64
    auc: Estimate
    tpr_at_fpr: dict[str, Estimate]
    inflation: float = 1.0


class Sources(NamedTuple):
    """All that may be drawn.

    Attributes:
        original: The original alone; None where no attack on it is in the result.
        variants: By version, each variant alone; controls that are noise among them.
        pairs: By version, the original with it.
        together: All versions, where they are more than two.
        blind: The baseline that sees no model.
    """

    original: Source | None
    variants: dict[str, Source]
    pairs: dict[str, Source]
    together: Source | None
    blind: Source | None


def find_sources(finished: Finished) -> Sources:
    """The signals to draw, of one kind of attack throughout."""
    of_original = finished.signals[finished.original]
    alone = _first(("single-ref", "single"), of_original) or finished.result.primary_attack
    if alone not in of_original:
        alone = next(iter(of_original))
    learned = alone.startswith("single")
    paired = alone.replace("single", "paired") if learned else "gap"
    combined = alone.replace("single", "combined") if learned else "mean-rank"
    original, *variants = finished.signals
    singles = {name: _alone(finished, name, alone) for name in variants}
    pairs = {
        name: _source(
            finished, "pair", paired, (original, name), finished.signals[name].get(paired)
        )
        for name in variants
    }
    return Sources(
        original=_alone(finished, original, alone),
        variants={name: found for name, found in singles.items() if found is not None},
        pairs={name: found for name, found in pairs.items() if found is not None},
        together=_together(finished, combined),
        blind=_blind(finished),
    )


def most_leaking(sources: dict[str, Source]) -> Source | None:
    """The one of largest AUC; noise, which nobody publishes, is not among them."""
    named = [
        found
        for name, found in sources.items()
        if not is_noise(name) and found.auc.value is not None
    ]
    return max(named, key=lambda found: found.auc.value or 0.0, default=None)


class Curves:
    """The curves of an audit, each made once however many figures show it."""

    def __init__(self, finished: Finished) -> None:
        self.finished = finished
        self.sources = find_sources(finished)
        self._config = finished.result.config
        self._made: dict[Source, Curve] = {}

    def of(self, source: Source) -> Curve:
        """Its ROC curve with a band; records without a signal are left out."""
        if source not in self._made:
            seen = np.isfinite(source.signal)
            self._made[source] = roc_curve(
                source.signal[seen & self.finished.is_member],
                source.signal[seen & ~self.finished.is_member],
                confidence=self.finished.result.confidence,
                draws=int(self._config.get("bootstrap", DRAWS)),
                seed=int(self._config.get("seed", 0)),
                inflation=source.inflation,
                # A mark stands at these, and must lie on the line.
                rates=[float(rate) for rate in source.tpr_at_fpr],
            )
        return self._made[source]


def _first(names: tuple[str, ...], among: dict[str, Float64]) -> str | None:
    return next((name for name in names if name in among), None)


def _alone(finished: Finished, name: str, attack: str) -> Source | None:
    kind: Kind = "original" if name == finished.original else "variant"
    signal = finished.signals[name].get(attack)
    found = finished.result.variant(name).attacks.get(attack)
    if signal is not None and found is not None:
        return Source(kind, (name,), attack, signal, found.auc, found.tpr_at_fpr)
    return _source(finished, kind, attack, (name,), signal)


def _together(finished: Finished, attack: str) -> Source | None:
    # What is noise is no part of a release, and two versions are a pair.
    versions = tuple(name for name in finished.signals if not is_noise(name))
    if len(versions) < 3:
        return None
    return _source(finished, "together", attack, versions, finished.over_all.get(attack))


def _blind(finished: Finished) -> Source | None:
    signal, found = finished.over_all.get("blind"), finished.result.blind
    if signal is None or found is None:
        return None
    return Source("blind", (), "blind", signal, found.auc, found.tpr_at_fpr)


def _source(
    finished: Finished, kind: Kind, attack: str, versions: tuple[str, ...], signal: Float64 | None
) -> Source | None:
    """A signal with what the audit says of it; None where it says nothing."""
    found = _setting(finished, attack, versions)
    if signal is None or found is None:
        return None
    figures = found.figures
    inflation = math.sqrt(1 + (found.noise_share or 0.0))
    return Source(kind, versions, attack, signal, figures.auc, figures.tpr_at_fpr, inflation)


def _setting(finished: Finished, attack: str, versions: tuple[str, ...]) -> SettingResult | None:
    """What the audit found with this attack on these versions, as `scores.parquet` has it."""
    leakage = finished.result.leakage
    if leakage is None:
        return None
    name, is_beside = attack.removesuffix("-ref"), attack.endswith("-ref")
    is_learned = name in LEARNED
    # Of two supervisions the first is the one whose signals are stored.
    how = leakage.supervision[0] if is_learned and leakage.supervision else "none"
    for one in leakage.settings:
        if (one.attack, one.supervision, tuple(one.versions)) == (name, how, versions) and (
            not is_learned or one.with_reference == is_beside
        ):
            return one
    return None
