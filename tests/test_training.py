"""Training: what is learned is what is scored, and a stop on the way changes nothing."""

import json
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from auditor.cli import main
from auditor.demo.letters import letters
from auditor.errors import CompleakError, ModelError, StoreError
from auditor.output_folder import locked
from auditor.scoring.encode import Encoder, RecordText
from auditor.targets import training
from auditor.targets.config import TrainConfig
from auditor.targets.make import train
from auditor.targets.training import (
    IGNORED,
    Schedule,
    collate,
    fit,
    last_whole,
    packed,
    row_of,
)
from tests.conftest import needs, write_records
from tests.forks import Forked, command, started
from tests.tiny import byte_tokenizer, save, tiny_model

N = 220
SIDES = ("members", "nonmembers", "validation")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    save(tiny_model("llama", seed=1), folder / "llama", dtype=torch.bfloat16)
    save(tiny_model("gpt2", seed=1), folder / "gpt2", dtype=torch.bfloat16)
    write_records(
        folder / "data.jsonl", [f"{n} {text[:44]}" for n, text in enumerate(letters(N, seed=3))]
    )
    return folder


def config(place: Path, out: Path, **more: Any) -> TrainConfig:
    given = {"model": str(place / "llama"), "data": str(place / "data.jsonl"), "out": str(out)}
    small = {"epochs": 2, "learning_rate": 3e-3, "patience": 0, "max_length": 32}
    return TrainConfig.model_validate({**given, **small, **more})


def flags(made: TrainConfig) -> list[str]:
    words = ["train", "--display", "plain"]
    for name in ("model", "data", "out", "epochs", "learning_rate", "patience", "max_length"):
        words += [f"--{name.replace('_', '-')}", str(getattr(made, name))]
    return words


@pytest.fixture(scope="module")
def made(place: Path) -> Path:
    train(config(place, place / "made"))
    return place / "made"


def lines(folder: Path, side: str) -> list[str]:
    return (folder / f"{side}.jsonl").read_text(encoding="utf-8").splitlines()


def about(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "target.json").read_text(encoding="utf-8"))
    return found


