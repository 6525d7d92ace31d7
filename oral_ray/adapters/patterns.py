"""Regular expressions of an adapter_config.json, run once under a clock before peft and we run them without one.

A pattern such as `(a+)+` may need more steps for one name than there will ever be time for, and nothing ends `re` from
outside in the same process. So a process of its own tries every pattern on every name, as peft will.

    check_patterns_end(settings, ["model.layers.0.self_attn.q_proj", ...], "my-adapter")
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator

from oral_ray.adapters.settings import LoraFileSettings
from oral_ray.errors import ArtifactError

SECONDS = 10.0  # sound patterns take milliseconds on the names of the largest models
_PLAIN = re.compile(r"[\w.\\-]*")  # a name, which no engine tries in two ways
_TRY = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for number, pattern in enumerate(patterns):
    print(number, flush=True)
    for name in names:
        re.match(pattern, name)
"""


def check_patterns_end(settings: LoraFileSettings, names: Iterable[str], name: str) -> None:
    """ArtifactError for a pattern that is not done with the names of the modules in `SECONDS`."""
    patterns = {peft_form: given for given, peft_form in _patterns(settings) if not _PLAIN.fullmatch(given)}
    if not patterns:
        return
    asked = json.dumps([[*patterns], sorted(names)])
    try:
        subprocess.run(
            [sys.executable, "-I", "-S", "-c", _TRY],
            input=asked.encode(),
            capture_output=True,
            timeout=SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired as error:
        number = int((error.stdout or b"0").split()[-1])
        raise ArtifactError(
            f"adapter {name}: adapter_config.json has the pattern {[*patterns.values()][number][:80]!r}, which is not done "
            f"with the names of the modules in {SECONDS:g} s; write it without repetitions inside of repetitions, or list "
            "the modules"
        ) from None


def _patterns(settings: LoraFileSettings) -> Iterator[tuple[str, str]]:
    """Every pattern as it is given and as peft matches it from the start of a name."""
    for whole in (settings.target_modules, settings.exclude_modules):
        if isinstance(whole, str):
            yield whole, rf"(?:{whole})\Z"
    for ending in (*settings.rank_pattern, *settings.alpha_pattern):
        yield ending, rf"(.*\.)?({ending})$"
    layers = settings.layers_pattern or []
    for layer in [layers] if isinstance(layers, str) else layers:
        yield layer, rf"(?:^|.*?\.){layer}\.(?P<idx>\d+)\."
