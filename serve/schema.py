"""The wire contract of the service: what a client sends and gets. Changes here are changes for every client.

Every body is one of these models; every error is a `Problem` (RFC 9457) as application/problem+json.
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, StringConstraints

from oral_ray.adapters.artifact import Provenance
from oral_ray.config import Identifier, LoraSettings, Record
from oral_ray.generation.condition import MAX_PROMPT_CHARS

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
JobId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
ModuleName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,256}$")]
FileName = Literal["adapter_model.safetensors", "adapter_config.json", "provenance.json"]


class _Message(Record):
    """Python names say what they are (`base_id`, `scale`); on the wire, and where a message is made, the alias counts."""

    model_config = ConfigDict(serialize_by_alias=True)


class GenerateRequest(_Message):
    """One adapter to generate: the task in words, a base version of the store, the seed of the sample.

    `r`, `lora_alpha` and `target_modules` default to those of the service; others must be ones that the generator's
    corpus has (`/v1/bases` lists them). `target_modules` are roles (`q`, `v`) or names as in adapter_config.json, in any
    order; those of an adapter that the service made ask for its kind again. `strength` multiplies the adapter's change of
    the weights.
    """

    # refused by check_prompt, in its own words; the document says what it refuses
    prompt: Annotated[str, Field(
        description="The task in words, with at least one visible character.",
        json_schema_extra={"minLength": 1, "maxLength": MAX_PROMPT_CHARS, "pattern": r"\S"},
    )]  # fmt: skip
    base_id: Annotated[
        Identifier, Field(alias="base", description="Id of a base version in the store, never a path or uri.")
    ]
    seed: Annotated[int, Field(ge=0, lt=2**63, description="Same prompt, base, generator and seed: same adapter.")] = 0
    r: Annotated[int, Field(ge=1, le=1024)] | None = None
    lora_alpha: Annotated[float, Field(gt=0, le=65536)] | None = None
    target_modules: Annotated[tuple[ModuleName, ...], Field(min_length=1, max_length=1024)] | None = None
    scale: Annotated[float, Field(alias="strength", gt=0, le=4)] = 1.0


class LoraChoice(_Message):
    """A kind of adapter, in peft's spelling."""

    r: int
    lora_alpha: float
    target_modules: tuple[str, ...]


class AdapterInfo(_Message):
    """A stored adapter: its id (the digest of its content), where it lies, and where it came from.

    `origin` is how it was made (`generated`, `trained`, ...), `task` what it was trained on. Where it is released, `task`
    is what it is released for, and `arm` the candidate that it won as.
    """

    id: str
    uri: str
    origin: str
    base_id: str = Field(alias="base")
    base_fingerprint: str
    task: str
    arm: str = ""
    prompt: str
    seed: int
    scale: float = Field(alias="strength")
    generator: str
    r: int
    lora_alpha: float
    target_modules: tuple[str, ...]
    files: tuple[FileName, ...] = ("adapter_model.safetensors", "adapter_config.json", "provenance.json")

    @classmethod
    def of(cls, digest: str, uri: str, lora: LoraSettings, origin: Provenance) -> "AdapterInfo":
        """What is told of an artifact."""
        return cls(
            id=digest, uri=uri, r=lora.r, lora_alpha=lora.lora_alpha, target_modules=lora.target_modules,
            **origin.model_dump(include={
                "origin", "base", "base_fingerprint", "task", "prompt", "seed", "scale", "generator",
            }),
        )  # fmt: skip

    def used(self, released: "ReleasedInfo | None") -> "AdapterInfo":
        """The same with the task and arm of its release, where it has one."""
        return self.model_copy(update={"task": released.task, "arm": released.arm}) if released else self


class Made(_Message):
    """What a replica answers to the ingress: the adapter, whose generator made it, and where the time went."""

    adapter: AdapterInfo
    batch_size: int
    num_tokens: int
    queue_s: float
    sample_s: float
    store_s: float


