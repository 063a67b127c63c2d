"""The one way in: `audit(config)` runs the whole flow and gives back what it found."""

from auditor.config import AuditConfig
from auditor.results import AuditResult


def audit(config: AuditConfig) -> AuditResult:
    """Run an audit."""
    raise NotImplementedError
