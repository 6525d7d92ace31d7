"""What gets in as a base: faults 1 to 4, 8, 10 to 13, and the parts of 14 and 15 that are about bases."""

import os
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from fault_checks.place import FaultError, Place, change_json, check, hub_cache, must_say, refusal

LOADING = "tests/wild/test_bases_loading.py::"
TAKEN = LOADING + "test_what_is_taken_has_the_logits_that_plain_transformers_reads_from_the_same_tensors"
REFUSED = LOADING + "test_what_is_refused_is_refused_by_its_true_name_in_one_sentence"
NOT_RANDOM = LOADING + "test_nothing_is_ever_filled_in_at_random"
COVERED = LOADING + "test_another_content_of_a_file_that_changes_answers_is_another_fingerprint"
LAYOUT = "tests/test_wild_layouts.py::test_a_layout_has_the_modules_and_shapes_that_peft_gives_the_model"
POISON = "tests/test_nightly_poison.py::"
NIGHT = POISON + "test_every_poisoned_checkpoint_is_named_with_its_reason_and_the_sound_ones_are_released"
HUB = "tests/test_bases_hub.py::test_a_filled_cache_is_enough_without_the_network"


def each(names: dict[str, tuple[str, str]], *tests: str, timeout_s: float = 150) -> Any:
    """Register one check per id, each with its claim, of a function that gets the input's name too."""

    def register(run: Any) -> Any:
        for name, (claim, value) in names.items():
            check(name, claim, *tests, timeout_s=timeout_s)(lambda place, value=value: run(place, value))
        return run

    return register


def opened(folder: Path, seed: int = 0) -> Any:
    from oral_ray.bases.loading import open_base

    torch.manual_seed(seed)
    return open_base(str(folder))


@torch.no_grad()
def values(base: Any) -> torch.Tensor:
    """Outputs of a base for ten tokens."""
    tokens = torch.arange(5, 15)[None]
    return base.model(input_ids=tokens, attention_mask=torch.ones_like(tokens))[0]


def described(folder: Path) -> Any:
    from oral_ray.bases.catalog import describe_base
    from oral_ray.objects import FileObjects

    return describe_base(FileObjects(folder), "", "base")


@each({
    "1a": ("a sequence classifier is refused", "classifier"),
    "1b": ("a bare LlamaModel is refused", "bare body"),
    "1c": ("an upload without lm_head is refused", "head left out"),
    "1d": ("an upload without its last norm is refused", "norm left out"),
    "1e": ("an upload without its embedding is refused", "embedding left out"),
}, REFUSED, NOT_RANDOM)  # fmt: skip
def filled_up(place: Place, kind: str) -> None:
    folder = place.inputs / "bases" / kind
    if refusal(lambda: opened(folder)):
        return
    off = float((values(opened(folder, 1)) - values(opened(folder, 2))).abs().max())
    raise FaultError(f"taken, what is missing is filled in; two loads differ by {off:.2g}")


@check("1f", "an adapter scores the same twice on a base that is taken", REFUSED)
def scores_twice(place: Place) -> None:
    base, adapter = place.inputs / "bases/bare body", place.inputs / "adapters/plain"
    said = []
    for _ in range(2):
        torch.manual_seed(random.SystemRandom().randrange(2**31))
        said.append(place.cli("score", adapter, "--base", base, "--task", "wordnet/mind", "--limit", 200))
    if said[0].code == 0 and said[0].last != said[1].last:
        raise FaultError(f"{said[0].last} and then {said[1].last}")


@check("2", "an adapter inside a base's folder is not attached unseen",
       LOADING + "test_an_adapter_that_lands_after_the_look_is_not_attached", TAKEN)  # fmt: skip
def attached_unseen(place: Place) -> None:
    plain, folder = place.inputs / "bases/as it is", place.inputs / "bases/adapter beside"
    if refusal(lambda: opened(folder)):
        return
    base = opened(folder)
    off = float((values(base) - values(opened(plain))).abs().max())
    if off and base.record.fingerprint == described(plain).fingerprint:
        raise FaultError(f"attached on loading (off by {off:.2g}), the fingerprint is that of the base alone")


@check("3a", "weights come from the files that were fingerprinted", REFUSED)
def single_beside_shards(place: Place) -> None:
    folder = place.inputs / "bases/single file beside shards"
    if refusal(lambda: opened(folder)):
        return
    base, shards = opened(folder), opened(place.inputs / "bases/shards")
    off = float((values(base) - values(shards)).abs().max())
    if off and base.record.fingerprint == shards.record.fingerprint:
        raise FaultError(f"fingerprint of the shards, weights of the single file (off by {off:.2g})")


