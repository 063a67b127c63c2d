"""A README's section is renewed between its markers; every other byte stays."""

import os
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, reject, settings
from hypothesis import strategies as st

from auditor.card.readme import BEGIN, BOM, END, CardError, decoded, lines_of, marked, with_section
from auditor.errors import StoreError
from auditor.placing import must_be_file, place

PATH = Path("README.md")
SECTION = "## Privacy\n\nwords\n"
NEWLINES = st.sampled_from(["\n", "\r\n", "\r"])
# Lines that mean something to Markdown or to this module, among any others.
LINES = st.one_of(
    st.sampled_from(["", "---", "```", "~~~~", "    code", "- item", "> quote", "<!-- x", "| a |"]),
    st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20),
)


@st.composite
def texts(draw: st.DrawFn) -> str:
    lines = draw(st.lists(st.tuples(LINES, NEWLINES), max_size=8))
    text = draw(st.sampled_from(["", BOM])) + "".join(line + end for line, end in lines)
    text += draw(st.sampled_from(["", "no end of line"]))
    assume(BEGIN not in text and END not in text)
    return text


@settings(max_examples=60, deadline=None)
@example(text="")
@example(text=BOM)
@example(text="a\r\nb")
@example(text="```\nnever closed")
@given(text=texts())
def test_a_section_is_added_at_the_end_of_any_text(text: str) -> None:
    try:
        added = with_section(PATH, text, SECTION)
    except CardError as error:
        assert "never closed" in str(error)
        return
    assert added.startswith(text)
    assert added.count(BEGIN) == 1
    assert with_section(PATH, added, SECTION) == added


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(above=texts(), below=texts(), old=texts(), end=NEWLINES, indent=st.sampled_from(["", "  "]))
def test_all_around_the_markers_stays(
    above: str, below: str, old: str, end: str, indent: str
) -> None:
    above = above if not above or lines_of(above)[-1][-1:] in "\r\n" else above + end
    old = old if not old or lines_of(old)[-1][-1:] in "\r\n" else old + end
    # A lone carriage return before a line feed is one line end.
    assume(not (end == "\r" and (old + END).startswith("\n")))
    head, tail = f"{above}{indent}{BEGIN} {end}", f"{END}{end}{below}"
    assume(not (end == "\r" and below.startswith("\n")) and BOM not in old + below)
    text = head + old + tail
    try:
        assume(marked(PATH, lines_of(text)) is not None)  # else a code block is open above
    except CardError:
        reject()
    renewed = with_section(PATH, text, SECTION)
    assert renewed.startswith(head)
    assert renewed.endswith(tail)
    inside = renewed[len(head) : len(renewed) - len(tail)]
    assert inside == f"\n{SECTION}\n".replace("\n", end)
    assert with_section(PATH, renewed, SECTION) == renewed
    # New figures replace old ones.
    other = with_section(PATH, renewed, "other")
    assert other == renewed.replace(SECTION.replace("\n", end), f"other{end}")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "{b}\n\nS\n\n{e}\n"),
        ("# T", "# T\n\n{b}\n\nS\n\n{e}\n"),
        ("# T\n", "# T\n\n{b}\n\nS\n\n{e}\n"),
        ("# T\n \n", "# T\n \n{b}\n\nS\n\n{e}\n"),
        ("a\r\nb\r\nc\n", "a\r\nb\r\nc\n\r\n{b}\r\n\r\nS\r\n\r\n{e}\r\n"),
        (f"{BOM}a\r\n", f"{BOM}a\r\n\r\n{{b}}\r\n\r\nS\r\n\r\n{{e}}\r\n"),
        ("a\n{b}\r\nold\n{e}", "a\n{b}\r\n\r\nS\r\n\r\n{e}"),
        ("{b}\n{e}\nend", "{b}\n\nS\n\n{e}\nend"),
    ],
)
def test_newlines_are_those_of_the_file(text: str, wanted: str) -> None:
    text, wanted = (one.replace("{b}", BEGIN).replace("{e}", END) for one in (text, wanted))
    assert with_section(PATH, text, "S") == wanted


