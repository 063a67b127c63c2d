"""A card is offered to a repository on the Hub as a pull request; nothing else goes online."""

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_session, get_token
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from auditor.card.attackers import HUB_ID
from auditor.errors import CompleakError, ConfigError

MESSAGE = "Add the privacy section made by compleak-llm"
# The library's own client waits for an answer for ever.
TIMEOUT_S = 30.0
LOCAL = "the local files are written; the same command tries again"


class PushError(CompleakError):
    """The pull request could not be opened; what was written here stays."""


def must_be_repository(name: str) -> None:
    """A repository to push to must be named `org/model`.

    Raises:
        ConfigError: It is not.
    """
    if not HUB_ID.fullmatch(name):
        raise ConfigError(
            "--push must name a model on the Hub",
            seen=name,
            fix="for example --push org/model; nothing was written",
        )


def open_pull_request(repository: str, files: Mapping[str, bytes]) -> str:
    """Offer files to a model repository in one commit.

    The endpoint is that of HF_ENDPOINT, the token that of HF_TOKEN or of `hf auth login`.

    Args:
        repository: `org/model`.
        files: Content by path in the repository.

    Returns:
        The pull request's address; that of the last commit where the repository holds the very
        same files already.

    Raises:
        PushError: There is no token, the Hub refuses, or it cannot be reached.
    """
    endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    must = f"a pull request must be opened at {endpoint}/{repository}"
    if constants.is_offline_mode():
        raise PushError(must, seen="HF_HUB_OFFLINE is set", fix=f"unset it; {LOCAL}")
    token = get_token()
    if token is None:
        raise PushError(must, seen="no token", fix=f"`hf auth login`, or set HF_TOKEN; {LOCAL}")
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    try:
        with _patient():
            commit = HfApi(endpoint=endpoint, token=token).create_commit(
                repository, operations, commit_message=MESSAGE, create_pr=True
            )
    except RECOVERABLE as error:
        # An upload that fails is wrapped in an error that does not say why.
        cause = error.__cause__ if type(error) is RuntimeError else None
        reason = cause if isinstance(cause, Exception) else error
        raise PushError(must, seen=_seen(reason), fix=_fix(reason)) from error
    return commit.pr_url or commit.commit_url


# What the library lets through: its own errors, which are also its HTTP client's, and a ValueError
# for an answer that it cannot read.
RECOVERABLE: tuple[type[Exception], ...] = (*HfHubHTTPError.__bases__, ValueError, RuntimeError)


@contextmanager
def _patient() -> Iterator[None]:
    """A client that gives up in the end, no progress bar, and no warnings about the card."""
    session = get_session()
    before, session.timeout = session.timeout, TIMEOUT_S
    bars = not are_progress_bars_disabled()
    if bars:
        disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        session.timeout = before
        if bars:
            enable_progress_bars()


def _seen(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:300] or type(error).__name__


def _fix(error: Exception) -> str:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, OfflineModeIsEnabled):
        return f"unset HF_HUB_OFFLINE; {LOCAL}"
    if status == 401:
        return f"`hf auth login` with a valid token, or set HF_TOKEN; {LOCAL}"
    if status == 403:
        return f"use a token that may write pull requests to this repository; {LOCAL}"
    if status == 404 or isinstance(error, RepositoryNotFoundError):
        return f"check the name, and that this token may see the repository; {LOCAL}"
    if isinstance(error, BadRequestError):
        return f"mend what the Hub says of the card; {LOCAL}"
    return f"check the connection and HF_ENDPOINT, or wait; {LOCAL}"
