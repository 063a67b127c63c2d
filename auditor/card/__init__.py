"""The privacy section of a model card: an audit's answer, where the model is downloaded.

    compleak-llm card runs/gsm8k --readme README.md
    compleak-llm card runs/gsm8k --readme README.md --model-index --push org/model

Everything is rendered and checked before a byte is written, and nothing goes online without
`push`.
"""

from difflib import unified_diff
from pathlib import Path
from typing import NamedTuple
from unicodedata import category

from auditor.card import front_matter, metadata
from auditor.card.attackers import model_name, the_variant
from auditor.card.readme import CardError, decoded, lines_of, with_section
from auditor.card.section import FIGURE, render_section
from auditor.errors import ConfigError
from auditor.finished import Finished, read_finished
from auditor.placing import must_be_file, place
from auditor.report.markdown import escape
from auditor.report.plots.canvas import plain_style
from auditor.report.plots.curves import Curves
from auditor.report.plots.drawing import Drawing, png
from auditor.report.plots.roc import draw_roc_of, roc_drawing
from auditor.results import AuditResult, VariantResult

__all__ = ["CardError", "CardWritten", "write_card"]

EVAL_RESULTS = Path(".eval_results", "compleak-llm.yaml")


class CardWritten(NamedTuple):
    """What writing a card did.

    Attributes:
        paths: Files that were written; those that held the same already are not among them.
        diff: What changed in the README, as a unified diff; empty where nothing did.
        pull_request: Its address, where one was asked for.
    """

    paths: list[Path]
    diff: str
    pull_request: str | None


def write_card(
    folder: Path,
    *,
    readme: Path,
    variant: str | None = None,
    model_index: bool = False,
    eval_results: bool = False,
    base_model: str | None = None,
    create: bool = False,
    push: str | None = None,
) -> CardWritten:
    """Write or renew the privacy section of a model card, and its figure beside it.

    Args:
        folder: The audit's output folder.
        readme: The model card.
        variant: The compressed version that it is the card of; None: that of the original, which
            speaks of all versions.
        model_index: Write the figures into the front matter too.
        eval_results: Write them into `.eval_results/compleak-llm.yaml` too.
        base_model: The original's id on the Hub, for the card of a variant.
        create: Begin a README where there is none.
        push: A repository on the Hub, `org/model`, that is offered the files as a pull request.

    Raises:
        CompleakError: One of them cannot be done; no file is changed then, but for a push that
            fails, before which the files are written.
    """
    if base_model is not None and variant is None:
        raise ConfigError(
            "--base-model must stand beside --variant: only a compressed version has the original "
            "for its base",
            seen=f"--base-model {base_model} alone",
            fix="name the version with --variant, or leave --base-model out",
        )
    if push is not None and create and not readme.exists():
        raise ConfigError(
            "--push must offer a card that was read by someone",
            seen=f"{readme} does not exist, and would be begun with nothing but the section",
            fix="download the repository's README.md first, or run --create, look, and push then",
        )
    if push is not None:
        # Only here is anything of the Hub's client needed that can go online.
        from auditor.card.push import must_be_repository, open_pull_request

        must_be_repository(push)
    finished = read_finished(folder)
    result = finished.result
    chosen = the_variant(result, variant) if variant is not None else None
    base = metadata.base_model(result, base_model) if chosen else None
    before = _before(readme, create=create)
    drawing = _drawing(finished, chosen)
    text = decoded(readme, before) if before is not None else _begun(result, chosen)
    text = with_section(
        readme,
        text,
        render_section(result, drawing=drawing, variant=chosen, base=base),
    )
    text = _with_metadata(readme, text, result, chosen, base, model_index=model_index)
    name = chosen.variant if chosen else None
    contents = {readme.parent / FIGURE: png(drawing)}
    if eval_results:
        contents[readme.parent / EVAL_RESULTS] = metadata.eval_results_file(result, name).encode()
    contents[readme] = text.encode()
    paths = place(contents)
    pull_request = None
    if push is not None:
        in_repository = {
            "README.md" if path == readme else path.relative_to(readme.parent).as_posix(): content
            for path, content in contents.items()
        }
        pull_request = open_pull_request(push, in_repository)
    return CardWritten(paths, _diff(readme, before or b"", text), pull_request)


def _before(readme: Path, *, create: bool) -> bytes | None:
    """What the README holds; None where it is to be begun.

    Raises:
        StoreError: It cannot be read or written.
        CardError: There is none, and none is to be begun.
    """
    target = must_be_file(readme)
    if target.exists():
        try:
            return target.read_bytes()
        except OSError as error:
            raise CardError(
                f"{readme} must be a file that can be read",
                seen=error.strerror or str(error),
                fix="make it readable",
            ) from error
    if not create:
        raise CardError(
            f"{readme} must be the README that the section belongs into",
            seen="it does not exist",
            fix="give its path, or --create to begin one",
        )
    return None


def _begun(result: AuditResult, variant: VariantResult | None) -> str:
    """A README with nothing in it but what the audit knows for sure."""
    title = escape(model_name(result).rpartition("/")[2])
    if variant is not None:
        title += f", {escape(variant.variant)}"
    return f"---\npipeline_tag: text-generation\n---\n\n# {title}\n"


def _drawing(finished: Finished, variant: VariantResult | None) -> Drawing:
    """The ROC curves of the card."""
    if variant is None:
        return roc_drawing(finished, width="wide")
    at = finished.result.variants.index(variant)
    with plain_style():
        return draw_roc_of(Curves(finished), variant.variant, at=at)


def _with_metadata(
    readme: Path,
    text: str,
    result: AuditResult,
    variant: VariantResult | None,
    base: str | None,
    *,
    model_index: bool,
) -> str:
    """The README with what belongs into its front matter; untouched where nothing does."""
    keys = {}
    if variant is not None and base is not None:
        keys = {"base_model": base, "base_model_relation": "quantized"}
    if not keys and not model_index:
        return text
    entries = None
    if model_index:
        now = front_matter.read_keys(readme, text).get("model-index")
        name = variant.variant if variant else None
        entries = metadata.model_index(readme, now, result, name)
    return front_matter.with_keys(readme, text, keys, entries)


def _diff(readme: Path, before: bytes, text: str) -> str:
    """A unified diff; what a terminal would obey is made visible."""
    old, new = (lines_of(one) for one in (before.decode("utf-8"), text))
    name = readme.as_posix()
    lines = unified_diff(old, new, fromfile=name, tofile=name)
    shown = (line.rstrip("\r\n") for line in lines)
    return "\n".join("".join(map(_visible, line)) for line in shown)


def _visible(character: str) -> str:
    is_shown = character.isprintable() or character == "\t" or category(character) == "Zs"
    return character if is_shown else "\ufffd"
