"""vLLM's LoRA resolver interface, since vLLM itself installs on few machines: what a plugin sees of it, nothing more.

Written after the documented behaviour of vLLM 0.14 (docs.vllm.ai, api/vllm/lora/request, api/vllm/lora/resolver,
api/vllm/entrypoints/openai/serving_models): `LoRARequest` refuses ids below 1 and empty paths, the registry keeps
resolvers by name, the server asks each resolver in turn under a lock a name, with the name of the model that it loaded, and
its engine refuses an adapter of a rank above --max-lora-rank.
"""

import asyncio
import json
import sys
import types
from abc import ABC, abstractmethod
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str = ""
    base_model_name: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.lora_int_id < 2**31:  # the worker keeps ids in an int32 array
            raise ValueError(f"id {self.lora_int_id}")
        assert self.lora_path, "lora_path cannot be empty"


class LoRAResolver(ABC):
    @abstractmethod
    async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None: ...


class Registry:
    def __init__(self) -> None:
        self.resolvers: dict[str, LoRAResolver] = {}

    def get_supported_resolvers(self) -> Any:
        return self.resolvers.keys()

    def register_resolver(self, resolver_name: str, resolver: LoRAResolver) -> None:
        assert isinstance(resolver, LoRAResolver)
        self.resolvers[resolver_name] = resolver

    def get_resolver(self, resolver_name: str) -> LoRAResolver:
        return self.resolvers[resolver_name]


class Engine:
    """The part of an OpenAI server that resolves the `model` of a request; `loaded` are the adapters it has."""

    def __init__(self, registry: Registry, model: str, max_lora_rank: int = 16) -> None:
        self._resolvers = [registry.get_resolver(name) for name in registry.get_supported_resolvers()]
        self._model, self._max_lora_rank = model, max_lora_rank
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.loaded: dict[str, LoRARequest] = {}

    async def resolve(self, lora_name: str) -> LoRARequest | None:
        async with self._locks[lora_name]:
            if lora_name in self.loaded:
                return self.loaded[lora_name]
            for resolver in self._resolvers:
                request = await resolver.resolve_lora(self._model, lora_name)
                if request is not None:
                    self._check(Path(request.lora_path))
                    self.loaded[lora_name] = request
                    return request
            return None

    def _check(self, folder: Path) -> None:
        """What PEFTHelper accepts."""
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["peft_type"] == "LORA"
        assert config["r"] <= self._max_lora_rank
        assert config.get("bias", "none") == "none"
        assert not config.get("modules_to_save")
        assert not config.get("use_dora")
        assert (folder / "adapter_model.safetensors").is_file()


def install(monkeypatch: Any) -> Registry:
    """Put the interface where `import vllm.lora...` finds it."""
    registry = Registry()
    request, resolver = types.ModuleType("vllm.lora.request"), types.ModuleType("vllm.lora.resolver")
    request.LoRARequest = LoRARequest  # type: ignore[attr-defined]
    resolver.LoRAResolver = LoRAResolver  # type: ignore[attr-defined]
    resolver.LoRAResolverRegistry = registry  # type: ignore[attr-defined]
    for name, module in {
        "vllm": types.ModuleType("vllm"), "vllm.lora": types.ModuleType("vllm.lora"), request.__name__: request,
        resolver.__name__: resolver,
    }.items():  # fmt: skip
        monkeypatch.setitem(sys.modules, name, module)
    return registry
