"""What gets in as an adapter: faults 5, 6, 9, and the parts of 14 and 15 that are about adapters."""

import json
from types import SimpleNamespace

import torch
from safetensors.torch import load_file

from fault_checks.bases import each, opened, values
from fault_checks.place import FaultError, Place, check, find, has, has_runs, must_say, refusal

WILD = "tests/wild/test_adapters.py::"
INTAKE = WILD + "test_an_adapter_of_the_wild_is_taken_as_peft_takes_it_or_refused_by_its_name"
EXPORT = WILD + "test_an_export_has_the_scale_that_peft_uses"
REMEDY = WILD + "test_every_refusal_is_a_sentence_with_a_remedy"
LLAMA = "sound/bases/llama"


@check("5a", "an rsLoRA is exported at alpha / sqrt(r)", EXPORT)
def rslora_exported(place: Place) -> None:
    from oral_ray.adapters.artifact import read_folder

    export = find("export_diffusers", "oral_ray.adapters.export", "oral_ray.export")
    folder = place.inputs / "adapters/rslora of a UNet"
    file = export(read_folder(folder), place.work / "out.safetensors")
    stored, made = load_file(folder / "adapter_model.safetensors"), load_file(file)
    parts = [{key.rpartition("lora_")[2][0]: tensor for key, tensor in found.items()} for found in (stored, made)]
    plain, exported = (part["B"].float() @ part["A"].float() for part in parts)
    scale = float(exported.norm() / plain.norm())
    if abs(scale - 8 / 4**0.5) > 1e-3:
        raise FaultError(f"exported at a scale of {scale:.2f}, peft uses {8 / 4**0.5:.2f}")


@check("5b", "an rsLoRA is described at alpha / sqrt(r)", WILD + "test_verify_says_what_an_adapter_is",
       WILD + "test_the_rest_of_a_taken_adapter_is_what_build_artifact_makes")  # fmt: skip
def rslora_described(place: Place) -> None:
    from oral_ray.adapters.artifact import read_folder

    about = read_folder(place.inputs / "adapters/rslora").lora
    if abs(about.lora_alpha / about.r - 8 / 4**0.5) > 1e-3:
        raise FaultError(f"described as r={about.r}, alpha={about.lora_alpha:g}, peft uses a scale of 4")


@each({
    "5c": ("a PiSSA adapter is not verified as it stands", "pissa by peft"),
    "5d": ("an OLoRA adapter is not verified as it stands", "olora by peft"),
}, INTAKE, WILD + "test_verify_as_json_says_why_it_refuses")  # fmt: skip
def merged_start(place: Place, name: str) -> None:
    adapter, base = place.inputs / "adapters" / name, place.inputs / LLAMA
    said = place.cli("verify", adapter, "--base", base)
    if said.code == 0 and "ok" in said.text:
        scored = place.cli("score", adapter, "--base", base, "--task", "wordnet/mind", "--limit", 50)
        raise FaultError(f"{said.last}; score: {scored.last}")


@check("5e", "loading an adapter strictly leaves the base as it was", INTAKE,
       WILD + "test_peft_failing_half_way_leaves_the_base_alone")  # fmt: skip
def base_stays(place: Place) -> None:
    load_strictly = find("load_strictly", "oral_ray.adapters.lora")
    for name in ("pissa by peft", "olora by peft"):
        base = opened(place.inputs / LLAMA)
        before = values(base)
        refusal(lambda base=base, name=name: load_strictly(base, place.inputs / "adapters" / name))
        off = float((values(base) - before).abs().max())
        if off:
            raise FaultError(f"{name}: the base's outputs are off by {off:.2g} afterwards")


@each({
    "6a": ("an adapter whose B is zero is said to change nothing", "zero"),
    "6b": ("an adapter that names another base is told apart", "of another base of the architecture"),
    "6c": ("an aLoRA is no plain LoRA", "alora"),
    "6d": ("target_parameters are no plain LoRA", "target_parameters"),
}, INTAKE, WILD + "test_verify_says_that_an_adapter_changes_nothing",
   WILD + "test_verify_warns_of_other_weights_and_refuses_another_architecture")  # fmt: skip
