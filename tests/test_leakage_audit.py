"""What an audit says of several versions, for real on tiny models: supervision, counts, epsilon."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from auditor import AuditResult
from auditor.cli import main
from auditor.demo.letters import letters
from auditor.leakage import attackers as attackers_module
from auditor.results import Leakage, SettingResult
from auditor.run import open_run
from tests.conftest import N, write_records
from tests.test_audit import comparable, flags
from tests.test_leakage_refused import Given, refused
from tests.test_release import NAMES, QUICK, audited, release
from tests.test_run import PRUNED, folder_of, tree
from tests.tiny import byte_tokenizer, save, tiny_model


@pytest.fixture(scope="session")
def quick(subject: Given) -> Given:
    return {**subject, **QUICK, "repeats": 2}


@pytest.fixture(scope="session")
def plain(quick: Given, tmp_path_factory: pytest.TempPathFactory) -> AuditResult:
    return audited(quick, tmp_path_factory.mktemp("plain") / "run")


@pytest.fixture(scope="session")
def other(quick: Given, tmp_path_factory: pytest.TempPathFactory) -> Given:
    """Another model with records of its own, and the same variants in another order."""
    folder = tmp_path_factory.mktemp("other")
    texts = [text[:55] for text in letters(3 * N, seed=8)]
    return {
        **quick,
        "model": str(save(tiny_model("llama", seed=5), folder / "model", dtype=torch.bfloat16)),
        "members": str(write_records(folder / "members.jsonl", texts[:N])),
        "nonmembers": str(write_records(folder / "nonmembers.jsonl", texts[N:])),
        "variants": f"{PRUNED}0,bnb-nf4",
    }


@pytest.fixture(scope="session")
def shadow(other: Given, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(audited(other, tmp_path_factory.mktemp("shadow") / "run"))


@pytest.fixture(scope="session")
def taught(quick: Given, shadow: Path, tmp_path_factory: pytest.TempPathFactory) -> AuditResult:
    output = tmp_path_factory.mktemp("taught") / "run"
    return audited(quick, output, supervision="crossfit,shadow", shadow=str(shadow))


def leakage_of(result: AuditResult) -> Leakage:
    assert result.leakage is not None
    return result.leakage


def settings_of(leakage: Leakage, supervision: str) -> list[SettingResult]:
    return [one for one in leakage.settings if one.supervision == supervision]


def who(one: Any) -> tuple[str, tuple[str, ...], bool]:
    return one.attack, tuple(one.versions), one.with_reference


def test_both_ways_of_learning_are_shown(
    taught: AuditResult, plain: AuditResult, shadow: Path
) -> None:
    found, without = leakage_of(taught), leakage_of(plain)
    assert found.supervision == ["crossfit", "shadow"]
    assert found.shadows == [str(shadow)]
    assert found.left_out == {}
    attackers = [who(one) for one in settings_of(found, "shadow")]
    assert len(attackers) == 2 * (3 + 2 + 2)
    assert attackers == [who(one) for one in settings_of(found, "crossfit")]
    for one in settings_of(found, "shadow"):
        assert one.noise_share is None
        assert one.figures.auc.n_members == N
    asked = {
        how: [
            (one.question, who(one), one.metric)
            for one in found.comparisons
            if one.supervision == how
        ]
        for how in ("crossfit", "shadow")
    }
    assert asked["shadow"] == asked["crossfit"]
    assert len(asked["shadow"]) > 10
    # What is learned on other records of this audit is as it was, and has the last word.
    assert settings_of(found, "crossfit") == settings_of(without, "crossfit")
    assert settings_of(found, "none") == settings_of(without, "none")
    assert found.releases == without.releases
    assert found.exposed == without.exposed
    # Each of the two families of questions is corrected by itself.
    plain_p = [one.p_adjusted for one in without.comparisons]
    assert [x.p_adjusted for x in found.comparisons if x.supervision == "crossfit"] == plain_p


def test_the_order_of_a_shadows_variants_says_nothing(
    quick: Given, other: Given, taught: AuditResult, shadow: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(shadow, tmp_path / "shadow"))
    turned = audited({**other, "variants": f"bnb-nf4,{PRUNED}"}, copy)
    assert [found.variant for found in turned.variants] == NAMES
    assert [found.variant for found in open_run(shadow).result.variants] != NAMES
    output = Path(shutil.copytree(folder_of(taught), tmp_path / "run"))
    again = audited(quick, output, supervision="crossfit,shadow", shadow=str(copy))
    assert settings_of(leakage_of(again), "shadow") == settings_of(leakage_of(taught), "shadow")


def test_a_shadow_alone(quick: Given, taught: AuditResult, shadow: Path, tmp_path: Path) -> None:
    """Then it has the last word, also in `scores.parquet` and for `release`."""
    output = Path(shutil.copytree(folder_of(taught), tmp_path / "run"))
    result = audited(quick, output, supervision="shadow", shadow=str(shadow))
    found = leakage_of(result)
    assert found.supervision == ["shadow"]
    assert (found.n_folds, found.controls) == (None, [])
    assert settings_of(found, "shadow") == settings_of(leakage_of(taught), "shadow")
    assert found.releases is not None
    out = tmp_path / "releases.json"
    assert release(output, "--out", out) == 0
    assert json.loads(out.read_text()) == found.releases.model_dump(mode="json")
    scores = pq.read_table(output / "scores.parquet").to_pandas()
    rows = scores[scores["variant"] == PRUNED]
    members = rows["is_member"].to_numpy()
    for one in settings_of(found, "shadow"):
        if one.versions[-1] == PRUNED and one.setting != "MR":
            values = rows[one.attack + ("-ref" if one.with_reference else "")].to_numpy()
            above = values[members][:, None] > values[~members]
            assert one.figures.auc.value == pytest.approx(above.mean(), abs=1e-12)


def test_epsilon_only_where_a_coin_decided(
    quick: Given, plain: AuditResult, tmp_path: Path
) -> None:
    absent = leakage_of(plain).epsilon
    assert [(one.method, one.attack, one.versions) for one in absent] == [
        (method, *held)
        for held in (("ez", NAMES[:1]), ("mean-rank", NAMES))
        for method in ("one-run", "split-threshold")
    ]
    for one in absent:
        assert one.epsilon is one.n_guesses is one.n_correct is None
        assert one.absent is not None
        assert "--membership randomized" in one.absent
    output = Path(shutil.copytree(folder_of(plain), tmp_path / "run"))
    found = leakage_of(audited(quick, output, membership="randomized", delta=1e-5))
    assert len(found.epsilon) == 4
    for one in found.epsilon:
        assert one.absent is None
        assert one.epsilon is not None
        assert one.epsilon >= 0
        assert one.delta == 1e-5
        assert one.n_guesses is not None
        assert one.n_correct is not None
        assert 0 <= one.n_correct <= one.n_guesses <= 2 * N
    assert found.settings == leakage_of(plain).settings


def test_the_same_again_but_for_times(
    quick: Given, plain: AuditResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anew, from the first pass on; and from stored scores with a process for every core."""
    first = comparable(folder_of(plain))
    audited(quick, tmp_path / "anew")
    assert comparable(tmp_path / "anew") == first
    copy = Path(shutil.copytree(folder_of(plain), tmp_path / "copy"))
    monkeypatch.setattr(attackers_module, "WORTH_PROCESSES", 0)
    real, n_jobs = joblib.Parallel.__call__, []

    def counted(parallel: joblib.Parallel, jobs: Any) -> Any:
        n_jobs.append(parallel.n_jobs)
        return real(parallel, jobs)

    monkeypatch.setattr(joblib.Parallel, "__call__", counted)
    audited(quick, copy)
    assert n_jobs or joblib.cpu_count() == 1
    assert comparable(copy) == first
    for name in ("scores.parquet", "exposure.parquet"):
        contents = [
            (folder / name).read_bytes() for folder in (folder_of(plain), copy, tmp_path / "anew")
        ]
        assert len(set(contents)) == 1


