"""The published tree on S3 is listed and downloaded by Ray Serve LLM's own LoRA code, and plain peft takes every key."""

from pathlib import Path

import torch

from oral_ray.adapters.artifact import Provenance, build_artifact, read_folder
from oral_ray.adapters.layout import AdapterLayout
from oral_ray.bases.spec import read_spec
from oral_ray.config import LoraSettings
from oral_ray.objects import FileObjects, S3Objects
from oral_ray.store.adapters import AdapterStore


def test_ray_serve_llm_lists_and_downloads_what_was_published_and_peft_loads_it(
    s3_objects: S3Objects, tiny_llama: Path, tmp_path: Path
):
    from peft import PeftModel
    from ray.llm._internal.common.utils.download_utils import CloudFileSystem
    from ray.llm._internal.common.utils.lora_utils import LORA_ADAPTER_CONFIG_NAME, get_lora_model_ids
    from transformers import AutoModelForCausalLM

    layout = AdapterLayout.of(read_spec(FileObjects(tiny_llama), ""), LoraSettings(r=2), token_dim=16)
    rng = torch.Generator().manual_seed(0)
    factors = {
        slot.module: (torch.randn(2, slot.d_in, generator=rng), torch.randn(slot.d_out, 2, generator=rng))
        for slot in layout.slots
    }
    artifact = build_artifact(factors, layout, Provenance(origin="trained", base_id="tiny", base_fingerprint="f"))
    store = AdapterStore(s3_objects)
    digest = store.put(artifact)
    uris = [store.publish(digest, "published", "tiny", adapter_id) for adapter_id in ("task-a", "task-b")]
    prefix = f"{s3_objects.uri}/published/tiny"
    assert sorted(get_lora_model_ids(prefix, "tiny")) == ["tiny:task-a", "tiny:task-b"]
    assert CloudFileSystem.get_file(f"{uris[0]}/{LORA_ADAPTER_CONFIG_NAME}") is not None
    CloudFileSystem.download_files(path=str(tmp_path / "lora"), bucket_uri=uris[0])
    assert read_folder(tmp_path / "lora").digest == digest
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    model = PeftModel.from_pretrained(base, str(tmp_path / "lora"))
    kept = {name.replace(".default", ""): value for name, value in model.state_dict().items() if "lora_" in name}
    assert kept.keys() == artifact.tensors.keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in artifact.tensors.items())
