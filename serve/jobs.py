"""Jobs in the store: `jobs/open/<id>.json` from acceptance on, `jobs/done/<id>.json` with the outcome, created once each.

An accepted job is in the store before the client hears of it, so whichever replica dies, an ingress that starts finds it
among the open ones and goes on. The first outcome counts: a result that comes after a cancellation is dropped.
"""

import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from oral_ray.config import Record, canonical_json, fingerprint
from oral_ray.errors import MissingObjectError, StoreError
from oral_ray.objects import Objects
from serve.problems import RefusedError
from serve.schema import AdapterInfo, GenerateRequest, JobInfo, Problem

_OPEN, _DONE, _KEYS = "jobs/open/", "jobs/done/", "jobs/keys/"


class Job(Record):
    """What was asked for, and when."""

    id: str
    request: GenerateRequest
    created_s: float


class JobStore:
    """Jobs of one store."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def create(self, request: GenerateRequest, caller: str, idempotency_key: str) -> Job:
        """Accept a job; the one of before when the caller's Idempotency-Key has one."""
        name = fingerprint("job", caller, idempotency_key) if idempotency_key else uuid.uuid4().hex
        job = Job(id=name, request=request, created_s=time.time())
        done = self._read(_DONE, name)
        if done is not None or not self._objects.put_if_absent(self._key(_OPEN, name), canonical_json(job).encode()):
            return self._job(done or self._read(_OPEN, name) or job.model_dump())
        return job

    def claim_key(self, caller: str, idempotency_key: str, request: GenerateRequest) -> None:
        """Bind a caller's Idempotency-Key to a request; RefusedError (422) when it is bound to another one."""
        key = self._key(_KEYS, fingerprint("key", caller, idempotency_key))
        body = canonical_json({"request": fingerprint(request)}).encode()
        if not self._objects.put_if_absent(key, body) and self._objects.get(key) != body:
            raise RefusedError(
                422, "IdempotencyError", "this Idempotency-Key came with another request; take a new one"
            )

    def info(self, job_id: str) -> JobInfo:
        """A job as a client sees it; RefusedError (404) when there is none."""
        done = self._read(_DONE, job_id)
        if done is not None:
            return JobInfo.model_validate(done)
        opened = self._read(_OPEN, job_id)
        if opened is None:
            # it may have ended between the two looks
            done = self._read(_DONE, job_id)
            if done is None:
                raise RefusedError(404, "JobError", f"no job {job_id!r}; ids come from POST /v1/adapters")
            return JobInfo.model_validate(done)
        return JobInfo(status="queued", **opened)

    def finish(self, job: Job, outcome: AdapterInfo | Problem | None) -> JobInfo:
        """Note the outcome (None: cancelled) unless there is one already; what counts is returned."""
        status = "succeeded" if isinstance(outcome, AdapterInfo) else "failed" if outcome else "cancelled"
        info = JobInfo(
            id=job.id, request=job.request, created_s=job.created_s, status=status, finished_s=time.time(),
            adapter=outcome if isinstance(outcome, AdapterInfo) else None,
            problem=outcome if isinstance(outcome, Problem) else None,
        )  # fmt: skip
        if not self._objects.put_if_absent(self._key(_DONE, job.id), canonical_json(info).encode()):
            info = self.info(job.id)
        self._objects.delete(self._key(_OPEN, job.id))
        return info

    def open_jobs(self) -> Iterator[Job]:
        """Accepted jobs without an outcome."""
        for listed in self._objects.list(_OPEN):
            name = listed.key.removeprefix(_OPEN).removesuffix(".json")
            if self._objects.exists(self._key(_DONE, name)):
                self._objects.delete(listed.key)  # its writer was stopped between the two
            elif (found := self._read(_OPEN, name)) is not None:
                yield self._job(found)

    def _read(self, prefix: str, name: str) -> dict[str, Any] | None:
        try:
            return dict(json.loads(self._objects.get(self._key(prefix, name))))
        except MissingObjectError:
            return None
        except (ValueError, TypeError):
            raise StoreError(f"job {prefix}{name} in {self._objects.uri} is damaged; delete it and ask again") from None

    def _job(self, found: dict[str, Any]) -> Job:
        try:
            return Job.model_validate({name: found[name] for name in Job.model_fields})
        except (KeyError, ValidationError) as error:
            raise StoreError(f"a job in {self._objects.uri} is damaged: {error}; delete it and ask again") from None

    @staticmethod
    def _key(prefix: str, name: str) -> str:
        return f"{prefix}{name}.json"
