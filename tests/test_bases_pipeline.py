"""A diffusers pipeline is a base: its denoiser is the layout, its fingerprint covers every component that draws, and what
is missing, damaged or brings code along is refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pipeline_fixtures import make_pipeline
from safetensors.torch import load_file, save_file

from oral_ray.bases import loading
from oral_ray.bases.assembly import load_pipeline
from oral_ray.bases.catalog import describe_base, discover
from oral_ray.bases.loading import import_base, load_base, load_folder, open_base
from oral_ray.bases.probes import weight_probes
from oral_ray.bases.sources import local_path
from oral_ray.bases.spec import read_spec
from oral_ray.errors import BaseModelError
from oral_ray.objects import FileObjects, S3Objects

UNET, VAE = "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pipeline(tmp_path_factory.mktemp("pipelines") / "sd")


@pytest.fixture
def pipeline(whole: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(whole, tmp_path / "store/bases/sd"))


def fingerprint_of(folder: Path) -> str:
    return describe_base(FileObjects(folder), "", "sd").fingerprint


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def test_the_layout_of_a_pipeline_is_that_of_its_denoiser(whole: Path):
    record = describe_base(FileObjects(whole), "", "sd")
    assert record.spec == read_spec(FileObjects(whole)) and record.spec.kind == "unet"
    alone = read_spec(FileObjects(whole / "unet"))
    assert record.spec.digest == alone.digest
    probes = weight_probes(FileObjects(whole), "", record.spec, ("q",), 4)
    assert probes and all(probe.shape == (4, 4) for probe in probes.values())


def test_a_pipeline_in_a_store_is_found_and_loaded_in_the_dtype_that_is_asked_for(pipeline: Path):
    [record], skipped = discover(FileObjects(pipeline.parents[1]), "bases", 0.0)
    assert not skipped
    base = load_base(record, dtype="bfloat16")
    assert base.model.dtype == torch.bfloat16 and not base.model.training
    assert base.tokenizer.components["vae"].dtype == torch.float32
    assert sorted(base.tokenizer.components) == ["scheduler", "text_encoder", "tokenizer", "vae"]


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("unet/config.json", {"dropout": 0.1}),
        ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}),
        ("vae/config.json", {"scaling_factor": 0.5}),
        ("text_encoder/config.json", {"hidden_act": "gelu"}),
        ("tokenizer/tokenizer_config.json", {"model_max_length": 10}),
        ("model_index.json", {"force_zeros_for_empty_prompt": True}),
    ],
)
def test_every_component_that_changes_what_is_drawn_changes_the_fingerprint(pipeline: Path, file: str, changes: dict):
    before = fingerprint_of(pipeline)
    edit(pipeline / file, **changes)
    assert fingerprint_of(pipeline) != before


@pytest.mark.parametrize("file", [UNET, VAE, "text_encoder/model.safetensors"])
def test_weights_of_every_component_change_the_fingerprint(pipeline: Path, file: str):
    before = fingerprint_of(pipeline)

    def move(tensors: dict[str, torch.Tensor]) -> None:
        name = sorted(tensors)[0]
        tensors[name] = tensors[name] + 1

    edit_tensors(pipeline / file, move)
    assert fingerprint_of(pipeline) != before


def test_a_safety_checker_and_other_files_are_neither_fingerprinted_nor_loaded(pipeline: Path, caplog):
    before = fingerprint_of(pipeline)
    (pipeline / "safety_checker").mkdir()
    (pipeline / "safety_checker/pytorch_model.bin").write_bytes(b"a pickle")
    edit(
        pipeline / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"], requires_safety_checker=True,
    )  # fmt: skip
    (pipeline / "unet/modeling.py").write_text("raise SystemExit")
    (pipeline / "unet/diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    with caplog.at_level("INFO"):
        assert fingerprint_of(pipeline) == before
    assert "safety_checker is left out, it blackens images" in caplog.text
    base = open_base(str(pipeline))
    drawn = base.tokenizer.draw(base.model, ["a dog"], [0], num_steps=2)
    assert drawn[0].size == (16, 16)


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def not_named(name: str) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "model_index.json", **{name: [None, None]})


def setting(file: str, **changes: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder / file, **changes)


def tensors(file: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder / file, lambda found: void(change(found)))


def void(_: object) -> None:
    return None


def pickled(folder: Path) -> None:
    (folder / UNET).rename(folder / "unet/diffusion_pytorch_model.bin")


def variant(folder: Path) -> None:
    (folder / UNET).rename(folder / "unet/diffusion_pytorch_model.fp16.safetensors")


def truncated(folder: Path) -> None:
    (folder / VAE).write_bytes((folder / VAE).read_bytes()[:-10])


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no vae": (without("vae"), "vae is missing, and model_index.json names it"),
    "vae not named": (not_named("vae"), "names no vae, without which no image is read or drawn"),
    "no unet": (not_named("unet"), "names scheduler, text_encoder, tokenizer, vae; a pipeline has one denoiser"),
    "no scheduler": (without("scheduler/scheduler_config.json"), "scheduler is missing, and model_index.json names it"),
    "no vocabulary": (without("tokenizer/tokenizer.json"), "tokenizer has no tokenizer"),
    "no weights": (without(UNET), "unet has no weights; add diffusion_pytorch_model.safetensors"),
    "pickle": (pickled, "unet has pickle weights only .diffusion_pytorch_model.bin., and pickle files are never read"),
    "variant": (variant, "under another name only .diffusion_pytorch_model.fp16.safetensors"),
    "truncated": (truncated, "truncated or padded"),
    "missing key": (tensors(UNET, lambda t: t.pop("conv_in.weight")), "unet lacks 'conv_in.weight'"),
    "unexpected key": (
        tensors(VAE, lambda t: t.update(extra=torch.zeros(2))), "vae holds 'extra', which a AutoencoderKL",
    ),
    "text encoder": (
        tensors("text_encoder/model.safetensors", lambda t: t.pop(sorted(t)[0])), "text_encoder lacks",
    ),
    "config and weights": (
        setting("unet/config.json", cross_attention_dim=24), r"is \(8, 16\), config.json says \(8, 24\)",
    ),
    "another class": (setting("unet/config.json", _class_name="UNet2DModel"), "unet/config.json is of a UNet2DModel"),
    "own code": (
        setting("model_index.json", unet=["my_unet", "MyUNet"]), r"names \['my_unet', 'MyUNet'\], which is no class of",
    ),
    "own pipeline": (setting("model_index.json", _class_name=["pipeline", "Mine"]), "names no class of diffusers"),
    "another pipeline": (
        setting("model_index.json", _class_name="FluxPipeline"), "is a FluxPipeline; adapters are trained with",
    ),
    "a path": (setting("model_index.json", **{"../x": ["diffusers", "AutoencoderKL"]}), "which is no class of"),
    "integers": (
        tensors(VAE, lambda t: t.update({"quant_conv.bias": t["quant_conv.bias"].int()})), "stored as I32",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_no_whole_pipeline_is_refused_by_name_and_so_is_loading_it(pipeline: Path, damage: str):
    harm, reason = DAMAGES[damage]
    harm(pipeline)
    with pytest.raises(BaseModelError, match=reason):
        describe_base(FileObjects(pipeline), "", "sd")
    with pytest.raises(BaseModelError, match=reason):
        open_base(str(pipeline))
    records, [skipped] = discover(FileObjects(pipeline.parents[1]), "bases", 0.0)
    assert not records and skipped.id == "sd"


def not_finite(folder: Path) -> None:
    edit_tensors(folder / VAE, lambda found: void(found["quant_conv.bias"].fill_(torch.nan)))


def another_text_encoder(folder: Path) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    wider = {"hidden_size": 24, "projection_dim": 24, "num_attention_heads": 3}
    config = CLIPTextConfig(**json.loads((folder / "text_encoder/config.json").read_text()) | wider)
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (not_finite, "vae: quant_conv.bias holds values that are not finite"),
        (another_text_encoder, "its denoiser does not read what its text encoder makes"),
    ],
)
def test_what_only_the_weights_or_a_first_caption_tell_is_refused_when_a_pipeline_is_loaded(
    pipeline: Path, harm: Callable[[Path], None], reason: str
):
    harm(pipeline)
    describe_base(FileObjects(pipeline), "", "sd")
    with pytest.raises(BaseModelError, match=reason):
        open_base(str(pipeline))


def test_a_pipeline_that_was_replaced_is_not_loaded_for_its_record(pipeline: Path):
    record = describe_base(FileObjects(pipeline), "", "sd")
    edit(pipeline / "scheduler/scheduler_config.json", prediction_type="v_prediction")
    with pytest.raises(BaseModelError, match="was replaced"):
        load_base(record.model_copy(update={"uri": str(pipeline)}))


@pytest.mark.parametrize("file", [VAE, "scheduler/scheduler_config.json", "tokenizer/tokenizer.json"])
def test_a_component_that_changes_while_a_pipeline_is_read_is_named(
    pipeline: Path, file: str, monkeypatch: pytest.MonkeyPatch
):
    def loaded_and_touched(folder: Path) -> tuple[torch.nn.Module, object]:
        made = load_pipeline(folder)
        (folder / file).write_bytes((folder / file).read_bytes())
        return made

    monkeypatch.setattr(loading, "load_pipeline", loaded_and_touched)
    with pytest.raises(BaseModelError, match=rf"changed while it was read \('{file}'\)"):
        open_base(str(pipeline))


def test_a_pipeline_is_no_base_of_another_kind(pipeline: Path, tiny_bert: Path):
    record = describe_base(FileObjects(pipeline), "", "sd").model_copy(update={"uri": str(pipeline)})
    with pytest.raises(BaseModelError, match="is a diffusers pipeline and cannot be loaded as one of kind 'encoder'"):
        load_base(record, kind="encoder")
    with pytest.raises(BaseModelError, match="is no diffusers pipeline and cannot be loaded as one of kind 'unet'"):
        load_folder(tiny_bert, "unet")


def test_a_pipeline_is_imported_with_the_files_that_count_and_read_back_from_s3(pipeline: Path, s3_objects: S3Objects):
    (pipeline / "unet/notes.txt").write_text("not a part of it")
    import_base(str(pipeline), s3_objects, "bases/sd/")
    keys = {info.key.removeprefix("bases/sd/") for info in s3_objects.list("bases/sd/")}
    assert "unet/notes.txt" not in keys and {"model_index.json", UNET, VAE} <= keys
    [record], skipped = discover(s3_objects, "bases", 0.0)
    assert not skipped and record.fingerprint == fingerprint_of(pipeline)
    with local_path(record.uri) as folder:
        assert fingerprint_of(folder) == record.fingerprint


def test_names_of_attention_in_old_autoencoders_are_known(pipeline: Path):
    new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(found: dict[str, torch.Tensor]) -> None:
        for name in [*found]:
            for now, before in new.items():
                if f".{now}." in name:
                    found[name.replace(f".{now}.", f".{before}.")] = found.pop(name)

    before = open_base(str(pipeline)).tokenizer.components["vae"].state_dict()
    edit_tensors(pipeline / VAE, rename)
    after = open_base(str(pipeline)).tokenizer.components["vae"].state_dict()
    assert any(".query." in name for name in load_file(pipeline / VAE))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
