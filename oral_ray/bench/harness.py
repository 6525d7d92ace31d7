"""How everything is measured: warm-up, runs in turn, medians and spread, peak memory, fitted exponents, one table.

rows = compare({"ours": call, "theirs": other}, repetitions=5)
fit_exponent("seconds of parameters", parameters, seconds).exponent
_, peak_bytes = with_peak_memory(call)
"""

import contextlib
import gc
import math
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil
from pydantic import PositiveInt

from oral_ray.config import Section

Row = dict[str, str | float | int | bool | None]
T = TypeVar("T")


class BenchOptions(Section):
    """What every benchmark can be told: how often each thing is measured after one warm-up."""

    repetitions: PositiveInt = 5


class Exponent(Section):
    """Least-squares fit y = constant * x ^ exponent on logarithms; `r2` is the share of the variance explained."""

    what: str
    exponent: float
    constant: float
    r2: float
    num_points: int
    x_range: tuple[float, float]


class Result(Section):
    """What a benchmark measured: ours, what it is compared with, what the machine would allow, how it grows."""

    rows: tuple[Row, ...]
    peers: tuple[Row, ...] = ()
    floors: tuple[Row, ...] = ()
    exponents: tuple[Exponent, ...] = ()


class Report(Section):
    """A result with the command and the environment that it came from."""

    name: str
    command: str
    options: dict[str, Any]
    environment: dict[str, Any]
    result: Result


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def spread(seconds: Sequence[float]) -> Row:
    """Median, lowest and highest of several runs, and their number, as columns of a row."""
    return {
        "seconds": statistics.median(seconds), "lowest": min(seconds), "highest": max(seconds), "runs": len(seconds)
    }  # fmt: skip


def compare(candidates: Mapping[str, Callable[[], object]], repetitions: int) -> tuple[Row, ...]:
    """A row a candidate, timed in turn after one warm-up each; `ratio` is to the first candidate's median."""
    for call in candidates.values():
        call()
    seconds: dict[str, list[float]] = {what: [] for what in candidates}
    for _ in range(repetitions):
        for what, call in candidates.items():
            seconds[what].append(timed(call))
    first = statistics.median(next(iter(seconds.values())))
    return tuple({"what": what, **spread(s), "ratio": statistics.median(s) / first} for what, s in seconds.items())


def with_peak_memory(call: Callable[[], T]) -> tuple[T, int]:
    """The result of a call and by how many bytes this process grew at its highest during the call (Linux).

    Where the kernel does not let a process reset its own high-water mark, an earlier peak hides a lower one.
    """
    gc.collect()
    reset_high_water()
    before = psutil.Process().memory_info().rss
    result = call()
    return result, max(0, high_water_bytes() - before)


def reset_high_water() -> None:
    """Let this process's high-water mark start again from what it has now, where the kernel lets it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def high_water_bytes() -> int:
    """The most memory that this process has had since the mark was reset."""
    try:
        status = Path("/proc/self/status").read_text()
        return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def fit_exponent(what: str, x: Sequence[float], y: Sequence[float]) -> Exponent:
    """Fit a power law through positive points of at least two different x."""
    log_x, log_y = [math.log(value) for value in x], [math.log(value) for value in y]
    slope, intercept = statistics.linear_regression(log_x, log_y)
    mean = statistics.fmean(log_y)
    total = sum((value - mean) ** 2 for value in log_y)
    left = sum((b - intercept - slope * a) ** 2 for a, b in zip(log_x, log_y, strict=True))
    return Exponent(
        what=what, exponent=slope, constant=math.exp(intercept), r2=1 - left / total if total else 1.0,
        num_points=len(x), x_range=(min(x), max(x)),
    )  # fmt: skip


def report_text(report: Report) -> str:
    """The report for people: environment in a line, a table a part, the fitted exponents."""
    about = report.environment
    lines = [
        f"{report.name}: {about['cpu']}, {about['cores']} cores, {about['threads']} threads, "
        f"{about['memory_gb']} GB, {', '.join(about['gpus']) or 'no GPU'}, commit {about['commit']}, "
        f"load {about['load'][0]}"
    ]
    for part in ("rows", "peers", "floors"):
        if rows := getattr(report.result, part):
            lines += ["", *([part] if part != "rows" else []), table(rows)]
    lines += [
        f"{fit.what}: exponent {fit.exponent:.3f} (r2 {fit.r2:.4f}, {fit.num_points} points, "
        f"{fit.x_range[0]:.3g} to {fit.x_range[1]:.3g})"
        for fit in report.result.exponents
    ]
    return "\n".join(lines)


def table(rows: Sequence[Row]) -> str:
    """Rows as columns in the order in which they first appear, numbers to the right."""
    columns = []
    for name in dict.fromkeys(name for row in rows for name in row):
        cells = [name, *(_cell(row.get(name)) for row in rows)]
        width = max(map(len, cells))
        is_text = any(isinstance(row.get(name), str) for row in rows)
        columns.append([cell.ljust(width) if is_text else cell.rjust(width) for cell in cells])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def _cell(value: str | float | int | bool | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
