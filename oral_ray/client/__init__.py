"""A small client of the generation service, sync and async: `pip install 'oral-ray[client]'`.

    from oral_ray.client import OralClient

    with OralClient("http://127.0.0.1:8000") as client:                  # the token: token=..., or ORAL_TOKEN
        adapter = client.generate("Tell spam from mail.", base="minilm-l6-t3")
        client.download(adapter.id, "my-adapter")                        # a PEFT folder, digest checked

`AsyncOralClient` has the same methods as coroutines.
"""

from oral_ray.client.client import AsyncOralClient, OralClient
from oral_ray.client.wire import Adapter, Base, Job, Release

__all__ = ["Adapter", "AsyncOralClient", "Base", "Job", "OralClient", "Release"]
