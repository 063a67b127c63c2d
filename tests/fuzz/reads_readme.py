"""A README with markers and front matter, as the card renews it."""

from functools import cache
from pathlib import Path

from auditor.card import front_matter, metadata
from auditor.card.entries import Entries
from auditor.card.readme import decoded, with_section
from auditor.placing import place as place_files
from auditor.results import AuditResult
from tests.fuzz.property import place
from tests.fuzz.reads_results import short_result

SECTION = "## Privacy\n\nNothing is shown to leak.\n\n```sh\ncompleak-llm audit\n```"
KEYS = {"base_model": "org/name", "base_model_relation": "quantized"}
PLAIN = """---
license: mit
tags: [a, "b"]  # kept
base_model: &base other/name
---

# A model

Text.

<!-- compleak-llm:begin -->
old
<!-- compleak-llm:end -->

```
<!-- compleak-llm:begin -->
```
"""
INDEXED = """---
language:
- en
model-index:
- name: A model
  results:
  - task:
      type: text-generation
    dataset:
      type: a
      name: b
    metrics:
    - type: accuracy
      value: 0.5
  - task: {type: text-generation}
    dataset: {type: c, name: d}
    metrics:
    - type: auc
      value: 0.5
      args: {tool: compleak-llm}
x: 1
---
Text
"""


@cache
def _result() -> AuditResult:
    return short_result()


def readme(data: bytes) -> None:
    """Renew the section and the front matter of a README, and write it; twice is as once."""
    path = place().inputs / "readme" / "README.md"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    renewed = _renewed(path, data)
    place_files({path: renewed})
    assert path.read_bytes() == renewed
    if not len(data) % 4:  # it takes as long again
        assert _renewed(path, renewed) == renewed


def _renewed(path: Path, data: bytes) -> bytes:
    text = with_section(path, decoded(path, data), SECTION)
    before = front_matter.read_keys(path, text).get("model-index")
    entries: Entries = metadata.model_index(path, before, _result())
    found = front_matter.with_keys(path, text, KEYS, entries)
    return found.encode()


def readmes() -> list[bytes]:
    """READMEs with and without each part."""
    text = PLAIN.partition("---\n\n")[2]
    found = [PLAIN, INDEXED, text, "", "# x\n", PLAIN.replace("\n", "\r\n")]
    return [one.encode() for one in found]
