"""A million records through a tiny model: memory and speed over time, resume after `kill -9`.

    python -m benchmarks.long_run --records 20000,100000,1000000 [--at runs/long] [--draw]

For each number of records, half of them members: invented records of 12 to 16 words are written,
and `compleak-llm audit` (the original and one variant) is started on them, killed with SIGKILL when
half of the original's shards are there, given again until it is done, and given once more when
nothing is left to do. Every process is watched from outside: its resident memory from /proc every
half second, its stage by the lines that it writes, the shards by the time that each was written.
What was seen stays in `seen.json`, from which `--draw` makes the tables again. The figure of the
largest run goes to `benchmarks/results/long_run.svg`.
"""

import argparse
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from auditor.report.plots.canvas import (
    BODY,
    finish_ticks,
    name_axes,
    new_axes,
    new_figure,
    plain_style,
    text_width,
    tone,
    write,
)
from auditor.report.plots.canvas import sample as sample_line
from auditor.store import plan_shards
from benchmarks.machine import machine
from benchmarks.watched import Ran, Sample, Watched

Float64 = npt.NDArray[np.float64]

RESULTS = Path(__file__).parent / "results"
VARIANT = "prune-magnitude:sparsity=0.5"
VOCABULARY = 509
LENGTHS = (12, 16)  # words of a record, which are its tokens
SHARD = re.compile(r"shard-(\d+)-[0-9a-f]+\.parquet")
# The stages that the display names, by how their line begins.
STAGES = {
    "reading": "reading",
    "original": "scoring",
    "prune": "scoring",
    "searching": "search",
    "blind": "blind",
    "attacks": "judging",
}


class Written(NamedTuple):
    """Shards of one version in the order of their numbers.

    Attributes:
        at: When each was written, seconds of the clock.
        n_records: What it holds.
        n_tokens: The same, in tokens that are scored.
    """

    at: list[float]
    n_records: list[int]
    n_tokens: list[int]


