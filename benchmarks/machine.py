"""The line that stands above every table of figures: machine, versions, date."""

from datetime import UTC, datetime

import torch

from auditor.environment import processor, versions


def machine() -> str:
    """Processor, threads, torch and the date, in one line."""
    found = versions()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{processor()}, {torch.get_num_threads()} threads, {device}, torch {found['torch']}, "
        f"transformers {found['transformers']}, {datetime.now(UTC):%Y-%m-%d}"
    )