def left_out(result: AuditResult) -> str:
    """Why learned attacks are not there, once all that follows from it was checked."""
    found = leakage_of(result)
    assert found.supervision == found.comparisons == found.controls == []
    assert found.releases is found.exposed is found.n_folds is None
    assert {(one.setting, one.attack) for one in found.settings} == {
        ("SR", "gap"),
        ("SR", "ez-gap"),
        ("MR", "mean-rank"),
    }
    assert found.best is not None
    assert list(found.left_out) == ["learned attacks"]
    warned = [item for item in result.warnings if item.code == "left-out"]
    assert [item.severity for item in warned] == ["warning"]
    reason = found.left_out["learned attacks"]
    assert warned[0].message == f"Left out: learned attacks: {reason}."
    columns = pq.read_schema(folder_of(result) / "scores.parquet").names
    assert {"gap", "ez-gap"} < set(columns)
    assert not {"single", "paired"} & set(columns)
    exposure = pq.read_table(folder_of(result) / "exposure.parquet").to_pandas()
    assert list(exposure.columns) == ["record_id", "is_member", "group", "mean-rank"]
    assert np.isfinite(exposure["mean-rank"]).all()
    return reason


def test_fewer_than_50_on_a_side(
    quick: Given, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = audited(quick, tmp_path / "run", limit=30, min_records=5, folds=40)
    assert left_out(result) == "they need 50 members and 50 nonmembers; a side has 30"
    before = tree(tmp_path / "run")
    assert release(tmp_path / "run", "--out", tmp_path / "out.json") == 2
    printed = capsys.readouterr()
    assert "learned attacks were left out: they need 50 members" in printed.err
    assert printed.out == ""
    assert tree(tmp_path / "run") == before
    assert not (tmp_path / "out.json").exists()


def test_one_heap_of_near_duplicates(
    quick: Given, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every record shares most of its 13-grams with the next, on the other side."""
    rng = random.Random(3)
    words = ["".join(rng.choices("abcdefgh", k=3)) for _ in range(4 * N + 30)]
    texts = [" ".join(words[2 * i : 2 * i + 30]) for i in range(2 * N)]
    given = {
        **quick,
        "members": str(write_records(tmp_path / "members.jsonl", texts[::2])),
        "nonmembers": str(write_records(tmp_path / "nonmembers.jsonl", texts[1::2])),
    }
    arguments = [part for key, value in given.items() for part in (f"--{key}", str(value))]
    arguments += ["--output-path", str(tmp_path / "run"), "--display", "none"]
    assert main(["audit", *arguments]) == 0
    result = open_run(tmp_path / "run").result
    assert "120 records in 1 groups of near-duplicates, 120 in the largest" in left_out(result)
    assert leakage_of(result).n_groups == 1
    assert release(tmp_path / "run") == 2
    assert "near-duplicates" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["audit.json", "scores.parquet", "tokens"])
def test_a_shadow_without_scores(
    missing: str,
    subject: Given,
    shadow: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = Path(shutil.copytree(shadow, tmp_path / "shadow"))
    path = copy / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    printed = refused({**subject, "shadow": copy}, tmp_path / "run", capsys)
    assert str(copy) in printed
    assert missing in printed


def with_tokenizer(given: Given, folder: Path) -> Given:
    model = shutil.copytree(given["model"], folder / "model")
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["Dr "])
    tokenizer.save_pretrained(model)
    return {**given, "model": str(model), "reference": str(model)}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda given, _: {**given, "variants": "bnb-nf4,prune-magnitude:sparsity=0.25"},
            ["the same variants", "lacks prune-magnitude:sparsity=0.25; it has original, "],
        ),
        (with_tokenizer, ["the tokenizer of the audited one"]),
        (
            lambda given, _: {**given, "reference": None},
            ["a reference model where this one has", "this audit is without a reference"],
        ),
    ],
)
def test_a_shadow_that_cannot_teach_about_this_target(
    change: Callable[[Given, Path], Given],
    expected: list[str],
    subject: Given,
    shadow: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {**change(subject, tmp_path), "shadow": shadow}
    printed = refused(given, tmp_path / "run", capsys)
    for part in expected:
        assert part in printed


def test_a_shadow_of_the_same_model(
    subject: Given,
    plain: AuditResult,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {**subject, "shadow": folder_of(plain)}
    assert "another model" in refused(given, tmp_path / "run", capsys)


def test_a_shadow_without_the_reference(
    subject: Given,
    other: Given,
    shadow: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = Path(shutil.copytree(shadow, tmp_path / "shadow"))
    audited({**other, "reference": None}, copy)
    printed = refused({**subject, "shadow": copy}, tmp_path / "run", capsys)
    assert "this audit is with a reference" in printed


def test_a_shadow_with_too_few_records(
    quick: Given,
    other: Given,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    few = audited(quick, tmp_path / "few", limit=30, min_records=5)
    given = {**other, "shadow": folder_of(few)}
    printed = refused(given, tmp_path / "run", capsys)
    assert "50 members and 50 nonmembers to learn from" in printed
    assert "30 on one side" in printed


def test_a_shadow_with_records_of_this_audit(
    subject: Given,
    other: Given,
    shadow: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On the same side they would tell what is to be found out; on the other side they do not."""
    given = {**subject, "nonmembers": other["nonmembers"], "shadow": shadow}
    printed = refused(given, tmp_path / "run", capsys)
    assert "learn from records of its own" in printed
    assert f"{2 * N} records are nonmembers in" in printed
    swapped = {**subject, "members": other["nonmembers"], "nonmembers": other["members"]}
    assert (
        main(["audit", *flags({**swapped, "shadow": shadow}, tmp_path / "run"), "--dry-run"]) == 0
    )


def test_a_shadow_with_another_kind_of_reference(
    quick: Given,
    other: Given,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = save(tiny_model("gpt2", seed=9), tmp_path / "base")
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["Dr "])
    tokenizer.save_pretrained(folder)
    distant = audited({**other, "reference": str(folder)}, tmp_path / "distant")
    capsys.readouterr()
    printed = refused({**quick, "shadow": folder_of(distant)}, tmp_path / "run", capsys)
    assert "must have the model's tokenizer where this one's has" in printed


def test_the_original_alone_is_attacked_too(quick: Given, tmp_path: Path) -> None:
    found = leakage_of(audited(quick, tmp_path / "run", variants="original"))
    assert {(one.attack, one.setting) for one in found.settings} == {("single", "NR")}
    assert (found.comparisons, found.releases, found.exposed) == ([], None, None)
    assert {one.absent is None for one in found.epsilon} == {False}
    assert found.controls
    assert all(one.passed for one in found.controls)
