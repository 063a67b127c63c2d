"""Attacks: from scores to one signal per record, larger = more likely a member.

`ATTACKS` is the only registry. A new attack without training, on one version or on the original
beside a variant (given as `Scores.reference`), is one function `(Scores) -> float64 array of shape
(n,)` and one line here; the command line, the results and the test matrix find it by themselves.
Learned attacks and those on many versions are made in `auditor/leakage`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from auditor.scoring.scores import Float64


@dataclass(frozen=True)
class Attack:
    """One attack.

    Attributes:
        function: "module:name" of `(Scores) -> float64 (n,)`.
        source: Where it was published.
        needs_reference: Whether `Scores.reference` must be there.
        needs_same_tokens: Whether that reference must have scored the very same tokens.
        setting: What the attacker holds (NR, SR, MR).
        learned: Whether it is trained on records whose side is known; it is then a function of
            `leakage.attackers.Attackers` and of what the attacker holds.
    """

    function: str
    source: str
    needs_reference: bool = False
    needs_same_tokens: bool = False
    setting: Literal["NR", "SR", "MR"] = "NR"
    learned: bool = False

    def load(self) -> "Callable[..., Float64]":
        """The function itself."""
        module, _, name = self.function.partition(":")
        function: Callable[..., Float64] = getattr(import_module(module), name)
        return function


ATTACKS: dict[str, Attack] = {
    "loss": Attack("auditor.attacks.single:loss", "Yeom 2018"),
    "zlib": Attack("auditor.attacks.single:zlib", "Carlini 2021"),
    "min-k": Attack("auditor.attacks.single:min_k", "Shi 2024"),
    "min-k-plus-plus": Attack("auditor.attacks.single:min_k_plus_plus", "Zhang 2024"),
    "single": Attack("auditor.leakage.attackers:single", "this project", learned=True),
    "ref": Attack("auditor.attacks.single:ref", "Carlini 2021", needs_reference=True),
    "ez": Attack(
        "auditor.attacks.single:ez", "EZ-MIA 2026", needs_reference=True, needs_same_tokens=True
    ),
    "gap": Attack("auditor.attacks.paired:gap", "CompLeak 2025, LM form", setting="SR"),
    "ez-gap": Attack("auditor.attacks.paired:ez_gap", "EZ-MIA 2026", setting="SR"),
    "paired": Attack(
        "auditor.leakage.attackers:paired", "CompLeak 2025, LM form", setting="SR", learned=True
    ),
    "mean-rank": Attack("auditor.attacks.combined:mean_rank", "this project", setting="MR"),
    "combined": Attack(
        "auditor.leakage.attackers:combined", "CompLeak 2025, LM form", setting="MR", learned=True
    ),
}
