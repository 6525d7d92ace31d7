"""What Ray Serve LLM's own loader does with a published adapter: the walkthrough of docs/serve-llm.md without an engine.

The engine needs vLLM; the configuration, the listing, the lookup and the download are Ray's own code and need none.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oral_ray.adapters.artifact import AdapterArtifact, read_folder
from oral_ray.objects import S3Objects
from oral_ray.store.adapters import AdapterStore

lora_serve_utils = pytest.importorskip("ray.llm._internal.serve.utils.lora_serve_utils")
BASE, ADAPTER = "small-llama", "spam-1"


@pytest.fixture
def published(s3_objects: S3Objects, make_artifact: Callable[..., AdapterArtifact]) -> tuple[str, str]:
    """(digest, prefix of the base's published adapters)."""
    store = AdapterStore(s3_objects)
    digest = store.put(make_artifact(1))
    return digest, store.publish(digest, "published", BASE, ADAPTER).rpartition("/")[0]


def config(path: str) -> Any:
    from ray.llm._internal.serve.core.configs.llm_config import LLMConfig

    return LLMConfig(
        model_loading_config={"model_id": BASE, "model_source": "/models/small-llama"},
        engine_kwargs={"enable_lora": True, "max_lora_rank": 16},
        lora_config={"dynamic_lora_loading_path": path},
    )


def load(model: str, llm_config: Any, cache: Path) -> Any:
    loader = lora_serve_utils.LoraModelLoader(str(cache))
    return asyncio.run(loader.load_model_from_config(model, llm_config))


def test_rays_loader_lists_finds_and_downloads_a_published_adapter(published: tuple[str, str], tmp_path: Path) -> None:
    from ray.llm._internal.common.utils.lora_utils import get_lora_model_ids

    digest, prefix = published
    assert get_lora_model_ids(prefix, BASE) == [f"{BASE}:{ADAPTER}"]
    loaded = load(f"{BASE}:{ADAPTER}", config(prefix), tmp_path)
    assert loaded.model_id == f"{BASE}:{ADAPTER}"
    assert read_folder(Path(loaded.local_path)).digest == digest


def test_rays_loader_takes_an_adapter_that_was_only_generated(published: tuple[str, str], tmp_path: Path) -> None:
    digest, prefix = published
    adapters = f"{prefix.removesuffix(f'/published/{BASE}')}/adapters"
    loaded = load(f"{BASE}:{digest}", config(adapters), tmp_path)
    assert read_folder(Path(loaded.local_path)).digest == digest


def test_an_adapter_that_is_not_there_is_a_404_of_rays_loader(published: tuple[str, str], tmp_path: Path) -> None:
    from fastapi import HTTPException

    with pytest.raises(HTTPException) as refused:
        load(f"{BASE}:no-such", config(published[1]), tmp_path)
    assert refused.value.status_code == 404


def test_ray_refuses_a_folder_as_loading_path() -> None:
    with pytest.raises(ValueError, match="Invalid lora_config"):
        config("file:///tmp/published")
