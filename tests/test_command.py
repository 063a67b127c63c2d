"""The command that repeats an audit: what a shell and the command line make of it."""

import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.cli import app
from auditor.config import AuditConfig
from auditor.finished import read_result
from auditor.recipes import BY_HAND, configure
from auditor.report.command import RECIPE, repeat_command
from auditor.results import AuditResult
from tests.report_cases import invented_run


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> AuditResult:
    folder = invented_run(
        tmp_path_factory.mktemp("command") / "run", n=120, n_variants=1, beyond=False
    )
    return read_result(folder / "audit.json")


def of(base: AuditResult, config: dict[str, Any]) -> str:
    return repeat_command(base.model_copy(update={"config": config}))


def words(command: str) -> list[str]:
    """What a shell makes of a command on several lines."""
    return shlex.split(command.replace(" \\\n", " "))


def read_back(command: str, folder: Path) -> AuditConfig:
    """The configuration that the command line makes of a command."""
    if command.startswith("cat > "):
        first, _, rest = command.partition("\n")
        assert first == f"cat > {RECIPE} <<'END'"
        content, _, command = rest.partition("\nEND\n")
        (folder / RECIPE).write_text(content, encoding="utf-8")
        program, verb, *given = words(command)
        assert [program, verb, *given[:2]] == ["compleak-llm", "audit", "--recipe", RECIPE]
        # What a recipe alone may not allow stands beside it.
        beside = {flag.removeprefix("--").replace("-", "_"): True for flag in given[2:]}
        assert beside.keys() <= set(BY_HAND)
        return configure(beside, recipe=str(folder / RECIPE))
    program, *given = words(command)
    assert program == "compleak-llm"
    _, bound, _ = app.parse_args(given, exit_on_error=False, print_error=False)
    return configure({k: v for k, v in bound.kwargs.items() if v is not None})


odd = st.sampled_from(
    ["a b", "it's", '"', "$HOME", "`id`", "\\", "é", "-x", "--limit", "#", "~", "*"]
)
texts = st.one_of(odd, st.text(min_size=1, max_size=12))
paths = texts.filter(lambda text: "," not in text and text.isprintable() and text == text.strip())
variants = st.one_of(
    st.sampled_from(
        [
            "bnb-nf4",
            "gptq:bits=3,group_size=64,desc_act=true",
            "prune-magnitude:sparsity=0.5,scope=global",
            "prune-sparsegpt:pattern=2:4",
            "cluster:k=8",
        ]
    ),
    paths.filter(lambda text: "=" not in text).map("checkpoint:{}".format),
    paths.filter(lambda text: "=" not in text).map("checkpoint:{},revision=v 1".format),
)


@st.composite
def sources(draw: st.DrawFn) -> dict[str, str | None]:
    one = st.one_of(st.none(), texts)
    return {
        "path": draw(texts),
        "name": draw(one),
        "split": draw(st.one_of(st.none(), st.just("train[:10%]"))),
        "revision": draw(one),
    }


@st.composite
def configurations(draw: st.DrawFn) -> AuditConfig:
    pair = draw(st.booleans())
    names = draw(st.lists(variants, max_size=4))
    options: dict[str, st.SearchStrategy[Any]] = {
        "model_args": st.dictionaries(
            st.sampled_from(["revision", "tokenizer", "dtype"]), texts, max_size=2
        ),
        "text_column": st.text(max_size=8),
        "reference": texts,
        "calibration": sources(),
        "dtype": st.sampled_from(["float32", "bfloat16"]),
        "seed": st.integers(0, 10**9),
        "trust_remote_code": st.booleans(),
        "include_text": st.booleans(),
        "settings": st.sampled_from([("NR",), ("NR", "SR", "MR"), ("SR", "MR"), ()]),
        "fpr": st.lists(st.floats(1e-6, 0.5), min_size=1, max_size=3).map(tuple),
        "confidence": st.floats(0.6, 0.999),
        "limit": st.integers(1, 10**6),
        "batch_size": st.integers(1, 512),
        "learners": st.just(("logistic",)),
        "shadow": st.lists(paths, max_size=2).map(tuple),
        "delta": st.floats(0, 0.5),
        "membership": st.just("randomized"),
        "output_path": texts,
    }
    chosen = draw(st.sets(st.sampled_from(sorted(options)), max_size=6))
    given_: dict[str, Any] = {"model": draw(texts), "variants": names}
    given_ |= {name: draw(options[name]) for name in sorted(chosen)}
    given_ |= (
        {"members": draw(sources()), "nonmembers": draw(sources())}
        if pair
        else {"data": draw(sources())}
    )
    return AuditConfig.model_validate(given_)


