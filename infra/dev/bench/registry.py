"""The benchmarks of this folder."""

import importlib

from oral_ray.bench.registry import Benchmarks

DEV_BENCH = Benchmarks(
    command="python infra/dev/bench",
    about={
        "peers": "our head beside the regression head and RPG's, and beside the machine's limit: time of a parameter",
        "heads": "the three heads trained alike on real adapters: held-out loss beside time",
        "latent": "Cond P-Diff beside ours at equal budget, by the number of generated parameters",
        "adapt": "training an adapter of SmolLM2 against generating it",
        "growth": "corpora, fleets and clusters worked out from reports of the others, and which part gives out first",
        "ssd": "chunked SSD against the plain recurrence",
        "plan": "store calls and time of a night before any work, at 10, 100 and 1,000 bases",
        "score": "scoring texts in batches of several sizes",
        "data": "passes over the shards, batches from memory and streamed",
    },
    load=lambda name: importlib.import_module(f"dev.bench.{name}"),
    apart=("growth",),
)
