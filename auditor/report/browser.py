"""Printing the page to PDF with a Chromium that is on this machine, offline and without a trace."""

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from auditor.errors import ConfigError

VARIABLE = "COMPLEAK_CHROMIUM"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
TIMEOUT_S = 180
BY_HAND = "--format html, then open report.html in a browser and print it from there"
# Nothing is asked for over a network: the page needs none, and a browser's own errands are none
# of a report's.
OFFLINE = (
    "--headless",
    "--disable-gpu",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--metrics-recording-only",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)


def find_chromium() -> Path | None:
    """The browser to print with: that of COMPLEAK_CHROMIUM, or the first of the usual names.

    Raises:
        ConfigError: COMPLEAK_CHROMIUM names something that cannot be run.
    """
    given = os.environ.get(VARIABLE)
    if given:
        found = shutil.which(given)
        if found is None:
            raise ConfigError(
                f"{VARIABLE} must name a Chromium that can be run",
                seen=given,
                fix=f"mend {VARIABLE} or take it away",
            )
        return Path(found)
    return next((Path(found) for name in NAMES if (found := shutil.which(name))), None)


def print_pdf(page: str) -> bytes:
    """Print a page to PDF, A4, in a browser with a profile of its own and no network.

    Args:
        page: The page, self-contained.

    Raises:
        ConfigError: There is no Chromium, or it did not print.
    """
    browser = find_chromium()
    if browser is None:
        raise ConfigError(
            "--format pdf needs a Chromium",
            seen=f"none of {', '.join(NAMES)} on PATH, and no {VARIABLE}",
            fix=f"install one, set {VARIABLE}, or: {BY_HAND}",
        )
    # A browser that is still closing may write into its profile while that is taken away.
    with tempfile.TemporaryDirectory(
        prefix="compleak-report-", ignore_cleanup_errors=True
    ) as folder:
        source, target = Path(folder) / "report.html", Path(folder) / "report.pdf"
        source.write_text(page, encoding="utf-8")
        said = _run(_command(browser, source, target))
        if not target.is_file():
            raise _failed(browser, said or "it wrote nothing")
        printed = target.read_bytes()
    # What cannot be opened is printed as an error page, and called a success.
    if not _is_report(printed):
        raise _failed(browser, "it printed another page; a browser in a snap cannot read /tmp")
    return printed


def _command(browser: Path, source: Path, target: Path) -> list[str]:
    # Chromium refuses its sandbox to root; to others it is left.
    rootless = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    return [
        str(browser),
        *OFFLINE,
        *rootless,
        f"--user-data-dir={source.parent / 'profile'}",
        "--no-pdf-header-footer",
        f"--print-to-pdf={target}",
        source.as_uri(),
    ]


def _run(command: list[str]) -> str:
    """Run the browser, and end it with all its children where it takes too long.

    Returns:
        Its last words.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise _failed(Path(command[0]), error.strerror or str(error)) from error
    with process:
        try:
            _, said = process.communicate(timeout=TIMEOUT_S)
        except BaseException as error:
            # Whoever interrupts this interrupts the browser too, which is in a session of its own.
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise _failed(Path(command[0]), f"nothing after {TIMEOUT_S} s") from error
            raise
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


def _is_report(printed: bytes) -> bool:
    """Whether a PDF's title is that of a report; it stands there as text, or in UTF-16."""
    title = "compleak-llm: "
    return title.encode() in printed or title.encode("utf-16-be").hex().upper().encode() in printed


def _failed(browser: Path, seen: str) -> ConfigError:
    return ConfigError(f"{browser} must print the page to PDF", seen=seen, fix=BY_HAND)