def test_the_command_gives_the_same_configuration(base: AuditResult, tmp_path: Path) -> None:
    @settings(max_examples=150, deadline=None)
    @given(config=configurations())
    def check(config: AuditConfig) -> None:
        command = of(base, config.model_dump(mode="json"))
        assert read_back(command, tmp_path) == config
        assert all(line.isprintable() for line in command.split("\n"))

    check()


def test_what_differs_from_the_defaults_stands_on_a_line_each(base: AuditResult) -> None:
    config = AuditConfig.model_validate(
        {
            "model": "org/model",
            "members": "my members.jsonl",
            "nonmembers": "data,name=b,split=test",
            "variants": "bnb-nf4,gptq:bits=3,group_size=64",
            "include_text": True,
            "at_most": "tpr=0.05@fpr=0.01",
            "release": "original,bnb-nf4",
            "controls": "noise",
            "fpr": "0.01,0.2",
            "output_path": "-runs",
        }
    )
    assert of(base, config.model_dump(mode="json")).split("\n") == [
        "compleak-llm audit \\",
        "  --model org/model \\",
        "  --members 'my members.jsonl' \\",
        "  --nonmembers data,name=b,split=test \\",
        "  --variants bnb-nf4,gptq:bits=3,group_size=64 \\",
        "  --at-most tpr=0.05@fpr=0.01 \\",
        "  --release original,bnb-nf4 \\",
        "  --controls noise \\",
        "  --fpr 0.01,0.2 \\",
        "  --output-path=-runs \\",
        "  --include-text",
    ]


def test_what_no_flag_can_spell_goes_into_a_recipe(base: AuditResult, tmp_path: Path) -> None:
    members = {"path": "a,b\u202e\x1b\U000e0001\U0001f600.jsonl"}
    config = AuditConfig.model_validate(
        {"model": "m\nEND\nrm -rf ~", "members": members, "nonmembers": "n.jsonl"}
    )
    command = of(base, config.model_dump(mode="json"))
    assert all(line.isprintable() for line in command.split("\n"))
    assert command.split("\n").count("END") == 1
    assert "rm -rf" not in [line[:6] for line in command.split("\n")]
    assert read_back(command, tmp_path) == config


def test_a_configuration_of_another_version_is_said_as_far_as_it_is_known(
    base: AuditResult,
) -> None:
    known = {
        "model": "m",
        "members": {"path": "a.jsonl", "name": None, "split": "x", "revision": None},
        "nonmembers": {"path": "b.jsonl"},
        "variants": ["original", "from-the-future:bits=1"],
        "learners": ["oracle"],
        "seed": 4,
    }
    strange = {"wormhole": {"depth": [1]}, "a b\n`$(reboot)`": 1}
    command = of(base, {**known, **strange})
    lines = command.split("\n")
    assert lines[0] == "# options that this version does not know are left out: wormhole, 1 more"
    assert words("\n".join(lines[1:])) == [
        "compleak-llm",
        "audit",
        *("--model", "m"),
        *("--members", "a.jsonl,split=x"),
        *("--nonmembers", "b.jsonl"),
        *("--seed", "4"),
        *("--variants", "from-the-future:bits=1"),
        *("--learners", "oracle"),
    ]
    assert of(base, {}) == "compleak-llm audit"
    # What cannot be known is not guessed at, and nothing fails.
    odd_values = {"model": None, "fpr": [{"x": 1}], "members": [], "seed": {"a": "b,c"}, "limit": 3}
    assert "--recipe" in of(base, odd_values)