def verified_ok(place: Place, name: str) -> None:
    said = place.cli("verify", place.inputs / "adapters" / name, "--base", place.inputs / LLAMA)
    if said.code == 0 and any(line.startswith("ok:") for line in said.text.splitlines()):
        raise FaultError(said.last)


@check("9a", "a scaled candidate says its scale",
       "tests/test_evaluation_arms.py::test_a_scaled_adapter_says_its_scale")  # fmt: skip
def scaled_candidate(place: Place) -> None:
    from oral_ray.adapters.artifact import Provenance, build_artifact
    from oral_ray.adapters.layout import AdapterLayout
    from oral_ray.config import LoraSettings
    from oral_ray.objects import FileObjects
    from oral_ray.store.adapters import AdapterStore

    arms = "oral_ray.evaluation.arms.best"
    scaled = find("scaled", arms) if has(arms) else find("_stronger", "oral_ray.stages.arms")
    layout = AdapterLayout.of(opened(place.inputs / LLAMA).record.spec, LoraSettings(r=2), token_dim=32)
    factors = {slot.module: (torch.ones(2, slot.d_in), torch.ones(slot.d_out, 2)) for slot in layout.slots}
    store = AdapterStore(FileObjects(place.work / "store"))
    made = Provenance.model_validate({"origin": "trained", "base": "b", "base_fingerprint": "f"})
    digest = store.put(build_artifact(factors, layout, made))
    given = SimpleNamespace(adapters=store) if has_runs() else store
    half = scaled(given, digest, layout, 0.5)
    found = json.loads(store.get(half).files()["provenance.json"])["strength"]
    if found != 0.5:
        raise FaultError(f"scaled by 0.5, its provenance says strength={found}")


@each({
    "14i": (".bin adapters are refused as pickle", "bin only:pickle"),
    "14j": ("DoRA is called DoRA", "dora:DoRA"),
    "14k": ("modules_to_save are named", "modules_to_save:modules_to_save"),
    "14l": ("an adapter of MLX is called so", "mlx:MLX"),
}, INTAKE, REMEDY)  # fmt: skip
def true_reason(place: Place, which: str) -> None:
    name, _, word = which.partition(":")
    said = place.cli("verify", place.inputs / "adapters" / name, "--base", place.inputs / LLAMA)
    if said.code == 0:
        raise FaultError(f"taken: {said.last}")
    text = said.text.replace(str(place.inputs / "adapters" / name), "it")  # whose name holds the word
    must_say(text, word, never=("incomplete", "publish it again", "train it again", "rank_pattern, "))


@each({
    "14m": ("targets by a regular expression are taken", "regex"),
    "14n": ("exclude_modules are taken", "exclude_modules"),
    "14o": ("names with language_model. are taken", "names with language_model"),
    "14p": ("names with .default are taken", "names with .default"),
    "14q": ("names with one model. lost are taken", "names with one model lost"),
    "14r": ("a foreign provenance.json is passed over", "provenance of in-toto"),
    "14s": ("a pattern of ranks is taken", "rank_pattern"),
}, INTAKE)  # fmt: skip
def good_ones(place: Place, name: str) -> None:
    said = place.cli("verify", place.inputs / "adapters" / name, "--base", place.inputs / LLAMA)
    if said.code or said.is_traceback:
        raise FaultError(said.last)


@check("15g", "an FP8 adapter ends in no traceback", INTAKE)
def fp8_adapter(place: Place) -> None:
    for name in ("fp8 e4m3", "fp8 e5m2"):
        adapter = place.inputs / "adapters" / name
        where = (adapter, "--base", place.inputs / LLAMA)
        for command in (("verify", *where), ("score", *where, "--task", "wordnet/mind", "--limit", 20)):
            said = place.cli(*command)
            if said.is_traceback:
                raise FaultError(f"{command[0]} of {name}: {said.last}")
