"""The generation service: HTTP -> GenerationService on autoscaled Ray Serve replicas.

    serve run serve.app:build_app config=infra/configs/quickstart.toml store.uri=./oral-store
    curl -s localhost:8000/v1/adapters -H 'content-type: application/json' \\
         -d '{"prompt": "Classify a dictionary definition.", "base": "minilm-l6-t3", "seed": 0}'

OpenAPI is at /docs and /openapi.json. Concurrent requests of a replica are sampled as one batch.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from ray import serve
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from oral_ray import __version__
from oral_ray.cluster import limit_threads, store_uri
from oral_ray.config import Config, load_config
from oral_ray.errors import ArtifactError, BaseModelError, ConditionError, LayoutError, OralError
from oral_ray.generator.condition import Condition
from oral_ray.service import GenerationService, open_service
from serve.schema import AdapterInfo, GenerateRequest, Health, Problem

logger = logging.getLogger(__name__)
STATUS: dict[type[OralError], int] = {ConditionError: 422, BaseModelError: 404, ArtifactError: 404, LayoutError: 422}


class Generation:
    """One replica: a loaded generator, and the three things a client may ask."""

    def __init__(self, config: Config) -> None:
        limit_threads(max(1, int(config.serve.cpus_per_replica)), config.determinism)
        self._service: GenerationService = open_service(config, "cuda" if config.serve.gpus_per_replica else "cpu")
        batching: Any = self._batched
        batching.set_max_batch_size(config.serve.batch_size)
        batching.set_batch_wait_timeout_s(config.serve.batch_wait_s)

    async def create(self, request: GenerateRequest) -> AdapterInfo:
        """Generate an adapter and store it."""
        condition = await asyncio.to_thread(self._service.condition, request.prompt, request.base)
        sample: Any = self._batched  # many calls of one request become one call of many
        digest = await sample((condition, request.seed))
        return await asyncio.to_thread(self._info, digest)

    async def read(self, adapter_id: str) -> AdapterInfo:
        """Look up a stored adapter by its id."""
        if len(adapter_id) != 64 or not set(adapter_id) <= set("0123456789abcdef"):
            raise ArtifactError(f"{adapter_id[:80]!r} is no adapter id; ids are 64 hexadecimal digits")
        return await asyncio.to_thread(self._info, adapter_id)

    async def health(self) -> Health:
        """Answer once the generator is loaded."""
        return Health(status="ok", generator=self._service.factory.generator.spec.recipe)

    @serve.batch
    async def _batched(self, requests: list[tuple[Condition, int]]) -> list[str]:
        conditions, seeds = [condition for condition, _ in requests], [seed for _, seed in requests]
        return await asyncio.to_thread(self._service.generate, conditions, seeds)

    def _info(self, digest: str) -> AdapterInfo:
        artifact = self._service.get(digest)
        origin, lora = artifact.provenance, artifact.lora
        return AdapterInfo(
            id=digest,
            uri=self._service.uri(digest),
            base=origin.base,
            base_fingerprint=origin.base_fingerprint,
            prompt=origin.prompt,
            seed=origin.seed,
            generator=origin.generator,
            r=lora.r,
            lora_alpha=lora.lora_alpha,
            target_modules=list(lora.target_modules),
        )


def build_app(config: Config | Mapping[str, str]) -> serve.Application:
    """The Serve application of a configuration.

    `serve run` passes its `key=value` arguments as a mapping: `config` names the TOML file, the others override it.
    """
    if not isinstance(config, Config):
        overrides = [f"{key}={value}" for key, value in config.items() if key != "config"]
        config = load_config(config.get("config", "infra/configs/quickstart.toml"), overrides)
    config = config.model_copy(update={"store": config.store.model_copy(update={"uri": store_uri(config.store.uri)})})
    settings = config.serve
    replicas = serve.deployment(
        name="generation",
        ray_actor_options={"num_cpus": settings.cpus_per_replica, "num_gpus": settings.gpus_per_replica},
        max_queued_requests=settings.max_queued_requests,
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.target_ongoing_requests,
        },
    )
    return replicas(serve.ingress(lambda: build_api(config))()).bind()


def build_api(config: Config) -> FastAPI:
    """The HTTP interface of one replica, with its generator loaded: routes, error answers, the limit on bodies."""
    replica = Generation(config)
    api = FastAPI(title="oral_ray", version=__version__, description="LoRA adapters from prompts.")
    api.add_middleware(LimitBody, max_bytes=config.serve.max_body_bytes)
    failures: dict[int | str, dict[str, Any]] = {code: {"model": Problem} for code in (404, 413, 422, 500)}
    api.add_api_route(
        "/v1/adapters", replica.create, methods=["POST"], status_code=201, response_model=AdapterInfo,
        responses=failures,
    )  # fmt: skip
    api.add_api_route("/v1/adapters/{adapter_id}", replica.read, response_model=AdapterInfo, responses=failures)
    api.add_api_route("/healthz", replica.health, response_model=Health)
    handlers: dict[type[Exception], Callable[..., Awaitable[JSONResponse]]] = {
        OralError: _on_oral_error, RequestValidationError: _on_invalid, HTTPException: _on_refused,
        Exception: _on_unexpected,
    }  # fmt: skip
    for kind, handler in handlers.items():
        api.add_exception_handler(kind, handler)
    return api


async def _on_oral_error(request: Request, error: OralError) -> JSONResponse:
    return _problem(STATUS.get(type(error), 500), type(error).__name__, str(error))


async def _on_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    faults = (f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
    return _problem(422, "RequestError", "; ".join(faults))


async def _on_refused(request: Request, error: HTTPException) -> JSONResponse:
    answer = _problem(error.status_code, "RequestError", str(error.detail))
    answer.headers.update(error.headers or {})
    return answer


async def _on_unexpected(request: Request, error: Exception) -> JSONResponse:
    logger.exception("%s %s failed", request.method, request.url.path, exc_info=error)
    return _problem(500, "InternalError", "the service failed on this request; its log has the reason")


def _problem(status: int, title: str, detail: str) -> JSONResponse:
    problem = Problem(title=title, status=status, detail=detail)
    return JSONResponse(problem.model_dump(), status, media_type="application/problem+json")


class LimitBody:
    """ASGI middleware that answers 413 before a body of more than `max_bytes` is held in memory."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        messages: list[Message] = []
        num_bytes, more = 0, True
        while more:
            message = await receive()
            messages.append(message)
            num_bytes += len(message.get("body", b""))
            more = message["type"] == "http.request" and message.get("more_body", False)
            if num_bytes > self._max_bytes:
                detail = f"the body has more than {self._max_bytes} bytes; shorten the prompt"
                await _problem(413, "BodyTooLarge", detail)(scope, receive, send)
                return
        replay = iter(messages)

        async def receive_again() -> Message:
            return next(replay, None) or await receive()

        await self._app(scope, receive_again, send)