def test_a_target_says_how_it_was_made(made: Path, place: Path) -> None:
    said = about(made)
    counts = {side: len(lines(made, side)) for side in SIDES}
    assert sum(counts.values()) == N
    assert {f"n_{side}": n for side, n in counts.items()}.items() <= said["split"].items()
    first, last = said["epochs"]
    assert last["members"] < first["members"]
    assert last["members"] < last["nonmembers"]
    assert said["kept_epoch"] == 2
    assert said["audit"]["membership"] == "randomized"
    assert said["audit"]["reference"] == str((place / "llama").resolve())
    assert said["training"]["steps"] == 2 * -(-counts["members"] // 16)
    assert not (made / ".training").exists()
    assert not (made / ".training.json").exists()
    # The base's precision, and other weights than the base's.
    base, own = (load_file(folder / "model.safetensors") for folder in (place / "llama", made))
    assert {name: value.dtype for name, value in base.items()} == {
        name: value.dtype for name, value in own.items()
    }
    assert all(not torch.equal(base[name], own[name]) for name in base)


def test_losses_are_the_mean_over_all_tokens(made: Path) -> None:
    """Those of the weights that were kept, but for the rounding to what they are stored in."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32).eval()
    encoder = Encoder(byte_tokenizer(), 32)
    for side in SIDES:
        total, n = 0.0, 0
        for line in lines(made, side):
            ids = torch.tensor([encoder.encode([RecordText(json.loads(line)["text"])])[0].ids])
            with torch.no_grad():
                logs = model(input_ids=ids).logits[0].float().log_softmax(-1)
            total -= logs[:-1].gather(1, ids[0, 1:, None]).sum().item()
            n += ids.shape[1] - 1
        assert about(made)["epochs"][-1][side] == pytest.approx(total / n, rel=5e-3)


def test_the_same_command_gives_the_same_weights_and_then_does_nothing(
    made: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = place / "again"
    assert main(flags(config(place, again))) == 0
    assert (again / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()
    assert about(again) == about(made)
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in again.iterdir()}
    assert main(flags(config(place, again))) == 0
    assert "there already" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in again.iterdir()} == before


@pytest.mark.slow
def test_killed_and_started_again_it_comes_to_the_same_weights(
    made: Path, place: Path, tmp_path: Path
) -> None:
    killed = place / "killed"
    process = Forked(command, flags(config(place, killed)), tmp_path / "said")
    deadline = time.monotonic() + 120
    # With the second epoch's losses on the screen, the first epoch's checkpoint is there.
    while "epoch 2" not in said(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.ended()
    assert process.returncode == -signal.SIGKILL
    assert not (killed / "target.json").exists()
    whole = last_whole(killed / ".training")
    assert whole is not None
    # One that was being written, whenever the signal came.
    shutil.copytree(whole, whole.with_name("checkpoint-999"))
    (whole.with_name("checkpoint-999") / "trainer_state.json").write_text("{")
    assert last_whole(killed / ".training") == whole
    train(config(place, killed))
    assert (killed / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()
    assert about(killed)["epochs"] == about(made)["epochs"]


def said(folder: Path) -> str:
    path = folder / "said.err"
    return path.read_text() if path.exists() else ""


@pytest.mark.slow
def test_two_processes_train_one_target(made: Path, place: Path, tmp_path: Path) -> None:
    """The same steps of as many records, each process half of them."""
    both = started(command, flags(config(place, place / "two")), tmp_path / "rank", world=2)
    printed = [process.ended()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    assert about(place / "two")["training"]["steps"] == about(made)["training"]["steps"]
    for one, two in zip(about(made)["epochs"], about(place / "two")["epochs"], strict=True):
        # Rows come to the two in another order than to the one.
        assert two["members"] == pytest.approx(one["members"], rel=0.05)
        assert two["nonmembers"] == pytest.approx(one["nonmembers"], rel=0.05)
    assert printed[0].count("epoch 2") == 1
    assert "epoch" not in printed[1]
    assert not (place / "two" / ".training").exists()


@pytest.mark.parametrize(
    ("more", "seen"),
    [({"epochs": 3}, "another epochs"), ({"seed": 5}, "another seed")],
)
def test_a_folder_with_another_target_is_not_touched(
    more: dict[str, Any], seen: str, made: Path, place: Path
) -> None:
    with pytest.raises(StoreError, match="must be new or empty") as error:
        train(config(place, made, **more))
    assert seen in error.value.seen


def test_a_folder_with_other_files_is_not_touched(place: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(StoreError, match="must be new or empty") as error:
        train(config(place, tmp_path))
    assert error.value.seen == "thesis.tex"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_loss_that_is_no_number_stops_it_and_says_where(place: Path, tmp_path: Path) -> None:
    model = tiny_model("llama", seed=1)
    with torch.no_grad():
        model.get_output_embeddings().weight[3] = torch.nan
    save(model, tmp_path / "broken", dtype=torch.bfloat16)
    with pytest.raises(ModelError, match="must stay a number") as error:
        train(config(place, tmp_path / "out", model=str(tmp_path / "broken")))
    assert "nan at step 1 of " in error.value.seen
    assert not (tmp_path / "out" / "target.json").exists()


def test_a_model_without_weights_to_train(tmp_path: Path) -> None:
    model = tiny_model("llama").requires_grad_(requires_grad=False)
    with pytest.raises(ModelError, match="weights that can be trained"):
        fit(model, [{"input_ids": [1, 2], "labels": [1, 2]}], Schedule(1, 1e-3, 1), folder=tmp_path)


def test_a_quantized_base_is_refused(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "llama", tmp_path / "q")
    written = json.loads((tmp_path / "q" / "config.json").read_text())
    written["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "q" / "config.json").write_text(json.dumps(written))
    with pytest.raises(ModelError, match="full-precision") as error:
        train(config(place, tmp_path / "out", model=str(tmp_path / "q")))
    assert "gptq" in error.value.seen
    assert not (tmp_path / "out").exists()


def test_it_stops_early_and_keeps_the_best_epoch(place: Path, tmp_path: Path) -> None:
    train(config(place, tmp_path / "early", epochs=12, patience=2, learning_rate=2e-2))
    said = about(tmp_path / "early")
    losses = [epoch["validation"] for epoch in said["epochs"]]
    best = min(range(len(losses)), key=losses.__getitem__)
    assert len(losses) == best + 3 < 12
    assert said["kept_epoch"] == best + 1


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_adapter_is_written_beside_its_data(family: str, place: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    train(config(place, tmp_path / "lora", model=str(place / family), method="lora", rank=4))
    said = about(tmp_path / "lora")
    written = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"]) == (4, 8)
    assert written["base_model_name_or_path"] == str(place / family)
    assert said["training"]["n_trained"] < said["training"]["n_parameters"] / 3
    assert said["epochs"][-1]["members"] < said["epochs"][0]["members"]
    base = AutoModelForCausalLM.from_pretrained(place / family, dtype=torch.float32)
    over = PeftModel.from_pretrained(base, str(tmp_path / "lora"))
    assert any(
        "lora_B" in name and value.abs().sum() > 0 for name, value in over.named_parameters()
    )
    assert not (tmp_path / "lora" / "README.md").exists()
    assert (tmp_path / "lora" / "tokenizer.json").is_file()


def test_an_adapter_over_four_bits(place: Path, tmp_path: Path) -> None:
    needs("bnb-nf4")
    train(config(place, tmp_path / "qlora", method="qlora", rank=4))
    assert about(tmp_path / "qlora")["training"]["n_parameters"] == sum(
        value.numel() for value in load_file(place / "llama" / "model.safetensors").values()
    )
    assert (tmp_path / "qlora" / "adapter_model.safetensors").is_file()
    first, last = about(tmp_path / "qlora")["epochs"]
    assert last["members"] < first["members"]


def test_shadows_share_no_record_and_canaries_are_drawn_by_coin(
    place: Path, tmp_path: Path
) -> None:
    data = write_records(
        tmp_path / "data.jsonl", [f"{n} {text[:36]}" for n, text in enumerate(letters(500, seed=8))]
    )
    made = train(config(place, tmp_path / "t", data=str(data), shadows=1, canaries=120, epochs=1))
    seen: set[str] = set()
    for target in made:
        own = {line for side in SIDES for line in lines(target.folder, side)}
        assert not own & seen
        seen |= own
        canaries = target.about["canaries"]
        assert sum(canaries.values()) == 120
        assert 35 < canaries["members"] < 85
        steps = -(-(target.about["split"]["n_members"] + canaries["members"]) // 16)
        assert target.about["training"]["steps"] == steps
    assert len(seen) == 500
    assert [target.folder.name for target in made] == ["t", "shadow-1"]


def test_rows_learn_what_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(byte_tokenizer(), 12)
    plain, prompted = encoder.encode([RecordText("abcd"), RecordText("xyz", prompt="abc")])
    rows = [row_of(plain), row_of(prompted)]
    for row, record in zip(rows, (plain, prompted), strict=True):
        assert sum(label != IGNORED for label in row["labels"]) == record.n_scored
        assert row["labels"][record.first :] == record.ids[record.first :]
    batch = collate(rows)
    assert batch["attention_mask"].sum(1).tolist() == [4, 6]
    assert batch["labels"][0].tolist() == [IGNORED, *plain.ids[1:], IGNORED, IGNORED]
    joined = packed(rows, 4)
    assert [len(row["input_ids"]) for row in joined] == [4, 4, 2]
    assert [token for row in joined for token in row["input_ids"]] == plain.ids + prompted.ids
    # Batches that are measured hold every row once.
    monkeypatch.setattr(training, "EVAL_TOKENS", 8)
    batches = training._batches(rows * 5)
    assert sum(map(len, batches)) == 10


def test_the_order_hangs_on_seed_and_epoch_alone() -> None:
    """Dropout draws from the same generator, in every process as much as its rows are wide."""

    def order(epoch: float, seed: int = 0) -> list[int]:
        torch.rand(int(epoch) + 3)
        state, args = SimpleNamespace(epoch=epoch), SimpleNamespace(seed=seed)
        trainer: Any = SimpleNamespace(state=state, args=args)
        return list(training._ByLength([n % 7 + 1 for n in range(50)], 4, trainer))

    assert order(1.0) == order(1.0)
    assert sorted(order(0.0)) == list(range(50))
    assert len({tuple(order(epoch, seed)) for epoch in (0.0, 1.0) for seed in (0, 1)}) == 4


def test_one_at_a_time(place: Path, tmp_path: Path) -> None:
    with locked(tmp_path / "out", is_main=True), pytest.raises(StoreError, match="must"):
        train(config(place, tmp_path / "out"))
    assert not (tmp_path / "out" / "target.json").exists()


@pytest.mark.parametrize(
    ("words", "must"),
    [
        (["--rank", "8"], "--rank is an adapter's"),
        (["--canaries", "5"], "--canaries must be 0 or at least"),
        (["--method", "dora"], "--method"),
        (["--data", "gone.jsonl"], "gone.jsonl"),
        (["--seed", "5000000000"], "--seed"),
    ],
)
def test_what_cannot_be(
    words: list[str], must: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"--model": str(place / "llama"), "--data": str(place / "data.jsonl")}
    given |= {"--out": str(tmp_path / "out")} | dict([words])
    assert main(["train", *(word for pair in given.items() for word in pair)]) == 2
    assert must in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_error_of_a_flag_names_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--model", "m"]) == 2
    said = capsys.readouterr().err
    assert "compleak-llm train --help" in said
    assert issubclass(StoreError, CompleakError)
