"""A hostile checkpoint or recipe runs nothing: pickles, code of its own, kernels, tried."""

import ast
import pickle
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from auditor import AuditConfig, audit
from auditor.artifacts.scan import scan_checkpoints
from auditor.card import write_card
from auditor.compress.checkpoint import load_tokenizer, open_checkpoint
from auditor.compress.options import CheckpointOptions
from auditor.compress.published import identify
from auditor.errors import CompleakError, ConfigError, ModelError
from auditor.recipes import configure
from auditor.report.page import write_report
from auditor.results import AuditResult
from tests.conftest import write_records
from tests.hostile_checkpoints import edit, pickled_model, with_code, write_pickle
from tests.test_security_texts import invented
from tests.tiny import save, tiny_model

SOURCES = Path(__file__).parent.parent / "auditor"


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return save(tiny_model("llama"), tmp_path / "plain")


# --- pickles


def test_the_pickle_of_these_tests_does_harm(tmp_path: Path) -> None:
    write_pickle(tmp_path / "x", tmp_path / "ran", with_torch=False)
    pickle.loads((tmp_path / "x").read_bytes())
    assert (tmp_path / "ran").is_dir()


@pytest.mark.parametrize("with_torch", [True, False])
@pytest.mark.parametrize("place_of_it", ["model", "reference", "checkpoint", "hqq", "index"])
def test_no_pickle_is_run(
    place_of_it: str, plain: Path, tmp_path: Path, *, with_torch: bool
) -> None:
    """Refused without --allow-pickle, and with it nothing but tensors comes out of one."""
    marker = tmp_path / "ran"
    bad = pickled_model(tmp_path / "bad", marker, with_torch=with_torch)
    if place_of_it == "hqq":
        edit(bad / "config.json", quantization_config={"quant_method": "hqq"})
        (bad / "pytorch_model.bin").rename(bad / "qmodel.pt")
    if place_of_it == "index":
        (bad / "pytorch_model.bin").rename(bad / "a.bin")
        index = '{"metadata": {}, "weight_map": {"x": "a.bin"}}'
        (bad / "pytorch_model.bin.index.json").write_text(index)
    config: dict[str, Any] = {"model": str(plain), "output_path": str(tmp_path / "out")}
    lists = [write_records(tmp_path / f"{s}.jsonl", invented(50, seed=s)) for s in (1, 2)]
    config |= {"members": str(lists[0]), "nonmembers": str(lists[1])}
    if place_of_it in ("checkpoint", "hqq", "index"):
        config["variants"] = f"checkpoint:{bad}"
    else:
        config[place_of_it] = str(bad)
    for allowed, expected in ((False, "only pickle"), (True, "nothing but tensors")):
        with pytest.raises(CompleakError) as caught:
            audit(AuditConfig.model_validate({**config, "allow_pickle": allowed}))
        assert expected in str(caught.value)
        assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["model.safetensors", "x.gguf", "tokenizer.json", "tokenizer.model", "config.json"]
)
def test_a_pickle_under_another_name_is_not_run(name: str, plain: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (plain / "tokenizer.json").unlink()
    write_pickle(plain / name, marker, with_torch=False)
    original = open_checkpoint(str(save(tiny_model("llama"), tmp_path / "original")))
    path = str(plain / name) if name == "x.gguf" else str(plain)
    with pytest.raises(CompleakError):
        identify(CheckpointOptions(path=path), original)
        open_checkpoint(path)  # the tokenizer of a version is not needed
    assert not marker.exists()


def test_what_lies_beside_the_weights_is_searched_and_never_opened_as_a_pickle(
    plain: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "ran"
    names = ("optimizer.pt", "training_args.bin", "adapter_model.bin", "tokenizer.pkl", "a.joblib")
    for at, name in enumerate(names):
        write_pickle(plain / name, marker, with_torch=bool(at % 2))
    bomb = np.array([pickle.loads], dtype=object)
    np.save(plain / "states.npy", bomb, allow_pickle=True)
    np.savez(plain / "states.npz", x=bomb)
    named = {found.file for found in scan_checkpoints({"m": plain}, [("0", True, "a b c d e")])}
    assert {*names, "states.npy", "states.npz"} <= named
    assert open_checkpoint(str(plain)).sha256
    assert not marker.exists()


def _calls() -> Iterator[tuple[str, str, ast.Call]]:
    for path in sorted(SOURCES.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield path.name, ast.unparse(node.func), node


def test_nothing_in_the_program_runs_what_it_reads() -> None:
    pickled = re.compile(r"(pickle|dill|cloudpickle|joblib|marshal|shelve)\.(loads?|open)")
    others = {"eval", "exec", "os.system", "os.popen", "yaml.load", "np.load", "numpy.load"}
    loads = []
    for file, name, call in _calls():
        words = {word.arg: ast.unparse(word.value) for word in call.keywords}
        if name == "torch.load":
            loads.append((file, words.get("weights_only")))
        assert name not in others and not pickled.fullmatch(name), (file, name)
        assert words.get("shell", "False") == "False", file
    assert loads == [("adapter.py", "True"), ("published_packed.py", "True")]


# --- code of others


def test_no_code_of_a_checkpoint_is_run(plain: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    odd = with_code(tmp_path / "odd", marker)
    with pytest.raises(ModelError, match=r"auto_map.*\n.*--trust-remote-code"):
        open_checkpoint(str(odd))
    with pytest.raises(ModelError, match="--trust-remote-code"):
        identify(CheckpointOptions(path=str(odd)), open_checkpoint(str(plain)))
    # A tokenizer's own class is left alone where the library has one.
    shutil.copyfile(odd / "odd.py", plain / "odd.py")
    edit(plain / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "odd.OddTokenizer"]})
    try:
        assert type(load_tokenizer(open_checkpoint(str(plain)))).__name__ != "OddTokenizer"
    except ModelError as error:
        assert "trust_remote_code" in error.seen
    assert not marker.exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts"])
def test_no_kernel_of_a_repository_is_fetched(key: str, plain: Path) -> None:
    """transformers takes the name of a repository from config.json, and would run what is there."""
    key = "experts_implementation" if key == "experts" else key
    edit(plain / "config.json", **{key: "evil/kernel@main:run"})
    with pytest.raises(ModelError, match="evil/kernel"):
        open_checkpoint(str(plain))
    assert open_checkpoint(str(plain), trust_remote_code=True).sha256


def test_no_kernel_is_fetched_for_a_flag_or_for_a_part(plain: Path) -> None:
    with pytest.raises(ModelError, match="evil/kernel"):
        open_checkpoint(str(plain), model_args={"attn_implementation": "evil/kernel"})
    assert open_checkpoint(str(plain), model_args={"attn_implementation": "eager"}).sha256
    from transformers import CLIPConfig

    from auditor.compress.inside import foreign_code

    config: Any = CLIPConfig()
    assert foreign_code(config) is None
    config.text_config._attn_implementation = "evil/kernel"
    assert foreign_code(config) == "evil/kernel"


@pytest.mark.parametrize("key", ["trust_remote_code", "allow_pickle", "trust-remote-code"])
def test_no_recipe_allows_it_alone(key: str, tmp_path: Path) -> None:
    recipe = tmp_path / "audit.yaml"
    recipe.write_text(f"model: m\nmembers: a\nnonmembers: b\n{key}: true\n")
    field = key.replace("-", "_")
    with pytest.raises(ConfigError, match=f"--{field.replace('_', '-')}.*command line"):
        configure({}, recipe=str(recipe))
    assert getattr(configure({field: True}, recipe=str(recipe)), field) is True
    assert getattr(configure({field: False}, recipe=str(recipe)), field) is False


@pytest.fixture(scope="module")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AuditResult]:
    """An audit in which code and pickles were allowed: of the model, its reference, a version."""
    folder = tmp_path_factory.mktemp("trusted")
    marks = [folder / f"ran-{name}" for name in ("model", "reference", "version")]
    models = [
        with_code(folder / f"odd{at}", mark, seed=1 + (at == 1), changed=0.01 * (at == 2))
        for at, mark in enumerate(marks)
    ]
    lists = [write_records(folder / f"{s}.jsonl", invented(50, seed=s)) for s in (1, 2)]
    given: dict[str, Any] = {"model": str(models[0]), "reference": str(models[1])}
    given |= {"variants": f"checkpoint:{models[2]}", "output_path": str(folder / "run")}
    given |= {"members": str(lists[0]), "nonmembers": str(lists[1])}
    given |= {"trust_remote_code": True, "allow_pickle": True}
    given |= {"bootstrap": 100, "fpr": "0.2", "repeats": 1, "learners": "logistic"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folder / "modules"))
        result = audit(AuditConfig.model_validate(given))
    assert all(mark.is_dir() for mark in marks)
    return folder / "run", result


def test_that_it_was_allowed_stands_everywhere(
    trusted: tuple[Path, AuditResult], tmp_path: Path
) -> None:
    run, result = trusted
    assert result.config["trust_remote_code"] is True and result.config["allow_pickle"] is True
    assert {"remote-code", "pickle"} <= {warned.code for warned in result.warnings}
    page, *_ = write_report(run, kind="html", out=tmp_path / "report.html")
    text, *_ = write_report(run, kind="md", out=tmp_path / "report.md")
    write_card(run, readme=tmp_path / "README.md", create=True)
    for path in (run / "audit.json", page, text, tmp_path / "README.md"):
        plain = re.sub(r"<wbr>|\\", "", path.read_text(encoding="utf-8"))
        assert "was allowed to run (--trust-remote-code)" in plain, path.name
        assert "allowed to be read from pickle files" in plain, path.name
