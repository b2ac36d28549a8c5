"""The page that a command writes about a run while it trains."""

from collections.abc import Callable
from pathlib import Path

from ..config import RunPaths
from ..methods.base import Method

PAGE = "report.html"


def write_page(out: Path, method: Method, say: Callable[[str], None]) -> None:
    """Write the page about a run; what goes wrong is said in a line, for the step's results are safe.

    Args:
        out: The run's folder.
        method: That it was trained with.
        say: Gets the line.
    """
    try:
        from ..report.page import write_report

        write_report([out], out / PAGE, trusted=method)
    except Exception as error:  # whatever a drawing library raises: a run of days must go on
        reason = " ".join(str(error).split()) or "no reason given"
        say(f"no report: {type(error).__name__}: {reason}; `segrow report {out}` tries again")


def finish_page(out: Path, method: Method, say: Callable[[str], None]) -> None:
    """Write the page where it is older than the results: the run was stopped in between."""
    page, results = out / PAGE, RunPaths(out).results
    if not page.exists() or page.stat().st_mtime_ns < results.stat().st_mtime_ns:
        write_page(out, method, say)
