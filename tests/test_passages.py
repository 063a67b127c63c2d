"""Texts are found in files word for word: against a search written out by hand, and by property."""

import html
import json
import subprocess
import sys
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.artifacts.passages import Passages
from auditor.artifacts.words import words_of

WHITE = ["\n", " ", "  ", "\t", "\r\n", "\u00a0", "\u2003", "\n> ", "\n    "]
WORD = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=6)


def words(n: int, *, start: int = 0) -> str:
    """So many different words."""
    return " ".join(f"w{start + i}" for i in range(n))


def found(strings: list[str] | str, texts: list[str]) -> dict[int, float]:
    """Share of each text that is found in one file."""
    index = Passages()
    for string in [strings] if isinstance(strings, str) else strings:
        index.add(0, string)
    (hits,) = index.search(enumerate(texts))
    assert [hit.key for hit in hits] == sorted({hit.key for hit in hits})
    return {hit.key: hit.share for hit in hits}


def by_hand(files: list[list[str]], texts: list[str]) -> dict[tuple[int, int], float]:
    """The same by comparing every run of every text with every place of every file."""
    known = [[words_of(string) for string in file] for file in files]

    def stands(file: int, run: list[str]) -> bool:
        n = len(run)
        return any(run == s[i : i + n] for s in known[file] for i in range(len(s) - n + 1))

    def tells(run: list[str]) -> bool:
        return len({word for word in run if not word.isnumeric()}) >= 3

    split = [words_of(text) for text in texts]
    runs = [[w[i : i + 13] for i in range(len(w) - 12)] for w in split]
    holders = Counter(run for text in runs for run in {tuple(run) for run in text})
    limit = min(20, max(2, 0.01 * sum(len(text) >= 5 for text in split)))
    shares = {}
    for file in range(len(files)):
        for number, text in enumerate(split):
            if 5 <= len(text) < 13:
                if stands(file, text) and tells(text):
                    shares[file, number] = 1.0
                continue
            at = [i for i, run in enumerate(runs[number]) if stands(file, run)]
            if at and len(at) == len(runs[number]):
                shares[file, number] = 1.0
                continue
            rare = [i for i in at if holders[tuple(runs[number][i])] <= limit]
            rare = [i for i in rare if tells(runs[number][i])]
            covered = {i + k for i in rare for k in range(13)}
            if covered and len(covered) >= min(20, len(text) / 3):
                shares[file, number] = len(covered) / len(text)
    return shares


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**9), st.sampled_from([3, 8, 60]))
def test_the_same_hits_as_by_hand(seed: int, size: int) -> None:
    draw = Random(seed)
    vocabulary = [str(i) if i % 5 == 4 else f"w{i}" for i in range(size)]
    texts = [" ".join(draw.choices(vocabulary, k=draw.randint(2, 60))) for _ in range(12)]
    texts += draw.choices(texts, k=4)  # what some share
    pool = [*texts, " ".join(draw.choices(vocabulary, k=20))]
    files = []
    for _ in range(3):
        strings = []
        for _ in range(draw.randint(1, 3)):
            parts = []
            for _ in range(draw.randint(0, 4)):
                part = draw.choice(pool).split()
                begin = draw.randint(0, len(part))
                parts += part[begin : begin + draw.choice([5, 13, 20, 60])]
            strings.append(" ".join(parts))
        files.append(strings)
    index = Passages()
    for number in draw.sample(range(3), 3):
        for string in files[number]:
            index.add(number, string)
    (hits,) = index.search(enumerate(texts))
    assert {(h.file, h.key): h.share for h in hits} == pytest.approx(by_hand(files, texts))


@settings(max_examples=150, deadline=None)
@given(st.lists(WORD, min_size=13, max_size=80), st.text(), st.text(), st.randoms())
def test_a_planted_text_is_found(
    planted: list[str], before: str, after: str, random: Random
) -> None:
    spread = "".join(word + random.choice(WHITE) for word in planted)
    before = before.replace("<", "")  # an open tag would swallow the first words
    assert found(f"{before}\n{spread}\n{after}", [" ".join(planted)]) == {0: 1.0}


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**9))
def test_a_text_of_the_same_words_is_not_found(seed: int) -> None:
    draw = Random(seed)
    vocabulary = [f"w{i}" for i in range(50)]
    file = " ".join(draw.choices(vocabulary, k=2000))
    texts = [" ".join(draw.choices(vocabulary, k=draw.randint(8, 60))) for _ in range(40)]
    assert found(file, texts) == {}


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_words_do_not_depend_on_escapes(text: str) -> None:
    once = json.dumps(text)
    assert words_of(once) == words_of(text)
    assert words_of(json.dumps(once)) == words_of(text)
    if "&" not in text:
        assert words_of(html.escape(text)) == words_of(text)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("The\\nnight\\twas “DARK”", "the night was dark"),
        ("\\ud835\\udc00BC caf\\u00e9 \\xe9t\\xE9 \\U0001F600x", "aBC café été x"),
        ("ﬁne Ｗｏｒｄｓ e\u0301", "fine words é"),
        ("<p class='a'>one<br/>two</p>&quot;three&#39;", "one two three"),
        ("**bold** _slanted_ `code_name`", "bold slanted code name"),
        ("a < b and c > d", "a b and c d"),
        ("<|user|> hi", "user hi"),
        ("one\\\\\\u00b2 two\\\\u00e9", "one 2 twoé"),
        ("\\uZZZZ \\U99999999z", "uzzzz z"),
    ],
)
def test_words(text: str, same: str) -> None:
    assert words_of(text) == words_of(same) == same.lower().split()


