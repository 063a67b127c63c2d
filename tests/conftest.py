"""What many tests share: where real models and fixtures are, and tiny ones made on the spot."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from auditor import AuditConfig, AuditResult, audit
from auditor.compress import COMPRESSORS, parse_variant
from auditor.demo.letters import letters
from auditor.environment import installed
from tests.tiny import save, tiny_model

N = 60
VARIANTS = "bnb-nf4,prune-magnitude:sparsity=0.5"
SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_configure(config: pytest.Config) -> None:
    """Files are run in the order of `pytest_collection_modifyitems`, side by side too."""
    # pytest-xdist would begin with the files of the most tests, which are not the slowest.
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests first: none of them is begun when all else is done."""
    n_slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -n_slow[item.path])


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of made versions for these tests alone: the user's is not touched."""
    folder = tmp_path_factory.mktemp("cache") / "compleak"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("COMPLEAK_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real models and fixtures; the test is skipped where it is absent."""
    if not (SHARED / "models").is_dir():
        pytest.skip("needs ../shared with real models and fixtures, which a plain clone lacks")
    return SHARED


def needs(variant: str) -> None:
    """Skip where a variant's library is not installed; in CI, where it must be, fail."""
    missing = [n for n in COMPRESSORS[parse_variant(variant).id].requires if installed(n) is None]
    if missing and os.environ.get("CI"):
        pytest.fail(f"{', '.join(missing)} must be installed in CI: pip install -e '.[all]'")
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: pip install -c constraints.txt -e '.[all]'")


def write_records(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="session")
def subject(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two tiny models and two lists of letters."""
    folder = tmp_path_factory.mktemp("subject")
    texts = [text[:60] for text in letters(4 * N, seed=3)]
    return {
        "model": str(save(tiny_model("llama", seed=1), folder / "model", dtype=torch.bfloat16)),
        "reference": str(save(tiny_model("llama", seed=2), folder / "base", dtype=torch.bfloat16)),
        "members": str(write_records(folder / "members.jsonl", texts[:N])),
        "nonmembers": str(write_records(folder / "nonmembers.jsonl", texts[N : 2 * N])),
        "variants": VARIANTS,
        "bootstrap": 100,
        "fpr": "0.01,0.2",
    }


@pytest.fixture(scope="session")
def done(subject: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> AuditResult:
    output = tmp_path_factory.mktemp("done") / "run"
    return audit(AuditConfig.model_validate({**subject, "output_path": str(output)}))


@pytest.fixture
def poisoned_pruning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Magnitude pruning that leaves a weight that is not a number."""
    from auditor.compress import prune

    real = prune.zero_smallest

    def poisoned(tensors: list[torch.Tensor], n: int) -> Any:
        found = real(tensors, n)
        tensors[0].view(-1)[0] = torch.nan
        return found

    monkeypatch.setattr(prune, "zero_smallest", poisoned)
