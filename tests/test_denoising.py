"""A denoiser is trained on images of a style, scored by its error at fixed noise, and draws the same through diffusers."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factory_fixtures import shaken_network, small_spec, stats_of
from pipeline_fixtures import (
    CAPTIONS,
    image_folder,
    make_pipeline,
    make_pixart_pipeline,
    make_sd3_pipeline,
    make_xl_pipeline,
)

from oral_ray.adapters.artifact import AdapterArtifact, read_folder, write_folder
from oral_ray.adapters.export import FILE_NAME, export_diffusers
from oral_ray.adapters.intake import take_in
from oral_ray.adapters.layout import AdapterLayout
from oral_ray.adapters.lora import (
    attached,
    difference_from_peft,
    initial_factors,
    load_by_peft,
    load_strictly,
    train_adapter,
)
from oral_ray.bases.loading import LoadedBase, open_base
from oral_ray.bases.probes import weight_probes
from oral_ray.config import ConditionConfig, CorpusConfig, LoraSettings, SamplingConfig
from oral_ray.errors import BaseModelError, TaskError
from oral_ray.evaluation.scoring import example_values, majority_values, metric_of
from oral_ray.generation.condition import Condition
from oral_ray.generation.factory import AdapterFactory
from oral_ray.generator.condition import ConditionEncoder, fit_probe_stats
from oral_ray.generator.model import Generator
from oral_ray.modalities import metric_named
from oral_ray.modalities.denoising import DENOISING_LOSS, DenoisingReader
from oral_ray.modalities.noising import schedule_of
from oral_ray.modalities.pictures import png
from oral_ray.objects import FileObjects
from oral_ray.tasks import Task, load_task
from oral_ray.tasks import read_folder as read_task

ATTENTION = LoraSettings(r=4, lora_alpha=8, target_modules=("to_q", "to_k", "to_v", "to_out.0"))
TRAINING = CorpusConfig(steps=60, batch_size=4, learning_rate=2e-2, keep_last=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pipeline(tmp_path_factory.mktemp("denoising") / "sd", "v_prediction")


@pytest.fixture(scope="module")
def base(folder: Path) -> LoadedBase:
    return open_base(str(folder))


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return read_task(str(image_folder(tmp_path_factory.mktemp("tasks") / "stripes")))


@pytest.fixture(scope="module")
def layout(base: LoadedBase) -> AdapterLayout:
    return AdapterLayout.of(base.record.spec, ATTENTION, token_dim=16)


@pytest.fixture(scope="module")
def adapter(base: LoadedBase, task: Task, layout: AdapterLayout) -> AdapterArtifact:
    return train_adapter([base], task, layout, TRAINING, seed=0)[-1]


def reader_of(base: LoadedBase) -> DenoisingReader:
    reader = base.reader(())
    assert isinstance(reader, DenoisingReader)
    return reader


def pixels(base: LoadedBase, model: torch.nn.Module, seeds: tuple[int, ...] = (0, 1)) -> np.ndarray:
    images = base.tokenizer.draw(model, CAPTIONS[: len(seeds)], seeds, num_steps=4, guidance_scale=3.0)
    return np.stack([np.asarray(image) for image in images]).astype(int)


def test_an_adapter_of_a_style_lowers_the_error_on_its_held_out_captions(
    base: LoadedBase, task: Task, adapter: AdapterArtifact
):
    with_adapter, bare = (np.array(values) for values in example_values(base, task, [adapter, None], "test", 100))
    metric = metric_of(base, task)
    assert metric == metric_named("denoising_loss") == DENOISING_LOSS
    assert len(bare) == len(task.test) and majority_values(metric, task, "test", 100) == []
    assert metric.better(metric.figure(with_adapter), metric.figure(bare), by=0.05)


def test_training_on_one_image_learns_it(base: LoadedBase, task: Task, layout: AdapterLayout):
    one = task.model_copy(update={"train": task.train[:1], "validation": task.train[:1]})
    longer = TRAINING.model_copy(update={"steps": 3 * TRAINING.steps})
    [learnt] = train_adapter([base], one, layout, longer, seed=0)
    [with_adapter], [bare] = example_values(base, one, [learnt, None], "train", 1)
    assert isinstance(with_adapter, float) and isinstance(bare, float) and with_adapter < 0.9 * bare


def test_training_again_gives_the_same_adapter_and_leaves_the_base_as_it_was(
    base: LoadedBase, task: Task, layout: AdapterLayout, adapter: AdapterArtifact
):
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    short = TRAINING.model_copy(update={"steps": 3})
    first, second = (train_adapter([base], task, layout, short, seed=0)[-1] for _ in range(2))
    assert first.digest == second.digest != adapter.digest
    assert all(torch.equal(value, before[name]) for name, value in base.model.state_dict().items())


def test_values_do_not_depend_on_the_batch_that_an_example_is_in(base: LoadedBase, task: Task):
    reader = reader_of(base)
    with torch.no_grad():
        together = reader.values(base.model, reader.read(task.train[:4]))
        alone = [reader.values(base.model, reader.read([example]))[0] for example in reversed(task.train[:4])]
    assert together == pytest.approx(alone[::-1], rel=1e-4) and len({round(float(value), 6) for value in together}) == 4  # type: ignore[arg-type]


def test_the_loss_is_drawn_anew_for_every_batch_and_alike_for_every_training(base: LoadedBase, task: Task):
    first, second = reader_of(base), reader_of(base)
    batch = first.read(task.train[:2])
    losses = [float(first.loss(base.model, batch)) for _ in range(3)]
    assert len(set(losses)) == 3
    assert [float(second.loss(base.model, batch)) for _ in range(3)] == losses


def test_images_and_captions_go_through_the_pipeline_once(
    base: LoadedBase, task: Task, monkeypatch: pytest.MonkeyPatch
):
    reader = reader_of(base)
    first = reader.read(task.train)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("encoded a second time")

    for name in ("vae", "text_encoder"):
        monkeypatch.setattr(base.tokenizer.components[name], "forward", never)
    monkeypatch.setattr(base.tokenizer.components["vae"], "encode", never)
    again = reader_of(base).read(task.train)
    assert all(torch.equal(again.tokens[name], value) for name, value in first.tokens.items())


def test_the_autoencoder_reads_an_image_as_diffusers_would(base: LoadedBase, task: Task):
    from PIL import Image

    example = task.train[0]
    assert example.image is not None
    pipeline = base.tokenizer.pipeline(base.model)
    values = pipeline.image_processor.preprocess(Image.open(example.image.path))
    with torch.no_grad():
        wanted = pipeline.vae.encode(values).latent_dist.mode() * pipeline.vae.config.scaling_factor
    assert torch.allclose(reader_of(base).read([example]).tokens["latents"], wanted, atol=1e-5)


def test_an_image_that_was_changed_or_lost_is_named(base: LoadedBase, tmp_path: Path):
    task = read_task(str(image_folder(tmp_path / "dots", size=20)))
    first, second = task.train[:2]
    assert first.image and second.image
    Path(first.image.path).write_bytes(b"other")
    Path(second.image.path).unlink()
    for example, reason in ((first, "was changed since the task was read"), (second, "cannot be read: No such file")):
        with pytest.raises(TaskError, match=reason):
            reader_of(base).read([example])


def test_a_task_of_texts_is_refused(base: LoadedBase):
    with pytest.raises(TaskError, match="answers with no label"):
        base.reader(("a", "b"))
    words = load_task("wordnet/matter")
    with pytest.raises(TaskError, match="has no image, and this base draws images"):
        reader_of(base).read(words.train[:1])


def test_the_exported_file_draws_through_diffusers_what_the_adapter_draws(
    folder: Path, base: LoadedBase, adapter: AdapterArtifact, tmp_path: Path
):
    from diffusers import StableDiffusionPipeline
    from safetensors import safe_open

    export_diffusers(adapter, tmp_path / FILE_NAME)
    with safe_open(tmp_path / FILE_NAME, "pt") as file:
        keys = set(file.keys())
    assert "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0.lora_A.weight" in keys
    theirs = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    theirs.load_lora_weights(tmp_path, weight_name=FILE_NAME)
    theirs.set_progress_bar_config(disable=True)
    drawn = theirs(
        prompt=list(CAPTIONS[:2]), generator=[torch.Generator().manual_seed(seed) for seed in (0, 1)],
        num_inference_steps=4, guidance_scale=3.0,
    ).images  # fmt: skip
    with attached(base, adapter) as model:
        ours = pixels(base, model)
    assert np.abs(np.stack([np.asarray(image) for image in drawn]) - ours).max() <= 1
    assert np.abs(ours - pixels(base, base.model)).max() > 3, "the adapter changes what is drawn"


@pytest.mark.parametrize(
    ("make", "lacks", "options"),
    [
        (make_xl_pipeline, {}, {}),
        (make_sd3_pipeline, {"text_encoder_3": None, "tokenizer_3": None}, {}),
        (make_pixart_pipeline, {}, {"use_resolution_binning": False, "clean_caption": False}),
    ],
)
def test_pipelines_of_every_family_are_trained_and_draw_what_diffusers_draws(
    make: Callable[[Path], Path], lacks: dict[str, Any], options: dict[str, Any], task: Task, tmp_path: Path
):
    from diffusers import DiffusionPipeline

    base = open_base(str(make(tmp_path / "base")))
    layout = AdapterLayout.of(base.record.spec, ATTENTION, token_dim=16)
    [adapter] = train_adapter([base], task, layout, TRAINING.model_copy(update={"steps": 20}), seed=0)
    with_adapter, bare = (np.mean(values) for values in example_values(base, task, [adapter, None], "test", 100))
    assert with_adapter < bare
    theirs: Any = DiffusionPipeline.from_pretrained(tmp_path / "base", **lacks)
    theirs.set_progress_bar_config(disable=True)
    if hasattr(theirs, "load_lora_weights"):
        export_diffusers(adapter, tmp_path / FILE_NAME)
        theirs.load_lora_weights(tmp_path, weight_name=FILE_NAME)
    else:  # diffusers has no loader of LoRAs for PixArt, whose adapters peft loads
        write_folder(adapter, tmp_path / "adapter")
        theirs.transformer = load_by_peft(base, tmp_path / "adapter").get_base_model()  # type: ignore[operator]
    [drawn] = theirs(
        prompt=CAPTIONS[0], generator=torch.Generator().manual_seed(0), num_inference_steps=4, guidance_scale=3.0,
        **options,
    ).images  # fmt: skip
    with attached(base, adapter) as model:
        [ours] = pixels(base, model, (0,))
    assert np.abs(np.asarray(drawn) - ours).max() <= 1


def test_an_adapter_that_is_zero_draws_and_scores_as_the_base(base: LoadedBase, task: Task, layout: AdapterLayout):
    nothing = train_adapter(
        [base], task, layout, TRAINING.model_copy(update={"steps": 1, "learning_rate": 1e-30}), seed=0
    )[-1]
    zero = dataclasses.replace(
        nothing, tensors={name: value * ("lora_A" in name) for name, value in nothing.tensors.items()}
    )
    with attached(base, zero) as model:
        assert np.array_equal(pixels(base, model), pixels(base, base.model))
    [with_zero, bare] = example_values(base, task, [zero, None], "test", 4)
    assert with_zero == pytest.approx(bare, abs=1e-6)
    assert initial_factors(layout, 0).keys() == {slot.module for slot in layout.slots}


def test_one_seed_draws_one_image_whatever_is_drawn_beside_it(base: LoadedBase, tmp_path: Path):
    both, [alone] = pixels(base, base.model), pixels(base, base.model, (0,))
    assert np.abs(both[0] - alone).max() <= 1 and np.abs(both[0] - both[1]).max() > 1
    [image] = base.tokenizer.draw(base.model, ["a dog"], [3], num_steps=2)
    assert png(image).startswith(b"\x89PNG")


def test_peft_loads_a_saved_adapter_and_computes_the_same(base: LoadedBase, adapter: AdapterArtifact, tmp_path: Path):
    write_folder(adapter, tmp_path / "adapter")
    artifact = load_strictly(base, tmp_path / "adapter")
    assert artifact.digest == read_folder(tmp_path / "adapter").digest == adapter.digest
    difference, size = difference_from_peft(base, take_in(base, artifact), tmp_path / "adapter")
    assert difference < 1e-6 < size


def test_the_factory_generates_adapters_of_a_denoiser(
    folder: Path, base: LoadedBase, layout: AdapterLayout, tiny_bert: Path
):
    encoder = ConditionEncoder(ConditionConfig(text_encoder=str(tiny_bert)))
    spec = small_spec(
        token_dim=16, text_dim=encoder.text_dim, model_dim=encoder.model_dim, condition=encoder.config,
        text_encoder_fingerprint=encoder.fingerprint,
    )  # fmt: skip
    record = base.record
    probes = weight_probes(FileObjects(folder), "", record.spec, ("q", "v"), 4)
    stats = fit_probe_stats(
        [(record.spec.digest, {name: probe * scale for name, probe in probes.items()}) for scale in (1.0, 0.8, 1.3)], 4
    )
    generator = Generator(spec, shaken_network(spec), stats_of(layout), stats)
    factory = AdapterFactory(generator, encoder, SamplingConfig(num_steps=2), lambda _: probes)
    [made] = factory.generate([Condition("Draw striped pictures.", record, ATTENTION, 0)])
    with attached(base, made.artifact()) as model:
        assert np.abs(pixels(base, model) - pixels(base, base.model)).max() > 0


@pytest.mark.parametrize("target", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "DDPMScheduler"])
def test_noise_and_targets_are_those_of_the_scheduler(scheduler: str, target: str):
    import diffusers

    made = getattr(diffusers, scheduler)(
        prediction_type=target, beta_schedule="scaled_linear", rescale_betas_zero_snr=True
    )
    x0, noise = torch.randn(2, 5, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    noised = schedule_of(made).at(torch.tensor([0.0, 0.25, 0.5, 0.75, 0.9999]))
    times = noised.times_B
    assert times.tolist() == [0, 250, 500, 750, 999]
    wanted = {"epsilon": noise, "sample": x0, "v_prediction": made.get_velocity(x0, noise, times)}[target]
    assert torch.allclose(noised.image(x0, noise), made.add_noise(x0, noise, times), atol=1e-6)
    assert torch.allclose(noised.target(x0, noise), wanted, atol=1e-6)


@pytest.mark.parametrize("scheduler", ["PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_schedulers_that_only_sample_otherwise_train_alike(scheduler: str):
    import diffusers

    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    u_B = torch.tensor([0.1, 0.6])
    one = schedule_of(getattr(diffusers, scheduler)(**betas)).at(u_B)
    other = schedule_of(diffusers.DDPMScheduler(**betas)).at(u_B)
    assert torch.equal(one.times_B, other.times_B) and torch.equal(one.signal, other.signal)


def test_a_flow_is_noised_and_asked_for_as_its_scheduler_says():
    from diffusers import FlowMatchEulerDiscreteScheduler

    made = FlowMatchEulerDiscreteScheduler(shift=3.0)
    x0, noise = torch.randn(2, 1, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    noised = schedule_of(made).at(made.sigmas[400:401] / (3.0 - 2.0 * made.sigmas[400:401]))
    assert noised.times_B.item() == pytest.approx(made.timesteps[400].item(), rel=1e-5)
    assert torch.allclose(noised.image(x0, noise), made.scale_noise(x0, made.timesteps[400:401], noise), atol=1e-5)
    assert torch.allclose(noised.target(x0, noise), noise - x0)


def test_a_scheduler_whose_target_is_not_known_is_refused_by_name():
    from diffusers import EDMEulerScheduler

    with pytest.raises(
        BaseModelError, match="a EDMEulerScheduler with prediction_type 'epsilon', has no training target"
    ):
        schedule_of(EDMEulerScheduler())