class AdapterPage(_Message):
    """Adapters in the order of their ids; `next` goes into `after` of the next request, null at the end."""

    items: tuple[AdapterInfo, ...]
    next: str | None


class ModuleNorm(_Message):
    """The Frobenius norm of one module's change of the weights, B A lora_alpha / r."""

    module: str
    role: str
    layer: int
    norm: float


class Neighbour(_Message):
    """Another trained adapter of the store; `distance` is |dW - dW'| / |dW'|, dW' its own change."""

    id: str
    base_id: str = Field(alias="base")
    task: str
    prompt: str
    distance: float


class SkippedAdapter(_Message):
    """A trained adapter that was not compared, and the run on record that made it; `id` is empty where none is named."""

    id: str
    run: str
    reason: str


class AdapterReport(_Message):
    """What an adapter looks like: norms by module in layout order, the nearest other adapters of the corpus.

    `skipped` are those that could not be compared, because they are damaged, missing or change nothing.
    """

    id: str
    norms: tuple[ModuleNorm, ...]
    nearest: tuple[Neighbour, ...]
    skipped: tuple[SkippedAdapter, ...] = ()


class JobInfo(_Message):
    """A request that is answered later: it ends as succeeded (`adapter` is set), failed (`problem` is) or cancelled."""

    id: str
    status: Literal["queued", "succeeded", "failed", "cancelled"]
    request: GenerateRequest
    created_s: Annotated[float, Field(description="Seconds since 1970.")]
    finished_s: float | None = None
    adapter: AdapterInfo | None = None
    problem: "Problem | None" = None


class BaseInfo(_Message):
    """A base version in the store; `refusal` says why the current generator makes nothing for it, empty where it does.

    `lora` are the kinds of adapters that may be asked for, the default first.
    """

    id: str
    model_type: str
    num_layers: int
    hidden_size: int
    architecture: str
    fingerprint: str
    refusal: str
    lora: tuple[LoraChoice, ...]


class BaseList(_Message):
    """All base versions."""

    items: tuple[BaseInfo, ...]


class TaskInfo(_Message):
    """A task of the configuration: its labels and wordings, examples of what may stand in a prompt."""

    id: str
    labels: tuple[str, ...]
    prompts: tuple[str, ...]


class TaskList(_Message):
    """All tasks of the configuration."""

    items: tuple[TaskInfo, ...]


class ReleasedInfo(_Message):
    """One published adapter: the arm that won the gate, with the validation scores of all candidates."""

    task: str
    arm: str
    adapter_id: str
    digest: str
    uri: str
    score: float
    scores: dict[str, float]


class ReleaseInfo(_Message):
    """A release: what was published for one base version by the configuration of a name.

    `served_name` is what the adapters call their base; empty in older releases.
    """

    base_id: str = Field(alias="base")
    name: str = ""
    served_name: str = ""
    sequence: int
    base_fingerprint: str
    generator: str
    adapters: tuple[ReleasedInfo, ...]


class ReleaseList(_Message):
    """The latest release of every base and name; all releases of one base when `base` is given, newest first."""

    items: tuple[ReleaseInfo, ...]


class ModelInfo(_Message):
    """A served model in OpenAI's shape: a base id, or `base:adapter_id` as Ray Serve LLM names an adapter."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "oral_ray"


class ModelList(_Message):
    """Bases and published adapters in OpenAI's shape."""

    object: Literal["list"] = "list"
    data: tuple[ModelInfo, ...]


class Health(_Message):
    """The service answers; `generator` is the recipe of the current one, where that was asked for."""

    status: Literal["ok"]
    generator: str = ""


class Problem(_Message):
    """An error (RFC 9457, application/problem+json); `detail` names the value and the remedy."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    request_id: str = ""


def lora_of(request: GenerateRequest, usual: LoraSettings) -> LoraSettings:
    """The kind of adapter that a request asks for, given the usual one."""
    named = {name: getattr(request, name) for name in ("r", "lora_alpha", "target_modules")}
    return usual.model_copy(update={name: value for name, value in named.items() if value is not None})
