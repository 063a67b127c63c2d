"""Rows of a Parquet file: decoded once where memory allows, and the same where it does not."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from auditor import sources
from auditor.sources import ParquetFile

N, PER_GROUP = 1000, 64


def write(path: Path, mark: str = "row") -> Path:
    table = pa.table({"text": [f"{mark} {i} \u00e9" for i in range(N)], "n": list(range(N))})
    pq.write_table(table, path, row_group_size=PER_GROUP)
    return path


def decoded(path: Path) -> int:
    """Bytes of all columns once decoded."""
    return int(pq.read_table(path).nbytes)


@pytest.mark.parametrize("share", [0.0, 0.5, 2.0])
def test_rows_are_the_same_whatever_is_kept(
    share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "rows.parquet")
    monkeypatch.setattr("auditor.memory.spare_bytes", lambda _: decoded(path))
    monkeypatch.setattr(sources, "ROOM_SHARE", share)
    source, rng = ParquetFile(path), np.random.default_rng(0)
    for _ in range(3):
        positions = rng.integers(0, N, 300).tolist()
        assert source.read(positions) == [{"text": f"row {i} \u00e9", "n": i} for i in positions]
    groups = -(-N // PER_GROUP)
    assert len(source._groups) == pytest.approx(min(1.0, share) * groups, abs=1)
    assert sum(table.nbytes for table in source._groups.values()) <= share * decoded(path)
    assert source.read([]) == []


def test_a_file_that_has_changed_is_read_anew(tmp_path: Path) -> None:
    source = ParquetFile(write(tmp_path / "rows.parquet"))
    assert source.read([999, 0])[0] == {"text": "row 999 \u00e9", "n": 999}
    write(tmp_path / "rows.parquet", mark="other")
    assert source.read([999])[0]["text"] == "other 999 \u00e9"
