"""A page as a browser's parser sees it, for tests: elements, attributes, texts, places."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "input", "wbr", "br", "img", "hr", "base", "embed", "source"}


@dataclass
class Element:
    """One element: its attributes, all text inside, and where it begins."""

    tag: str
    attributes: dict[str, str | None]
    parents: tuple[str, ...]
    at: int
    text: str = ""


@dataclass
class Read(HTMLParser):
    """All elements of a page, in order; `text` is all that a reader sees of it."""

    elements: list[Element] = field(default_factory=list)
    text: str = ""
    _open: list[Element] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        parents = tuple(one.tag for one in self._open)
        element = Element(tag, dict(attrs), parents, len(self.text))
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1].tag == tag, (tag, [one.tag for one in self._open])
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.text += data
        if not any(one.tag in ("style", "script", "head") for one in self._open):
            self.text += data

    def of(self, tag: str, **attributes: str) -> list[Element]:
        return [
            one
            for one in self.elements
            if one.tag == tag and all(one.attributes.get(k) == v for k, v in attributes.items())
        ]


def read(page: str) -> Read:
    """Parse a page; every element must be closed where it should."""
    found = Read()
    found.feed(page)
    found.close()
    assert not found._open
    return found
