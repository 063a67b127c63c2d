"""What many tests share: where real models and fixtures are, and tiny ones made on the spot."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real models and fixtures; the test is skipped where it is absent."""
    if not (SHARED / "models").is_dir():
        pytest.skip("needs ../shared with real models and fixtures, which a plain clone lacks")
    return SHARED