@each({
    "3b": ("Mistral's consolidated copy beside the single file is passed over", "consolidated beside the single file"),
    "3c": ("Mistral's consolidated copy beside shards is passed over", "Mistral's own copy beside"),
}, TAKEN)  # fmt: skip
def consolidated(place: Place, kind: str) -> None:
    base = opened(place.inputs / "bases" / kind)
    if not torch.equal(values(base), values(opened(place.inputs / "bases/as it is"))):
        raise FaultError("taken with other weights")
    folder = place.copy(place.inputs / "bases" / kind)
    (folder / "consolidated.safetensors").unlink()
    if described(folder).fingerprint != base.record.fingerprint:
        raise FaultError("the file that is not loaded is in the fingerprint")


@each({
    "4a": ("int8 with .SCB is refused", "bitsandbytes 8-bit"),
    "4b": ("int8 with .SCB and no quantization_config is refused", "8-bit without a config"),
    "4c": ("FP8 without scales is refused", "FP8 without scales"),
}, REFUSED)  # fmt: skip
def raw_integers(place: Place, kind: str) -> None:
    folder = place.inputs / "bases" / kind
    if kind == "bitsandbytes 8-bit" and not refusal(lambda: described(folder)):
        raise FaultError("described as a sound base, it stands on the plan of a night")
    if not refusal(lambda: opened(folder)):
        stored = opened(folder).model.get_submodule("model.layers.0.self_attn.q_proj").weight
        true = opened(place.inputs / "bases/as it is").model.get_submodule("model.layers.0.self_attn.q_proj").weight
        raise FaultError(f"raw codes became weights, off by {float((stored - true).abs().max()):.2g}")


@check("4d", "a 4-bit base of a model type that is read off its file is refused", REFUSED)
def unlisted_four_bit(place: Place) -> None:
    folder = place.inputs / "bases/4-bit Olmo"
    if not refusal(lambda: described(folder)):
        widths = {module.d_in for module in described(folder).spec.modules}
        raise FaultError(f"taken, modules have d_in {sorted(widths)}")


@each({
    "8a": ("all 560 tensors of SDXL's attention are adapted", "sdxl-unet"),
    "8b": ("all 352 tensors of the SDXL refiner's attention are adapted", "sdxl-refiner"),
    "8c": ("a UNet without a middle block has the modules that it has", "sd-1.5-bk-sdm-small"),
    "8d": ("the x4 upscaler has its true shapes", "sd-x4-upscaler-unet"),
    "8e": ("Mistral without num_key_value_heads has the width of its class", "mistral-without-kv"),
    "8f": ("BERT with cross-attention is adapted whole", "bert2bert-decoder"),
}, LAYOUT, "tests/test_wild_layouts.py::test_every_transformer_block_of_a_unet_is_adapted_and_no_block_that_it_lacks",
   timeout_s=300)  # fmt: skip
def layouts(place: Place, name: str) -> None:
    from on_meta import adapted, model_on_meta

    from oral_ray.adapters.layout import AdapterLayout
    from oral_ray.bases.spec import read_spec
    from oral_ray.config import LoraSettings
    from oral_ray.objects import FileObjects

    folder = place.inputs / "layouts" / name
    spec = read_spec(FileObjects(folder))
    roles = tuple(role for role in ("q", "k", "v", "o") if role in {module.role for module in spec.modules})
    layout = AdapterLayout.of(spec, LoraSettings(r=4, target_modules=roles), 1024)
    wanted = adapted(model_on_meta(folder, spec.kind), layout.target_modules)
    found = {slot.key: tuple(slot.shape(4)) for slot in layout.slots}
    if found != wanted:
        missing, made_up = wanted.keys() - found.keys(), found.keys() - wanted.keys()
        other = [key for key in wanted.keys() & found.keys() if wanted[key] != found[key]]
        counts = f"{len(missing)} are missing, {len(made_up)} made up, {len(other)} of wrong shape"
        raise FaultError(f"of {len(wanted)} tensors {counts}")


