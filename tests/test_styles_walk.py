"""Styles of images on versions of a text-to-image base go the whole way: training, generation, scoring, table and gate."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false
# (the stubs of pandas type every selection as a union that nothing can be done with)

from pathlib import Path

import pytest
import torch
from nightly_fixtures import tiny_config, trained_here
from pipeline_fixtures import image_folder, make_pipeline
from safetensors.torch import load_file, save_file
from test_one_file import shards_here  # noqa: F401 (a fixture)

from oral_ray.config import Config
from oral_ray.evaluation import evaluate
from oral_ray.evaluation.report.tables import arm_table
from oral_ray.nightly import regenerate
from oral_ray.objects import open_objects
from oral_ray.pipeline.walk import train_seeds
from oral_ray.store.adapters import AdapterStore

ARMS = (
    "base", "trained", "reuse_old", "reuse_new", "joint", "mean", "multitask", "regression", "generated", "wrong_prompt",
)  # fmt: skip
UNET = "unet/diffusion_pytorch_model.safetensors"


def moved(folder: Path, seed: int) -> Path:
    """A version of a pipeline: another one's files, every weight of the denoiser shaken a little."""
    make_pipeline(folder, "v_prediction")
    rng = torch.Generator().manual_seed(seed)
    weights = {name: t + 1e-3 * torch.randn(t.shape, generator=rng) for name, t in load_file(folder / UNET).items()}
    save_file(weights, folder / UNET, metadata={"format": "pt"})
    return folder


@pytest.fixture
def config(shards_here: None, tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> Config:  # noqa: F811
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    styles = [str(image_folder(tmp_path / name, size=size)) for name, size in (("stripes", 16), ("dots", 24))]
    (tmp_path / "dots/task.toml").write_text('style = "dotted pictures"')
    for i in range(3):
        moved(tmp_path / "store/bases" / f"sd-t{i}", i)
    versions = ", ".join(
        f'{{id = "sd-t{i}", origin = {{kind = "landed"}}, seen = {str(i < 2).lower()}}}' for i in range(3)
    )
    return tiny_config(
        tmp_path / "store", tiny_bert, f"out={tmp_path / 'out'}", f"bases.versions=[{versions}]",
        f"tasks.ids={styles}".replace("'", '"'), "tasks.further=[]", "tasks.unseen=[]",
        'lora.target_modules=["to_q", "to_k", "to_v", "to_out.0"]', f'condition.text_encoder="{tiny_bert}"',
        f"evaluation.arms={list(ARMS)}".replace("'", '"'), "evaluation.step_curve=[1]", 'evaluation.bases=["sd-t2"]',
        "corpus.steps=8", "corpus.learning_rate=2e-2", "corpus.keep_last=1", 'training.engine={kind="torch"}',
        "training.num_workers=1", "training.steps=5", "training.functional.steps=2", 'regenerate.bases=["sd-t2"]',
    )  # fmt: skip


def test_styles_on_versions_of_a_pipeline_go_the_whole_way(config: Config):
    trained = trained_here(config)
    scores = evaluate.evaluate_arms(trained, train_seeds(trained))
    assert set(scores["metric"]) == {"denoising_loss"} and set(scores["task"]) == {"folder/stripes", "folder/dots"}
    assert set(scores["arm"]) == set(ARMS)
    table = arm_table(Path(config.out), 20).set_index("arm")
    assert table.loc["trained", "mean"] < table.loc["base", "mean"], "training makes the error smaller"
    summary = regenerate.regenerate(trained)
    assert not summary.failed and len(summary.outcomes) == 2
    for outcome in summary.outcomes:
        assert outcome.decision.reason.startswith("best on validation in denoising_loss (lower is better)")
        assert not outcome.digest or AdapterStore(open_objects(config.store)).is_whole(outcome.digest)
