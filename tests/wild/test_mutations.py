"""Sound checkpoints and adapters, damaged at random, give equal logits or a refusal: never anything else.

`python infra/dev/mutate.py` does the same ten thousand times.
"""

from pathlib import Path

import pytest
from judges import judge_adapter, judge_checkpoint
from mutations import damaged
from sound import make_sound

NUM = 8  # of each sound folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sound(tmp_path_factory.mktemp("sound"))


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "llama_tied", "qwen3", "sharded"])
def test_a_damaged_checkpoint_is_what_lies_there_or_is_refused(sound: Path, tmp_path: Path, name: str):
    for seed in range(NUM):
        damage = damaged(sound / "bases" / name, tmp_path / str(seed), seed)
        judge_checkpoint(sound / "bases" / name, tmp_path / str(seed), damage)


@pytest.mark.parametrize("name", ["bert--plain", "gpt2--conv", "llama--mlp", "llama--plain", "llama--rslora"])
def test_a_damaged_adapter_is_what_lies_there_or_is_refused(sound: Path, tmp_path: Path, name: str):
    base = sound / "bases" / name.partition("--")[0]
    for seed in range(NUM):
        damage = damaged(sound / "adapters" / name, tmp_path / str(seed), seed)
        judge_adapter(sound / "adapters" / name, base, tmp_path / str(seed), damage)


def test_the_judges_see_what_is_taken_and_wrong(sound: Path, tmp_path: Path):
    """Damage that nobody could see (other weights, well formed) is told from the truth by its logits."""
    from mutations import Damage
    from safetensors.torch import load_file, save_file

    for kind, name, file in (("bases", "llama", "model"), ("adapters", "llama--plain", "adapter_model")):
        target = tmp_path / kind
        damaged(sound / kind / name, target, 0)  # a copy; the damage is undone by writing the sound files again
        for path in (sound / kind / name).iterdir():
            (target / path.name).write_bytes(path.read_bytes())
        tensors = load_file(target / f"{file}.safetensors")
        other = {key: value * 1.5 for key, value in tensors.items()}
        save_file(other, target / f"{file}.safetensors", metadata={"format": "pt"})
        with pytest.raises(AssertionError, match="taken, logits differ by"):
            if kind == "bases":
                judge_checkpoint(sound / kind / name, target, Damage())
            else:
                judge_adapter(sound / kind / name, sound / "bases/llama", target, Damage())
