"""The schema of `audit.json`, version 1.

Each field says what it holds; `compleak-llm schema` prints the JSON Schema. A figure that cannot be
given is null and says why in `absent`: an absent figure must be told from a zero.
"""

from auditor.results.audit import (
    SCHEMA_VERSION,
    Artifact,
    AuditResult,
    BlindBaseline,
    LengthSummary,
    ModelIdentity,
    RecordsSummary,
    Side,
    Timing,
    Timings,
    TokenView,
    VariantResult,
    Warned,
)
from auditor.results.figures import (
    AttackResult,
    Comparison,
    Estimate,
    Result,
)
from auditor.results.leakage import (
    BestOf,
    Bound,
    Control,
    EpsilonBound,
    Exposed,
    Leakage,
    LeakageComparison,
    Part,
    Release,
    Releases,
    SettingResult,
)

__all__ = [
    "SCHEMA_VERSION",
    "Artifact",
    "AttackResult",
    "AuditResult",
    "BestOf",
    "BlindBaseline",
    "Bound",
    "Comparison",
    "Control",
    "EpsilonBound",
    "Estimate",
    "Exposed",
    "Leakage",
    "LeakageComparison",
    "LengthSummary",
    "ModelIdentity",
    "Part",
    "RecordsSummary",
    "Release",
    "Releases",
    "Result",
    "SettingResult",
    "Side",
    "Timing",
    "Timings",
    "TokenView",
    "VariantResult",
    "Warned",
]