@each({
    "8g": ("CamemBERT's modules have the names that the loaded model has", "CamemBERT"),
    "8h": ("MPNet's modules have the names that the loaded model has", "MPNet"),
    "8i": ("Mixtral's modules have the names that the loaded model has", "Mixtral"),
}, TAKEN, LAYOUT)  # fmt: skip
def module_names(place: Place, kind: str) -> None:
    base = opened(place.inputs / "bases" / kind)
    there = {name for name, _ in base.model.named_modules()}
    lost = [module.name for module in base.record.spec.modules if module.name not in there]
    if lost:
        raise FaultError(f"{len(lost)} of {len(base.record.spec.modules)} modules are not in the model: {lost[0]}")


@check("10a", "a base with a changed tokenizer has another fingerprint", COVERED)
def tokenizer_counts(place: Place) -> None:
    folder = place.copy(place.inputs / "bases/as it is")
    before = described(folder).fingerprint
    text = (folder / "tokenizer.json").read_text().replace("gold", "dlog").replace("Ġthe", "Ġeht")
    (folder / "tokenizer.json").write_text(text)
    if described(folder).fingerprint == before:
        raise FaultError("the fingerprint is the same")


def odd_name(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.txt")).write_text("x")


def odd_config(folder: Path) -> None:
    change_json(folder / "config.json", note="\ud800")


def odd_header(folder: Path) -> None:
    """One more tensor, whose name is half of a character."""
    weights = load_file(folder / "model.safetensors")
    data = save(weights | {"note_1234": torch.ones(2)}, metadata={"format": "pt"})
    (folder / "model.safetensors").write_bytes(data.replace(b"note_1234", b"not\\ud800"))


ODD = {"latin-1 name": odd_name, "surrogate in config": odd_config, "surrogate in header": odd_header}


@each({
    "11a": ("a file with a Latin-1 name stops no other base", "latin-1 name"),
    "11b": ("\\ud800 in a config stops no other base", "surrogate in config"),
    "11c": ("\\ud800 in a header stops no other base", "surrogate in header"),
}, NIGHT, POISON + "test_a_night_over_a_folder_in_latin1_ends_well_and_is_written_down")  # fmt: skip
def stops_no_other(place: Place, kind: str) -> None:
    from oral_ray.bases.catalog import discover
    from oral_ray.objects import FileObjects

    for name in ("good", "odd"):
        shutil.copytree(place.inputs / "bases/as it is", place.work / "store/bases" / name)
    ODD[kind](place.work / "store/bases/odd")
    found, skipped = discover(FileObjects(place.work / "store"), "bases", 0.0)
    for record in (*found, *skipped):
        record.model_dump_json() if hasattr(record, "model_dump_json") else str(record).encode()
    if "good" not in [record.id for record in found]:
        raise FaultError(f"the sound base beside it is not found: {skipped}")
    if "odd" not in [record.id for record in (*found, *skipped)]:
        raise FaultError("the odd one is neither found nor named")


OPEN = "import sys; from oral_ray.bases.loading import open_base; print(open_base(sys.argv[1]).record.fingerprint)"
IMPORT = (
    "import sys; from oral_ray.bases.loading import import_base; from oral_ray.objects import FileObjects; "
    "from pathlib import Path; import_base(sys.argv[1], FileObjects(Path(sys.argv[2])), 'bases/v1/')"
)


@each({
    "12a": ("inspect takes a base of the hub's cache", "inspect"),
    "12b": ("a base of the hub's cache is loaded", OPEN),
    "12c": ("a base of the hub's cache is imported into a store", IMPORT),
    "12d": ("the README's own line is carried out", "readme"),
}, HUB, "tests/test_pipeline_bases.py::test_a_version_is_imported_from_a_hub_cache_without_the_network",
   "tests/test_bases_hub.py::test_inspect_fetches_config_json_and_nothing_else")  # fmt: skip
def hub(place: Place, how: str) -> None:
    source, cache = "hf:tiny/bert", place.inputs / "hub"
    if how == "readme":
        words = [word for word in (place.code / "README.md").read_text().split() if word.strip("`,").startswith("hf:")]
        source, cache = words[0].strip("`,"), place.work / "hub"
        hub_cache(cache, place.inputs / "sound/bases/bert", source.removeprefix("hf:"))
    is_command = how in ("inspect", "readme")
    command = ("-m", "oral_ray.cli", "inspect", source) if is_command else ("-c", how, source, place.work / "to")
    said = place.python(*command, more={"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"})
    if said.code:
        raise FaultError(said.last)


@each({
    "13a": ("ELECTRA with its published prefix is taken", "ELECTRA"),
    "13b": ("Qwen2-VL with its published prefixes is described", "Qwen2-VL"),
    "13c": ("an index may name a tensor that no shard has", "index names a tensor that no shard has"),
    "13d": ("Infinity in a config is taken", "config with Infinity"),
}, TAKEN)  # fmt: skip
def good_ones(place: Place, kind: str) -> None:
    folder = place.inputs / "bases" / kind
    if said := refusal(lambda: described(folder)):
        raise FaultError(said)
    if kind != "Qwen2-VL" and (said := refusal(lambda: opened(folder))):
        raise FaultError(said)


@check("13e", "r may be larger than the width of k and v",
       "tests/test_adapters_layout.py::test_a_rank_above_the_width_of_keys_and_values_is_taken_as_peft_takes_it",
       "tests/test_nightly_plan.py::test_a_rank_that_no_module_can_use_is_skipped_with_the_largest_that_one_can",
)  # fmt: skip
def wide_rank(place: Place) -> None:
    said = place.cli("inspect", place.inputs / "bases/as it is", "--r", 24, "--targets", "q,v")
    if said.code:
        raise FaultError(said.last)


@each({
    "13f": ("a config with a byte order mark is refused when it is looked at", "byte order mark"),
    "13g": ("a config in UTF-16 is refused when it is looked at", "UTF-16"),
}, REFUSED)  # fmt: skip
def refused_at_once(place: Place, kind: str) -> None:
    folder = place.inputs / "bases" / kind
    if not refusal(lambda: described(folder)):
        raise FaultError(f"described as sound, and then: {refusal(lambda: opened(folder)) or 'loaded'}")


@check("14a", "no model type is told that its config lacks or garbles n_embd", LAYOUT, timeout_s=400)
def unknown_types(place: Place) -> None:
    wrong = {}
    for folder in sorted((place.inputs / "layouts").iterdir()):
        said = place.cli("inspect", folder)
        if said.code and ("n_embd" in said.text or "lacks or garbles" in said.text):
            wrong[folder.name] = said.last
    if wrong:
        name, text = next(iter(wrong.items()))
        raise FaultError(f"{len(wrong)} of the layouts, such as {name}: {text}")


@each({
    "14b": ("GPTQ is refused as GPTQ", "GPTQ:GPTQ"),
    "14c": ("AWQ is refused as AWQ", "AWQ:AWQ"),
    "14d": ("bitsandbytes is refused as bitsandbytes", "bitsandbytes 4-bit:bitsandbytes"),
    "14e": ("shards without an index are told about the index", "shards without an index:index"),
    "14f": ("an LFS pointer is refused as one", "LFS pointer:LFS pointer"),
    "14g": ("F8_E8M0 is refused by its name", "block scales alone:F8_E8M0"),
    "14h": ("F4 is no malformed file", "half bytes:F4"),
}, REFUSED)  # fmt: skip
def true_reason(place: Place, which: str) -> None:
    kind, _, word = which.partition(":")
    folder = place.inputs / "bases" / kind
    said = refusal(lambda: described(folder)) or refusal(lambda: opened(folder))
    said = said.replace(str(folder), "it")  # whose name holds the word
    must_say(said, word, never=("another model", "malformed", "upload it again"))


@each({
    "15a": ("a base quantised by bitsandbytes ends in no traceback", "bitsandbytes 8-bit"),
    "15b": ("a base quantised by compressed-tensors ends in no traceback", "compressed-tensors"),
    "15c": ("a boolean as layer count ends in no traceback", "whole number for a switch"),
    "15d": ("a tokenizer larger than the vocabulary ends in no traceback", "tokenizer larger than the model"),
    "15e": ("a tokenizer without pad and eos token ends in no traceback", "no token to pad with"),
    "15f": ("an AWQ base in verify ends in no traceback", "AWQ Olmo"),
}, REFUSED)  # fmt: skip
def no_traceback(place: Place, kind: str) -> None:
    base, adapter = place.inputs / "bases" / kind, place.inputs / "adapters/plain"
    score = ("score", adapter, "--base", base, "--task", "wordnet/mind", "--limit", 50)
    for command in (("inspect", base), ("verify", adapter, "--base", base), score):
        said = place.cli(*command)
        if said.is_traceback:
            raise FaultError(f"{command[0]}: {said.last}")
    if place.cli(*score).code == 0:
        raise FaultError("scored without a word")
