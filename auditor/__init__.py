"""compleak-llm: what compressed language models give away about their training data."""

from auditor.audit import audit
from auditor.config import AuditConfig
from auditor.results import AuditResult

__all__ = ["AuditConfig", "AuditResult", "audit"]
__version__ = "0.1.0"
