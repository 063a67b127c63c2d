"""The token view: a record's tokens are its text, and their numbers are those of a plain pass."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from auditor import AuditConfig, AuditResult, audit
from auditor.scoring.encode import Encoder, RecordText
from auditor.token_views import pieces
from tests.tiny import save, tiny_model

ODD = ["naïve café 漢字 👩‍🚀 end", "  two  spaces\tand\n\nlines ", "x", "𝔘𝔫𝔦"]


@pytest.fixture(scope="module")
def shown(subject: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> AuditResult:
    output = tmp_path_factory.mktemp("views") / "run"
    changes = {"include_text": True, "dtype": "float32", "variants": "prune-magnitude:sparsity=0.5"}
    return audit(AuditConfig.model_validate({**subject, **changes, "output_path": str(output)}))


def test_without_the_flag_there_is_none(done: AuditResult) -> None:
    assert done.token_views == []


def test_members_and_nonmembers_are_shown_once_each(shown: AuditResult) -> None:
    kinds = [view.chosen for view in shown.token_views]
    assert kinds.count("surest member") >= 1
    assert kinds.count("nonmember most like a member") == 3
    assert len({view.record_id for view in shown.token_views}) == len(kinds)
    for view in shown.token_views:
        assert view.is_member == (view.chosen != "nonmember most like a member")


def test_tokens_are_the_text_and_numbers_those_of_a_plain_pass(
    shown: AuditResult, subject: dict[str, Any]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(subject["model"])
    models = {
        name: AutoModelForCausalLM.from_pretrained(subject[key], dtype=torch.float32)
        for name, key in (("original", "model"), ("reference", "reference"))
    }
    for view in shown.token_views:
        assert set(view.log_p) == {"original", "prune-magnitude:sparsity=0.5", "reference"}
        ids = tokenizer("".join(view.tokens), return_tensors="pt")["input_ids"]
        assert ids.shape[1] == len(view.tokens)
        for name, model in models.items():
            with torch.no_grad():
                logp = model(ids).logits[0, :-1].float().log_softmax(-1)
            expected = logp.gather(1, ids[0, 1:, None])[:, 0].numpy()
            np.testing.assert_allclose(view.log_p[name], expected[view.first - 1 :], atol=2e-4)
        pruned = view.log_p["prune-magnitude:sparsity=0.5"]
        assert len(pruned) == len(view.log_p["original"])
        assert pruned != view.log_p["original"]


@pytest.mark.parametrize("text", ODD)
def test_pieces_join_to_the_text(text: str, tmp_path: Any) -> None:
    folder = save(tiny_model("llama", seed=1), tmp_path / "model")
    encoder = Encoder(AutoTokenizer.from_pretrained(folder), 512)
    ids = encoder.encode([RecordText(text)])[0].ids
    assert "".join(pieces(encoder, RecordText(text), ids)) == text
    cut = pieces(encoder, RecordText(text), ids[:3])
    assert len(cut) == len(ids[:3])
    assert text.startswith("".join(cut))
    prompted = RecordText(text, prompt="Q: ")
    ids = encoder.encode([prompted])[0].ids
    assert "".join(pieces(encoder, prompted, ids)) == "Q: " + text