def write_model(folder: Path) -> None:
    """A Llama of one layer and 16 dimensions, and a tokenizer that knows so many words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=VOCABULARY + 1,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=0,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    known = {"<end>": 0, **{word: number + 1 for number, word in enumerate(words())}}
    tokenizer = Tokenizer(models.WordLevel(vocab=known, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", model_max_length=32
    ).save_pretrained(folder)


def words() -> list[str]:
    """Invented words of two syllables, all different."""
    syllables = [first + second for first in "bdfgklmnprstvz" for second in "aeiou"]
    pairs = [first + second for first in syllables for second in syllables]
    return [str(word) for word in np.random.default_rng(1).permutation(pairs)[:VOCABULARY]]


def write_records(folder: Path, n: int) -> None:
    """`members.jsonl` and `nonmembers.jsonl`, n / 2 records each, all different."""
    rng = np.random.default_rng(0)
    known = np.array(words())
    seen: set[str] = set()
    for side in ("members", "nonmembers"):
        with (folder / f"{side}.jsonl").open("w", encoding="utf-8") as file:
            left = n // 2
            while left:
                drawn = known[rng.integers(0, VOCABULARY, LENGTHS[1])]
                text = " ".join(drawn[: rng.integers(LENGTHS[0], LENGTHS[1] + 1)])
                if text not in seen:
                    seen.add(text)
                    file.write(json.dumps({"text": text}) + "\n")
                    left -= 1


def started(folder: Path) -> Watched:
    """An audit of what lies in a folder, on its way."""
    flags = {
        "model": folder / "model",
        "members": folder / "members.jsonl",
        "nonmembers": folder / "nonmembers.jsonl",
        "variants": VARIANT,
        "output-path": folder / "run",
        "display": "plain",
    }
    command = [sys.executable, "-m", "auditor", "audit"]
    return Watched([*command, *(f"--{key}={value}" for key, value in flags.items())], STAGES)


def shards_of(run: Path, version: str) -> dict[int, Path]:
    """The shards of a version that are there, by number."""
    found = {}
    for folder in run.glob(f"tokens/{version.partition(':')[0]}*"):
        for entry in os.scandir(folder):
            if match := SHARD.fullmatch(entry.name):
                found[int(match[1])] = Path(entry.path)
    return found


def written(run: Path, version: str) -> Written:
    """When the shards of a finished version were written, and what they hold."""
    import pyarrow.parquet as pq

    found = sorted(shards_of(run, version).items())
    tables = [pq.read_table(path, columns=["hit"], use_threads=False) for _, path in found]
    return Written(
        [path.stat().st_mtime for _, path in found],
        [table.num_rows for table in tables],
        [len(table["hit"].combine_chunks().flatten()) for table in tables],
    )


class Seen(NamedTuple):
    """What came of one number of records.

    Attributes:
        machine: Which machine, and the date.
        n: Records.
        ran: Three processes: killed, gone on, nothing left to do.
        versions: By version, its shards.
    """

    machine: str
    n: int
    ran: list[Ran]
    versions: dict[str, Written]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self), encoding="utf-8")


def read_seen(path: Path) -> Seen:
    """What `Seen.save` has written."""
    name, n, ran, versions = json.loads(path.read_text(encoding="utf-8"))
    return Seen(
        name,
        n,
        [Ran(begin, end, [Sample(*one) for one in samples]) for begin, end, samples in ran],
        {version: Written(*columns) for version, columns in versions.items()},
    )


def long_run(folder: Path, n: int) -> Seen:
    """Write records, run, kill, go on, and judge again; records that are there are used again."""
    run = folder / "run"
    if not (folder / "nonmembers.jsonl").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_model(folder / "model")
        write_records(folder, n)
    shutil.rmtree(run, ignore_errors=True)
    half = len(plan_shards(np.full(n, sum(LENGTHS) // 2))) // 2
    killed = started(folder).until(lambda: len(shards_of(run, "original")) >= half)
    ran = [killed, *(started(folder).until(lambda: False) for _ in range(2))]
    versions = {name: written(run, name) for name in ("original", VARIANT)}
    return Seen(machine(), n, ran, versions)


def seconds_of(ran: Ran) -> dict[str, float]:
    """Seconds that a process spent at each stage, in their order."""
    found: dict[str, float] = {}
    ends = [sample.at for sample in ran.samples[1:]] + [ran.end]
    begins = [ran.begin] + [sample.at for sample in ran.samples[1:]]
    for sample, begin, end in zip(ran.samples, begins, ends, strict=True):
        found[sample.stage] = found.get(sample.stage, 0.0) + end - begin
    return found


def first_shard_s(seen: Seen) -> float:
    """Seconds from the second start to the first shard that it wrote."""
    begin = seen.ran[1].begin
    return min(at for at in seen.versions["original"].at if at > begin) - begin


class Speeds(NamedTuple):
    """How quick one version was, shard by shard; what a start took is left out.

    Attributes:
        at: When the shard was written, seconds of the clock.
        records: Records for each second of a processor, which does not count what others took.
        tokens: The same in tokens.
    """

    at: Float64
    records: Float64
    tokens: Float64


def speeds(seen: Seen, shards: Written) -> Speeds:
    """The speed of each shard of a version but the first after a start."""
    found = []
    at, held = np.array(shards.at), np.array([shards.n_records, shards.n_tokens])
    for ran in seen.ran:
        own = np.flatnonzero((at > ran.begin) & (at <= ran.end))
        clock, used = ([getattr(s, name) for s in ran.samples] for name in ("at", "cpu_s"))
        spent = np.diff(np.interp(at[own], clock, used))
        found.append(np.stack([at[own][1:], *(held[:, own[1:]] / np.maximum(spent, 1e-3))]))
    return Speeds(*np.concatenate(found, axis=1))


def last_over_first(values: Float64) -> float:
    """The median of the last tenth over that of the first."""
    part = max(1, len(values) // 10)
    return float(np.median(values[-part:]) / np.median(values[:part]))


def print_tables(found: list[Seen]) -> None:
    """Seconds and memory by stage, speed and resume."""
    stages = ("start", *dict.fromkeys(STAGES.values()))
    print(f"{found[-1].machine}\n")
    print(f"| records | process | {' | '.join(f'{stage}, s' for stage in stages)} | all, s |")
    print(f"|---|---|{'---|' * (len(stages) + 1)}")
    for seen in found:
        for name, ran in zip(("killed", "gone on", "again"), seen.ran, strict=True):
            seconds = seconds_of(ran)
            cells = " | ".join(f"{seconds.get(stage, 0.0):,.1f}" for stage in stages)
            print(f"| {seen.n:,} | {name} | {cells} | {ran.end - ran.begin:,.1f} |")
    print(f"\n| records | {' | '.join(f'{stage}, MiB' for stage in stages)} | in the scoring |")
    print(f"|---|{'---|' * (len(stages) + 1)}")
    for seen in found:
        samples = [sample for ran in seen.ran[:2] for sample in ran.samples]
        peaks = [
            max((s.resident + s.workers for s in samples if s.stage == stage), default=0) / 2**20
            for stage in stages
        ]
        cells = " | ".join(f"{peak:,.0f}" for peak in peaks)
        print(f"| {seen.n:,} | {cells} | {growth(seen) / 2**20:+,.0f} MiB |")
    print("\n| records | version | last / first tenth, records/s | tokens/s | first shard, s |")
    print("|---|---|---|---|---|")
    for seen in found:
        for version, shards in seen.versions.items():
            own = speeds(seen, shards)
            first = f"{first_shard_s(seen):,.1f}" if version == "original" else ""
            cells = f"{last_over_first(own.records):.2f} | {last_over_first(own.tokens):.2f}"
            print(f"| {seen.n:,} | {version} | {cells} | {first} |")


def growth(seen: Seen) -> float:
    """Median of resident bytes in the last tenth of the scoring less that in the second tenth."""
    scoring = [sample.resident for sample in seen.ran[1].samples if sample.stage == "scoring"]
    part = max(1, len(scoring) // 10)
    return float(np.median(scoring[-part:]) - np.median(scoring[part : 2 * part]))


def draw(seen: Seen, path: Path) -> None:
    """Memory and speed of the three processes over time, one after another."""
    with plain_style():
        figure = new_figure("wide", 500)
        memory = new_axes(figure, left=60, top=70, width=640, height=180)
        speed = new_axes(figure, left=60, top=310, width=640, height=130)
        zero = seen.ran[0].begin
        for ran in seen.ran:
            at = [sample.at - zero for sample in ran.samples]
            alone = [sample.resident / 2**20 for sample in ran.samples]
            every = [(sample.resident + sample.workers) / 2**20 for sample in ran.samples]
            memory.plot(at, every, color=tone("pair"), linewidth=1.0)
            memory.plot(at, alone, color=tone("original"), linewidth=1.4)
            scoring = [sample.at - zero for sample in ran.samples if sample.stage == "scoring"]
            if scoring:
                memory.axvspan(scoring[0], scoring[-1], color=tone("line"), alpha=0.5, linewidth=0)
        memory.axvline(seen.ran[1].begin - zero, color=tone("bad"), linewidth=1.0)
        memory.axvline(seen.ran[2].begin - zero, color=tone("good"), linewidth=1.0)
        for colour, shards in zip(("original", "variant"), seen.versions.values(), strict=True):
            own = speeds(seen, shards)
            speed.plot(own.at - zero, own.records, ".", color=tone(colour), markersize=3.0)
        end = seen.ran[-1].end - zero
        memory.set(xlim=(0, end), ylim=(0, None))
        speed.set(xlim=(0, end), ylim=(0, None))
        for axes in (memory, speed):
            axes.yaxis.set_major_formatter("{x:,.0f}")
            finish_ticks(axes)
        name_axes(memory, across="", up="resident memory, MiB")
        name_axes(
            speed, across="seconds", up="records for each second of a processor, each point a shard"
        )
        write(figure, (22, 24), f"{seen.n:,} records, two versions", size=BODY, bold=True)
        said = (
            ("main process", "original"),
            ("with its workers", "pair"),
            ("killed and given again", "bad"),
            ("given again when done", "good"),
        )
        left = 200.0
        for words_of_it, colour in said:
            sample_line(figure, [left, left + 14], [54, 54], color=tone(colour), linewidth=2.0)
            write(figure, (left + 19, 58), words_of_it, colour="soft")
            left += 36 + text_width(words_of_it)
        left = 520.0
        for words_of_it, colour in (("original", "original"), ("pruned", "variant")):
            sample_line(figure, [left], [294], color=tone(colour), marker=".", markersize=6.0)
            write(figure, (left + 8, 298), words_of_it, colour="soft")
            left += 36 + text_width(words_of_it)
        write(figure, (60, 492), f"Grey: scoring. {seen.machine}", size=8.0, colour="soft")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--records", type=lambda t: [int(n) for n in t.split(",")], default=[20_000, 100_000]
    )
    parser.add_argument("--at", type=Path, default=Path("runs/long"))
    parser.add_argument("--draw", action="store_true")
    options = parser.parse_args()
    found = []
    for n in options.records:
        path = options.at / str(n) / "seen.json"
        if not options.draw:
            long_run(options.at / str(n), n).save(path)
        found.append(read_seen(path))
    print_tables(found)
    draw(max(found, key=lambda seen: seen.n), RESULTS / "long_run.svg")


if __name__ == "__main__":
    main()
