"""What the client does, without a network: every operation is a generator that the sync and the async client drive.

A flow yields a `Call` (an HTTP request to make; it is sent the answer) or a `Pause` (seconds to wait), and returns the
result. So retries, jobs and checks are written once:

    flow = generate({"prompt": ..., "base": ...}, Patience(timeout_s=60))
    call = next(flow)              # Call("POST", "/v1/adapters", ...)
    flow.send(Reply(200, {}, b"...")) -> StopIteration(Adapter)
"""

import email.utils
import math
import time
import uuid
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from oral_ray.client.wire import Adapter, AdapterPage, Base, BaseList, Fault, Job, Release, ReleaseList
from oral_ray.errors import ArtifactError, ServiceError

RETRIED = (429, 502, 503, 504)
POLL_S, LONGEST_PAUSE_S = 0.5, 30.0
MAX_DIALS = 4  # repeated when nobody answers: 0.25 + 0.5 + 1 + 2 s, a restart of the ingress
T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request, its path below the service's address."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    body: Any = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back; header names in lower case. Status 0: no answer, `reason` says why."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Pause:
    """Seconds to wait."""

    seconds: float


Flow = Generator[Call | Pause, Reply, T]


class Patience:
    """How long one operation may take in all; every wait is cut to what is left."""

    def __init__(self, timeout_s: float) -> None:
        self._deadline_s = time.monotonic() + timeout_s

    @property
    def left_s(self) -> float:
        return max(0.0, self._deadline_s - time.monotonic())


def exchange(call: Call, patience: Patience) -> Flow[Reply]:
    """The answer to a call. Refusals that pass (429, 502-504, no connection) are repeated, as Retry-After says.

    Raises ServiceError with the problem's detail for every other one, or when there is no time left to wait.
    """
    attempt = 0
    while True:
        reply = yield call
        if 200 <= reply.status < 300:
            return reply
        pause_s = _pause_s(reply, attempt)
        passing = reply.status in RETRIED or (reply.status == 0 and attempt < MAX_DIALS)
        if not passing or pause_s >= patience.left_s:
            raise _refusal(call, reply)
        yield Pause(pause_s)
        attempt += 1


def generate(request: Mapping[str, Any], patience: Patience) -> Flow[Adapter]:
    """Ask for an adapter and wait for it, as long as there is time."""
    headers = {"Idempotency-Key": uuid.uuid4().hex, "Prefer": f"wait={min(30, math.floor(patience.left_s))}"}
    reply = yield from exchange(Call("POST", "/v1/adapters", headers, body=request), patience)
    if reply.status != 202:
        return _read(Adapter, reply)
    return (yield from wait_for(_read(Job, reply), patience))


def wait_for(job: Job, patience: Patience) -> Flow[Adapter]:
    """The adapter of a job, once it is there; ServiceError when the job failed, was cancelled, or takes too long."""
    while job.adapter is None:
        if job.problem is not None:
            raise ServiceError(f"job {job.id}: {job.problem.detail}", job.problem.status, job.problem.request_id)
        if job.status in ("cancelled", "failed"):
            raise ServiceError(f"job {job.id} was {job.status}; ask again")
        if patience.left_s <= POLL_S:
            raise ServiceError(
                f"job {job.id} is still {job.status} after the time given; wait for it with job({job.id!r})"
            )
        yield Pause(POLL_S)
        job = yield from get_job(job.id, patience)
    return job.adapter


def get_job(job_id: str, patience: Patience) -> Flow[Job]:
    """The state of a job."""
    return _read(Job, (yield from exchange(Call("GET", f"/v1/jobs/{job_id}"), patience)))


def cancel_job(job_id: str, patience: Patience) -> Flow[None]:
    """Cancel a job."""
    yield from exchange(Call("DELETE", f"/v1/jobs/{job_id}"), patience)


def get_adapter(adapter_id: str, patience: Patience) -> Flow[Adapter]:
    """A stored adapter."""
    return _read(Adapter, (yield from exchange(Call("GET", f"/v1/adapters/{adapter_id}"), patience)))


def list_adapters(patience: Patience) -> Flow[list[Adapter]]:
    """All stored adapters, page by page."""
    found: list[Adapter] = []
    after: str | None = None
    while True:
        params = {"after": after} if after else {}
        page = _read(AdapterPage, (yield from exchange(Call("GET", "/v1/adapters", params=params), patience)))
        found += page.items
        after = page.next
        if after is None:
            return found


def list_bases(patience: Patience) -> Flow[tuple[Base, ...]]:
    """The base versions of the service's store."""
    return _read(BaseList, (yield from exchange(Call("GET", "/v1/bases"), patience))).items


def list_releases(base_id: str | None, patience: Patience) -> Flow[tuple[Release, ...]]:
    """The latest release of every base, or all of one base, newest first."""
    call = Call("GET", "/v1/releases", params={"base": base_id} if base_id else {})
    return _read(ReleaseList, (yield from exchange(call, patience))).items


def download(adapter_id: str, folder: Path, patience: Patience) -> Flow[Path]:
    """Write an adapter into a folder once its digest is found to be its id.

    Raises ArtifactError, and nothing is written, when it is not, or when the folder holds something else already.
    """
    from oral_ray.adapters.artifact import parse_artifact, write_folder  # torch: only who downloads needs it
    from oral_ray.adapters.streamed import arriving, check_free

    check_free(folder, adapter_id)
    adapter = yield from get_adapter(adapter_id, patience)
    files = {}
    for name in adapter.files:
        reply = yield from exchange(Call("GET", f"/v1/adapters/{adapter_id}/files/{name}"), patience)
        files[name] = reply.body
    artifact = parse_artifact(files, adapter_id)
    if artifact.digest != adapter_id:
        raise ArtifactError(
            f"the service sent an adapter with digest {artifact.digest[:16]} for {adapter_id[:16]}; nothing was written, "
            "download it again"
        )
    with arriving(folder, adapter_id) as temporary:
        write_folder(artifact, temporary)
    return folder


def _read(model: type[M], reply: Reply) -> M:
    try:
        return model.model_validate_json(reply.body)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise ServiceError(
            f"the service's answer is no {model.__name__}: {where or 'body'}: {fault['msg']}; check the url and that "
            "client and service are of one version",
            reply.status,
            reply.headers.get("x-request-id", ""),
        ) from None


def _pause_s(reply: Reply, attempt: int) -> float:
    """Seconds to wait before the next attempt: what the service asks for, else 0.25, 0.5, 1, ..."""
    asked = reply.headers.get("retry-after", "").strip()
    if asked.isdigit():
        return float(asked)
    if asked:
        try:
            return max(0.0, email.utils.parsedate_to_datetime(asked).timestamp() - time.time())
        except ValueError:
            pass  # no date either: as if it were not there
    return min(LONGEST_PAUSE_S, 0.25 * 2**attempt)


def _refusal(call: Call, reply: Reply) -> ServiceError:
    if reply.status == 0:
        return ServiceError(f"no answer from the service to {call.method} {call.path}: {reply.reason}; check the url")
    request_id = reply.headers.get("x-request-id", "")
    try:
        fault = Fault.model_validate_json(reply.body)
    except ValidationError:
        text = " ".join(reply.body[:200].decode("utf-8", "replace").split())
        return ServiceError(
            f"{call.method} {call.path} was answered {reply.status}: {text or 'no body'}", reply.status, request_id
        )
    return ServiceError(fault.detail, reply.status, fault.request_id or request_id)