@pytest.mark.parametrize(
    "shown",
    [
        "```md\n{b}\n{e}\n```\n",
        "~~~\n{b}\n~~~\n",
        "- item\n\n  ```\n  {b}\n  ```\n",
        "text\n\n    {b}\n    {e}\n",
        "````\n```\n{e}\n````\n",
        "Write `{b}` and {e} into it.\n",
        "> {b}\n",
    ],
)
def test_a_marker_that_is_shown_is_none(shown: str) -> None:
    text = shown.replace("{b}", BEGIN).replace("{e}", END)
    added = with_section(PATH, text, "S")
    assert added == f"{text}\n{BEGIN}\n\nS\n\n{END}\n"
    assert with_section(PATH, added, "S") == added


def test_front_matter_is_no_place_for_a_marker() -> None:
    text = f"---\nx: |\n  ```\n---\n{BEGIN}\n{END}\n"
    assert with_section(PATH, text, "S") == f"---\nx: |\n  ```\n---\n{BEGIN}\n\nS\n\n{END}\n"
    # Two rules above the text are no front matter.
    text = f"---\n\n{BEGIN}\n{END}\n\n---\n"
    assert with_section(PATH, text, "S") == f"---\n\n{BEGIN}\n\nS\n\n{END}\n\n---\n"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a\n{b}\n", "begin in line 2"),
        ("{e}\n", "end in line 1"),
        ("{e}\n{b}\n", "end in line 1, begin in line 2"),
        ("{b}\n{e}\n{b}\n{e}\n", "begin in line 1, end in line 2, begin in line 3, end in line 4"),
        ("{b}\n{b}\n{e}\n", "begin in line 1, begin in line 2, end in line 3"),
        ("{b}\n```\n{e}\n", "begin in line 1"),
    ],
)
def test_markers_that_are_no_pair(text: str, seen: str) -> None:
    with pytest.raises(CardError) as caught:
        with_section(PATH, text.replace("{b}", BEGIN).replace("{e}", END), "S")
    assert caught.value.seen == seen


@pytest.mark.parametrize("content", [b"\xff\xfe#\x00", b"ok\n\xc3(", b"\xed\xa0\x80"])
def test_bytes_that_are_no_text(content: bytes) -> None:
    with pytest.raises(CardError, match="must be UTF-8"):
        decoded(PATH, content)


def test_files_are_placed_with_their_mode_through_links(tmp_path: Path) -> None:
    target, link = tmp_path / "real.md", tmp_path / "README.md"
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to(target)
    figure = tmp_path / "new" / "figure.png"
    assert place({figure: b"png", link: b"new"}) == [figure, link]
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert figure.read_bytes() == b"png"
    # What holds it already is not touched.
    before = target.stat().st_mtime_ns
    assert place({figure: b"png", link: b"new"}) == []
    assert target.stat().st_mtime_ns == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "new", "real.md"]


def test_all_files_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure, readme = tmp_path / "made" / "figure.png", tmp_path / "README.md"
    other = tmp_path / "other"
    other.write_bytes(b"old")
    readme.write_bytes(b"old")
    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        if target == readme:
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StoreError, match="README") as caught:
        place({figure: b"new", other: b"new", readme: b"new"})
    assert caught.value.seen == "No space left on device"
    assert readme.read_bytes() == other.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "other"]


def test_what_is_no_file_to_write(tmp_path: Path) -> None:
    folder, only_read, loop = (tmp_path / name for name in ("folder", "read.md", "loop"))
    folder.mkdir()
    only_read.write_text("x")
    only_read.chmod(0o444)
    loop.symlink_to(loop)
    os.mkfifo(tmp_path / "pipe")
    for path, seen in (
        (folder, "a folder"),
        (only_read, "read-only"),
        (tmp_path / "pipe", "no regular file"),
        (loop, "loop"),
        (only_read / "README.md", "README.md"),
    ):
        with pytest.raises(StoreError) as caught:
            place({path: b"new"})
        assert seen in str(caught.value)
    assert must_be_file(tmp_path / "absent") == tmp_path / "absent"
