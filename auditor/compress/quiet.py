"""Silence: what libraries say on their own account while they load and work stays off the screen.

What matters in it is raised as an error or stands in a receipt.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from typing import Any, TextIO

# Both speak while torchao is imported, which transformers does wherever it is installed: of
# kernels for GPUs that are not here, and of a habit of torchao's that torch will drop.
SPEAKERS = ("torchao", "torch.utils._pytree")


def hush() -> None:
    """Keep torchao's import silent; a level that the calling program has set is left alone.

    Must be called before transformers is imported, and costs no heavy import itself.
    """
    for name in SPEAKERS:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.ERROR)


@contextmanager
def quietly(**environment: str) -> Iterator[None]:
    """Let a library load or work without a word, and without a trace in the process around it.

    Warnings, log lines and whatever is printed through Python's streams go nowhere. Environment
    variables, the root logger and the warning filters are afterwards what they were: some
    libraries set all three when they are imported, and would so decide for everything that comes
    after them. Not for use in several threads at once.

    Args:
        environment: Variables to set for as long as the block runs.
    """
    variables, root = dict(os.environ), logging.getLogger()
    handlers, level, disabled = list(root.handlers), root.level, root.manager.disable
    os.environ.update(environment)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(_nowhere()),
            redirect_stderr(_nowhere()),
        ):
            warnings.simplefilter("ignore")
            logging.disable(logging.CRITICAL)
            yield
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers
        root.setLevel(level)
        for name in os.environ.keys() - variables.keys():
            del os.environ[name]
        os.environ.update(variables)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no load reports: what matters in them is raised as an error."""
    from transformers.utils import logging as transformers_logging

    logging: Any = transformers_logging
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@cache
def _nowhere() -> TextIO:
    """A stream that is never closed, because a library may hold on to it and write to it later."""
    return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123
