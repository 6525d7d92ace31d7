"""What several test files share: the process environment, tiny base models with a real tokenizer, a folder store."""

import contextlib
import os

os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from s3_servers import faulty_process, spoilt

from oral_ray.adapters.artifact import AdapterArtifact
from oral_ray.bench.servers import moto_process
from oral_ray.objects import FileObjects, S3Objects

WORDS = """
a an the of or and is it in to not who what which whether about decide classify classes class kind text word fits
best label answer animal plant person body act event process food object matter substance artifact state feeling
metal gold iron bread fruit stone tree dog cat bird horse big small red green cold warm runs grows eats sleeps
made used found living thing part that with for from by on definition dictionary describes model language layers
hidden size linear modules encoder causal bert llama q k v o gate up down yes no good bad
""".split()  # noqa: SIM905


@pytest.fixture
def objects(tmp_path: Path) -> FileObjects:
    """An empty folder store."""
    return FileObjects(tmp_path / "store")


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence encoder folder: BertModel, hidden 32, 2 layers, random weights."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bases") / "tiny-bert"
    tokenizer = save_tokenizer(folder, ("[CLS] $A [SEP]", [("[CLS]", 2), ("[SEP]", 3)]))
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=512, pad_token_id=0,
    )  # fmt: skip
    return save_model(BertModel, config, folder)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model folder: LlamaForCausalLM, hidden 32, 2 layers, grouped queries, random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("bases") / "tiny-llama"
    tokenizer = save_tokenizer(folder, ("[CLS] $A", [("[CLS]", 2)]))
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=512, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    return save_model(LlamaForCausalLM, config, folder)


def save_tokenizer(folder: Path, template: tuple[str, list[tuple[str, int]]]):
    """A byte-level BPE tokenizer over WORDS and all bytes, saved as transformers saves it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([word for w in WORDS for word in (w, f" {w}", f"{w.title()}")], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=template[0], special_tokens=template[1])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        bos_token="[CLS]", eos_token="[SEP]", model_max_length=512,
    )  # fmt: skip
    folder.mkdir(parents=True)
    fast.save_pretrained(folder)
    return fast


def save_model(model_class, config, folder: Path) -> Path:
    """A model of this class with random weights of a fixed seed, saved as transformers saves it."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model_class(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of an S3 server: moto in a process of its own, or what ORAL_TEST_S3_ENDPOINT names (`make test-s3`)."""
    given = os.environ.get("ORAL_TEST_S3_ENDPOINT")
    with contextlib.nullcontext(given) if given else moto_process() as endpoint:
        if not os.environ.get("ORAL_TEST_S3_FAULTS"):
            yield endpoint
            return
        with faulty_process(endpoint) as proxy:
            yield proxy
            print(f"\nspoilt calls: {spoilt(proxy)}")


@pytest.fixture
def s3_objects(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> S3Objects:
    """An empty prefix of a bucket of its own on the S3 server, named in the environment as boto3 reads it."""
    import uuid

    import boto3

    for name, value in {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": os.environ.get("ORAL_TEST_S3_KEY", "test"),
        "AWS_SECRET_ACCESS_KEY": os.environ.get("ORAL_TEST_S3_SECRET", "test"),
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return S3Objects(bucket, "some/prefix")


@pytest.fixture
def make_artifact() -> Callable[..., AdapterArtifact]:
    """Makes adapters (r=2 on q and v of a small llama) with values from a seed."""
    import torch

    from oral_ray.adapters.artifact import Provenance, build_artifact
    from oral_ray.adapters.layout import AdapterLayout
    from oral_ray.bases.spec import build_spec
    from oral_ray.config import LoraSettings

    config = {
        "model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }  # fmt: skip
    layout = AdapterLayout.of(build_spec(config, {}, "small-llama"), LoraSettings(r=2), token_dim=8)

    def make(seed: int = 0, **provenance: str) -> AdapterArtifact:
        rng = torch.Generator().manual_seed(seed)
        factors = {
            slot.module: (torch.randn(2, slot.d_in, generator=rng), torch.randn(slot.d_out, 2, generator=rng))
            for slot in layout.slots
        }
        origin = {"origin": "trained", "base": "small-llama", "base_fingerprint": "f"} | provenance
        return build_artifact(factors, layout, Provenance(**origin))

    return make


@pytest.fixture(scope="session")
def whole_path(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """The quickstart's job on tests/tiny.toml, one training worker killed on the way: (store, out, what it printed)."""
    from pipeline import finished, job, kill_one_training_worker

    folder = tmp_path_factory.mktemp("pipeline")
    process = job("quickstart", tiny_bert, str(folder / "store"), folder / "out")
    kill_one_training_worker(process, folder / "store")
    return folder / "store", folder / "out", finished(process)
