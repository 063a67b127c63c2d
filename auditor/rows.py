"""From a row to the text of a record, and to its side."""

import re
from typing import Any

from auditor.config import OfModel
from auditor.errors import RecordsError
from auditor.scoring.encode import RecordText
from auditor.textfiles import Placed, Row

# What a column is called; the first line of a table without names is a record.
NAME = re.compile(r"[\w.-]{1,40}")
MOST_COLUMNS = 20
MEMBER = ("1", "true", "member", "yes")
NONMEMBER = ("0", "false", "nonmember", "non-member", "no")


class RowReader:
    """Knows which columns hold a record.

    Args:
        config: Names of the columns.
        tokenizer: For the chat template of conversations.
        label_column: The column that tells members from nonmembers, where they share a source.
    """

    def __init__(self, config: OfModel, tokenizer: Any, *, label_column: str = "label") -> None:  # noqa: ANN401
        self._config = config
        self._tokenizer = tokenizer
        self._label_column = label_column

    def text(self, placed: Placed) -> RecordText:
        """The text column, else a conversation, else prompt and completion.

        Raises:
            RecordsError: None of these columns is there, or a value is no text.
        """
        found = self._text(placed)
        for part in (found.prompt, found.text):
            _must_be_unicode(placed, part)
        return found

    def _text(self, placed: Placed) -> RecordText:
        config, row = self._config, placed.row
        if config.text_column in row:
            return RecordText(self._string(placed, config.text_column))
        if config.messages_column in row:
            return self._conversation(placed)
        if config.prompt_column in row and config.completion_column in row:
            return RecordText(
                self._string(placed, config.completion_column),
                prompt=self._string(placed, config.prompt_column),
            )
        wanted = (
            f"{config.text_column!r}, {config.messages_column!r}, or {config.prompt_column!r} "
            f"and {config.completion_column!r}"
        )
        raise RecordsError(
            f"{placed.where} must have a column {wanted}",
            seen=_columns(row),
            fix="name the column with --text-column",
        )

    def side(self, placed: Placed) -> bool:
        """Whether the row is a member, by the label column.

        Raises:
            RecordsError: There is no such column, or its value says neither.
        """
        column = self._label_column
        if column not in placed.row:
            raise RecordsError(
                f"{placed.where} must have a label column {column!r}",
                seen=_columns(placed.row),
                fix="name it with --label-column",
            )
        value = str(placed.row[column]).strip().lower()
        if value in MEMBER or value in NONMEMBER:
            return value in MEMBER
        raise RecordsError(
            f"{placed.where}: {column} must be 1 or 0, true or false, member or nonmember",
            # Not the value: the column may be that of the text.
            seen=f"a {type(placed.row[column]).__name__} that is none of these",
            fix="mend that row, or name another column with --label-column",
        )

    def _string(self, placed: Placed, column: str) -> str:
        value = placed.row[column]
        if value is None:
            return ""
        if not isinstance(value, str):
            raise RecordsError(
                f"{placed.where}: {column} must be text", seen=f"a {type(value).__name__}"
            )
        return value

    def _conversation(self, placed: Placed) -> RecordText:
        column = self._config.messages_column
        messages = placed.row[column]
        if not messages:
            return RecordText("")
        if not isinstance(messages, list) or not all(isinstance(item, dict) for item in messages):
            raise RecordsError(
                f"{placed.where}: {column} must be a list of messages",
                seen=type(messages).__name__,
                fix='for example [{"role": "user", "content": "..."}]',
            )
        if not getattr(self._tokenizer, "chat_template", None):
            raise RecordsError(
                f"{placed.where}: {column} needs a tokenizer with a chat template",
                seen="the model's tokenizer has none",
                fix="give a text column instead",
            )
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False)
        except Exception as error:  # templates raise whatever their authors thought of
            said = str(error)
            # A template may put the conversation into what it raises; its own words stand in it.
            known = said and said in str(getattr(self._tokenizer, "chat_template", ""))
            raise RecordsError(
                f"{placed.where}: {column} must fit the model's chat template",
                seen=said if known else f"a {type(error).__name__} in the template",
            ) from None
        return RecordText(text, add_special_tokens=False)


def _columns(row: Row) -> str:
    """The columns of a row that are called as columns are, and how many are not."""
    names = [str(name) for name in row if NAME.fullmatch(str(name))]
    odd = len(row) - len(names)
    named = ", ".join(names[:MOST_COLUMNS]) + (", ..." if len(names) > MOST_COLUMNS else "")
    parts = [named] if names else []
    parts += [f"{odd} whose names look like text: is there a header?"] if odd else []
    return f"columns: {' and '.join(parts) or 'none'}"


def _must_be_unicode(placed: Placed, text: str) -> None:
    r"""JSON can hold half of a character, as `\ud83d`, that no tokenizer takes.

    Raises:
        RecordsError: The text holds one.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RecordsError(
            f"{placed.where} must be text that UTF-8 can hold",
            seen=f"half of a character, \\u{ord(text[error.start]):04x}, at letter {error.start}",
            fix="take it out: whatever cut the text there cut a character in two",
        ) from None
