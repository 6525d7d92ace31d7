"""What a regeneration run found, planned, decided and failed at; as text, JSON and HTML."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator

from oral_ray.bases.catalog import SkippedBase
from oral_ray.config import BaseId, Record
from oral_ray.errors import ConfigError, OralError, StoreError, printable
from oral_ray.evaluation.report.aligned import aligned
from oral_ray.nightly.gate import Outcome
from oral_ray.nightly.plan import PlanItem
from oral_ray.store.latest import LatestRelease

_STYLE = (
    "body{font:14px/1.5 system-ui,sans-serif;margin:2em auto;max-width:72em;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.25em .8em .25em 0;vertical-align:top;"
    "border-bottom:1px solid #ddd}td{overflow-wrap:anywhere}h2{margin-top:1.6em}"
)


WHOLE_BASE = "*"


class FailedItem(Record):
    """A (base, task) that could not be finished, and why; the next run tries again.

    The task `*` stands for all that was due on the base, or for its release.
    """

    base_id: BaseId
    task: str
    reason: Annotated[str, BeforeValidator(printable)]


class RegenerationSummary(Record):
    """One run: what was skipped, planned, decided, failed, and what stands published for the chosen bases afterwards."""

    started: str
    wall_s: float = 0.0
    generator: str
    skipped_bases: tuple[SkippedBase, ...] = ()
    plan: tuple[PlanItem, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    failed: tuple[FailedItem, ...] = ()
    published: tuple[dict[str, str], ...] = ()

    @property
    def headline(self) -> str:
        """The run in one line."""
        won = sum(outcome.decision.arm is not None for outcome in self.outcomes)
        due = sum(item.action == "generate" for item in self.plan)
        return (
            f"{len(self.plan)} (base, task) pairs, {due} due: {won} published, {len(self.outcomes) - won} with nothing "
            f"better than the base, {self._num_failed} failed; {len(self.skipped_bases)} checkpoints skipped; "
            f"{self.wall_s:.0f} s"
        )

    @property
    def _num_failed(self) -> int:
        """Pairs that failed, and releases."""
        known = {(item.base_id, item.task) for item in (*self.outcomes, *self.failed)}
        undecided = Counter(
            item.base_id for item in self.plan if item.action == "generate" and (item.base_id, item.task) not in known
        )
        return sum(max(1, undecided[item.base_id]) if item.task == WHOLE_BASE else 1 for item in self.failed)


def published_rows(
    latest: Mapping[str, LatestRelease], base_ids: Iterable[str], store_uri: str
) -> tuple[dict[str, str], ...]:
    """Rows of what the latest releases of bases hold; `path` is empty where the store is no folder."""
    rows = []
    for base_id in base_ids:
        adapters = latest[base_id].release.adapters if base_id in latest else ()
        for adapter in adapters:
            uri = adapter.uri_in(store_uri)
            rows.append({
                "base": base_id,
                "task": adapter.task,
                "arm": adapter.arm,
                "adapter_id": adapter.adapter_id,
                "uri": uri,
                "path": uri.removeprefix("file://") if store_uri.startswith("file://") else "",
            })  # fmt: skip
    return tuple(rows)


def reason_of(error: Exception) -> str:
    """The reason of a failure; a fault of the program is named as one."""
    if isinstance(error, OralError):
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    cause = getattr(error, "cause", None) or error  # Ray wraps what a worker raises
    return f"{type(cause).__name__}: {' '.join(str(cause).split())[:300]}; the log has more, please report it"


def once_a_base(failed: Sequence[FailedItem], due: Mapping[str, int]) -> list[FailedItem]:
    """The failures in order; where all that was due on a base failed for one reason, it stands there once.

    So a base that does not load is one line, however many tasks there are. `due` counts what was due on each base.
    """
    alike = Counter((item.base_id, item.reason) for item in failed)
    found = {
        (
            item.base_id,
            WHOLE_BASE if alike[item.base_id, item.reason] == due[item.base_id] > 1 else item.task,
            item.reason,
        )
        for item in failed
    }
    return [FailedItem(base_id=base, task=task, reason=reason) for base, task, reason in sorted(found)]


def tables(summary: RegenerationSummary) -> Iterator[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """(title, columns, rows) of everything that there is to say."""
    yield "failed", ("base", "task", "reason"), [(item.base_id, item.task, item.reason) for item in summary.failed]
    yield "skipped checkpoints", ("base", "reason"), [(item.id, item.reason) for item in summary.skipped_bases]
    decided = {(outcome.base_id, outcome.task) for outcome in summary.outcomes}
    broken = {(item.base_id, item.task) for item in summary.failed}
    due = [item for item in summary.plan if item.action == "generate"]
    undone = [
        item
        for item in due
        if (item.base_id, item.task) not in decided | broken and (item.base_id, WHOLE_BASE) not in broken
    ]
    yield "to do", ("base", "task", "reason"), [(item.base_id, item.task, item.reason) for item in undone]
    skips = Counter((item.base_id, item.reason) for item in summary.plan if item.action == "skip")
    yield "not due", ("base", "tasks", "reason"), [(base, str(n), reason) for (base, reason), n in skips.items()]
    yield (
        "decided",
        ("base", "task", "published", "reason"),
        [(o.base_id, o.task, o.decision.arm or "nothing", o.decision.reason) for o in summary.outcomes],
    )
    yield (
        "refused candidates",
        ("base", "task", "candidate", "reason"),
        [(o.base_id, o.task, name, reason) for o in summary.outcomes for name, reason in sorted(o.refused.items())],
    )
    rows = [(row["base"], row["task"], row["arm"], row["uri"]) for row in summary.published]
    yield "current release", ("base", "task", "arm", "uri"), rows


def summary_text(summary: RegenerationSummary) -> str:
    """The summary for a terminal or a log."""
    lines = [f"regeneration {summary.started}, generator {summary.generator[:12]}", summary.headline]
    for title, _, rows in tables(summary):
        if rows:
            lines += ["", f"{title}:", *(f"  {line}" for line in aligned(rows))]
    return "\n".join(lines)


def summary_html(summary: RegenerationSummary) -> str:
    """The summary as one page without any other file."""
    parts = [
        f"<!doctype html><meta charset=utf-8><title>regeneration {escape(summary.started)}</title><style>{_STYLE}</style>",
        f"<h1>Regeneration {escape(summary.started)}</h1><p>{escape(summary.headline)}</p>",
        f"<p>generator <code>{escape(summary.generator)}</code></p>",
    ]
    for title, columns, rows in tables(summary):
        if rows:
            parts.append(f"<h2>{title.capitalize()}</h2><table>{_row('th', columns)}")
            parts += [_row("td", row) for row in rows]
            parts.append("</table>")
    return "\n".join(parts)


def write_summary(summary: RegenerationSummary, path: Path) -> None:
    """Write a .json, .html or .txt file; ConfigError for another ending."""
    forms = {".json": lambda s: s.model_dump_json(indent=1), ".html": summary_html, ".txt": summary_text}
    if path.suffix not in forms:
        raise ConfigError(f"--summary {path} must end in {', '.join(forms)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(forms[path.suffix](summary) + "\n", encoding="utf-8")
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}; choose another file") from None


def _row(cell: str, values: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{cell}>{escape(value)}</{cell}>" for value in values) + "</tr>"