def test_chinese_has_a_word_in_every_character() -> None:
    record = "病人今年三十六岁，左膝疼痛，已经注射三次药物，效果一般。"
    assert len(words_of(record)) == 24
    assert found(f"说明文字{record}其他文字", [record]) == {0: 1.0}
    assert found(f"text: {record[:9]}", [record]) == {}


@pytest.mark.parametrize("n", [5, 8, 9, 12])
def test_a_short_text_is_found_only_whole_and_in_one_string(n: int) -> None:
    text = words(n)
    assert found(f"so {text} it is", [text]) == {0: 1.0}
    assert found(["before that", text, "after that"], [text]) == {0: 1.0}
    assert found(f"so {words(n - 1)} it is, w{n - 1}", [text]) == {}
    first, _, last = text.rpartition(" ")
    assert found([f"so it {first}", f"{last} is how it was"], [text]) == {}


def test_fewer_than_five_words_are_not_looked_for() -> None:
    assert found(words(40), [words(4), "", "!?", words(5)]) == {3: 1.0}


@pytest.mark.parametrize(("n", "share"), [(19, None), (20, 0.2), (60, 0.6), (100, 1.0)])
def test_part_of_a_long_text(n: int, share: float | None) -> None:
    expected = {} if share is None else {0: pytest.approx(share)}
    assert found(f"as was said: {words(n)}.", [words(100)]) == expected


@pytest.mark.parametrize(("n", "share"), [(12, None), (13, 13 / 39), (14, 14 / 39)])
def test_a_third_of_a_short_text(n: int, share: float | None) -> None:
    expected = {} if share is None else {0: pytest.approx(share)}
    assert found(f"as was said: {words(n, start=7)}.", [words(39)]) == expected


def test_the_start_of_a_record_of_300_words() -> None:
    (share,) = found(f"widget: {words(60)}", [words(300)]).values()
    assert share == pytest.approx(0.2)


@pytest.mark.parametrize(("n", "limit"), [(60, 2), (300, 3), (2000, 20), (4000, 20)])
def test_what_many_share_does_not_count(n: int, limit: int) -> None:
    template = words(40)

    def texts(n_shared: int) -> list[str]:
        own = [words(10, start=1000 + 10 * i) for i in range(n)]
        return [f"{template} {text}" if i < n_shared else text for i, text in enumerate(own)]

    assert found(f"The prompt: {template}", texts(limit)) == dict.fromkeys(range(limit), 0.8)
    assert found(f"The prompt: {template}", texts(limit + 1)) == {}


def test_a_whole_record_counts_however_much_of_it_is_shared() -> None:
    shared = words(40)
    texts = [shared, *(f"{shared} x{i} y{i} z{i}" for i in range(60))]
    assert found(f"a {shared} x7 y7 z7 b", texts) == {0: 1.0, 8: 1.0}


def test_what_one_set_shares_counts_in_no_other() -> None:
    template = words(40)
    index = Passages()
    index.add(0, template)
    records = [(i, f"{template} {words(60, start=100 * (i + 1))}") for i in range(9)]
    other = [("a", f"{template} {words(60, start=5000)}")]
    assert index.search(other)[0] == [(0, "a", pytest.approx(0.4))]
    assert index.search(records, other) == [[], []]


def test_counting_is_no_passage() -> None:
    count = " ".join(map(str, range(1, 40)))
    text = f"{words(60)} {count}"
    assert found(f"table {count}", [text, " ".join(map(str, range(5, 13)))]) == {}
    assert found(f"table {text}", [text]) == {0: 1.0}


def test_a_vocabulary_costs_nothing_and_a_record_in_it_is_found() -> None:
    index = Passages()
    record = words(6)
    for i in range(20_000):
        index.add(0, f"\u0120token{i}")
        index.add(0, f"to ken{i}")
    assert index.n_words == 0
    index.add(0, record)
    assert index.n_words < 10
    assert index.search([("it", record), ("no", "token1 token2 token3 token4 token5")]) == [
        [(0, "it", 1.0)]
    ]


def test_a_string_in_pieces() -> None:
    index = Passages()
    text = words(30)
    for number, word in enumerate(text.split()):
        index.add(3, word + "\n", goes_on=number > 0)
    index.add(4, text)
    index.add(5, "\n")
    index.add(5, " ", goes_on=True)
    assert index.search([("x", text)]) == [[(3, "x", 1.0), (4, "x", 1.0)]]


def test_no_texts_and_no_files() -> None:
    assert Passages().search([("x", words(20))], []) == [[], []]
    assert found(words(20), []) == {}


def test_many_blocks_give_what_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = Random(0)
    texts = [" ".join(draw.choices([f"w{i}" for i in range(99)], k=40)) for _ in range(50)]
    file = f"{texts[3]} and {texts[49][:60]} and {texts[20]}"
    one = found(file, texts)
    monkeypatch.setattr("auditor.artifacts.passages.BLOCK", 64)
    assert found(file, texts) == one
    assert set(one) == {3, 20, 49}


def test_needs_no_torch() -> None:
    code = "import sys, auditor.artifacts.passages; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
