"""A task of one's own: a folder is one task under one id, read once where a job starts and from the store elsewhere."""

import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from factory_fixtures import base_of, toy_task

from oral_ray.bases.catalog import BaseRecord
from oral_ray.cli import main
from oral_ray.config import Config, build_config
from oral_ray.errors import ConfigError, StoreError, TaskError
from oral_ray.evaluation import cells
from oral_ray.evaluation.cells import Cell, Unadapted
from oral_ray.objects import open_objects
from oral_ray.pipeline import corpus, shards
from oral_ray.pipeline.answers import check_answers
from oral_ray.pipeline.material import auxiliary_tasks
from oral_ray.pipeline.own_tasks import check_unseen, resolve_tasks
from oral_ray.pipeline.run import Run, begin_run, open_run
from oral_ray.store.fsck import find_faults
from oral_ray.store.shards import ShardManifest
from oral_ray.tasks import Task, load_task, subject
from oral_ray.tasks.folder import load_task_folder, task_name

SPLITS = ("train", "validation", "test")


def write(folder: Path, header: str = 'labels = ["animal", "plant"]', **splits: bytes) -> Path:
    """The toy task as a folder; splits can be given as bytes."""
    task = toy_task()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "task.toml").write_text(header, encoding="utf-8")
    for split in SPLITS:
        lines = "".join(json.dumps(example.model_dump()) + "\n" for example in getattr(task, split))
        (folder / f"{split}.jsonl").write_bytes(splits.get(split, lines.encode()))
    return folder


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which commands are typed."""
    folder = tmp_path / "shell"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Config]:
    """A configuration of these `tasks`, over a store of the test's own."""

    def configured(**tasks: object) -> Config:
        tree = {"store": {"uri": str(tmp_path / "store")}, "tasks": tasks, "cluster": {"address": "none"}}
        return build_config(tree | {"corpus": {"steps": 2, "keep_last": 1}})

    return configured


def kept(config: Config) -> list[str]:
    root = Path(config.store.uri)
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*.json"))


def resolved(config: Config, keep: bool = True) -> Config:
    return resolve_tasks(config, open_objects(config.store), keep)


def unseen_checked(config: Config) -> None:
    check_unseen(config, open_run(config).tasks)


def over(config: Config, record: BaseRecord) -> Run:
    return open_run(config).with_bases({record.id: record})


def trained(run: Run, task_id: str) -> list[corpus.CorpusEntry]:
    """The entry of a training on the run's base."""
    return corpus.train_runs(run, [corpus.plan_run(run, task_id, list(run.bases.values()), 0)])


def refusal(call: Callable[[], object], error: type[Exception] = TaskError) -> str:
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


# Names


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("spam", "spam"), ("Spam Mails", "spam-mails"), ("spam_mails.v2", "spam-mails-v2"), (".spam", "spam"),
        ("Café", "cafe"), ("İstanbul", "istanbul"), ("2024", "2024"), ("a--b", "a-b"), ("x" * 40, "x" * 40),
        ("spam/.", "spam"), ("spam/../ham", "ham"), ("spam/", "spam"),
    ],
)  # fmt: skip
def test_the_name_of_a_folder_becomes_one_that_every_engine_takes(folder: str, name: str):
    assert task_name(Path("somewhere") / folder) == f"folder/{name}"


@pytest.mark.parametrize("folder", ["größe", "邮件", "---", "x" * 41, "spam\udcf6"])
def test_a_name_that_would_lose_letters_or_is_too_long_is_refused_with_a_way_out(folder: str):
    assert 'set name = "..." in its task.toml' in refusal(lambda: task_name(Path(folder)))


def test_a_task_may_name_itself_and_a_name_that_does_not_fit_is_refused(tmp_path: Path):
    header = 'labels = ["animal", "plant"]\nname = {}'
    assert load_task_folder(write(tmp_path / "邮件", header.format('"mails-2"'))).id == "folder/mails-2"
    for name in ("", "Mails", "a/b", "-a", "a-", "a b", "x" * 41, "a\\n"):
        with pytest.raises(TaskError, match=r"name .* in task\.toml must be small letters"):
            load_task_folder(write(tmp_path / "mine", header.format(f'"{name}"')))


# What a folder must be


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (r'{"text": "a \ud800", "label": "plant"}', "'text' holds half a character"),
        (r'{"text": "a", "text": "b", "label": "plant"}', "its keys are 'text', 'text', 'label'"),
        ('{"text": " ", "label": "plant"}', "'text' is empty"),
        ('{"text": "a", "label": ""}', "'label' is empty"),
        ('{"text": "a", "label": 1}', "'label' is no string (put it in quotes)"),
        ('{"text": "a", "label": "Plant"}', "label 'Plant' is none of ('animal', 'plant')"),
        ('{"text": "a", "label": "plant", "id": "7"}', "its keys are 'text', 'label', 'id'"),
        ("[" * 100_000, "nested too deeply"),
        ("null", "it is 'null'"),
        ("NaN", "it is 'NaN'"),
        ("", "the line is empty; remove it"),
    ],
)
def test_a_line_that_is_no_example_is_named_by_its_number_and_what_is_wrong(tmp_path: Path, line: str, reason: str):
    data = f'{{"text": "a new text", "label": "plant"}}\n{line}\n{{"text": "another", "label": "animal"}}\n'
    message = refusal(lambda: load_task_folder(write(tmp_path / "mine", test=data.encode())))
    assert f"{tmp_path / 'mine' / 'test.jsonl'}:2: " in message
    assert reason in message and len(message) < 400


def test_all_faults_of_a_folder_are_named_at_once_and_many_are_counted(tmp_path: Path):
    leaked = json.dumps(toy_task().train[0].model_dump()).encode()
    folder = write(tmp_path / "mine", validation=b"", test=leaked + b"\n{}" * 40)
    (folder / "train.jsonl").write_bytes(leaked)
    message = refusal(lambda: load_task_folder(folder))
    assert f"{folder / 'validation.jsonl'}: has no examples" in message
    assert f"{folder / 'test.jsonl'}:1: the text 'red dog runs' is in {folder / 'train.jsonl'}:1 too" in message
    assert f"{folder / 'test.jsonl'}:2: not " in message and "and 32 more" in message
    (folder / "validation.jsonl").unlink()
    assert "mine' has no validation.jsonl; " in refusal(lambda: load_task_folder(folder))


LEAKED = "a café by the sea"


@pytest.mark.parametrize("twin", [f"{LEAKED} ", f"\t{LEAKED}", unicodedata.normalize("NFD", LEAKED)])
def test_a_text_that_reads_the_same_in_another_split_is_leaked(tmp_path: Path, twin: str):
    one, other = ({"text": text, "label": "plant"} for text in (LEAKED, twin))
    folder = write(tmp_path / "mine", train=json.dumps(one).encode(), test=json.dumps(other).encode())
    message = refusal(lambda: load_task_folder(folder))
    assert f"{folder / 'test.jsonl'}:1: the text " in message and f"is in {folder / 'train.jsonl'}:1 too" in message
    with pytest.raises(ValueError, match="is in the splits train and test; a leaked split"):
        Task.model_validate(toy_task().model_dump() | {"train": [one], "test": [other]})


def test_a_line_of_many_megabytes_is_refused_before_it_is_parsed(tmp_path: Path):
    line = b'{"text": "' + b"[" * 3_000_000 + b'", "label": "plant"}'
    message = refusal(lambda: load_task_folder(write(tmp_path / "mine", test=line)))
    assert f"{tmp_path / 'mine' / 'test.jsonl'}:1: has 3,000,030 characters, at most 1,000,000 are read" in message


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ('labels = ["a", "a"]', "label 'a' stands twice"),
        ('labels = ["a", " b"]', "label ' b' is empty or has spaces around it"),
        ('labels = ["a", ""]', "label '' is empty"),
        ('labels = ["animal", "plant"]\nprompts = [" "]', "prompt ' ' is empty"),
        ('labels = ["animal", "plant"]\ntext = ""', "text '' is empty"),
        ('labels = ["animal", 3]', "labels.1: Input should be a valid string"),
        ('labels = ["animal", "plant"]\nprompt = "x"', "prompt: Extra inputs are not permitted (its keys are labels, text"),
        ("x = " + "[" * 5000, "is not valid TOML"),
    ],
)  # fmt: skip
def test_a_header_that_is_none_is_named_with_what_is_wrong(tmp_path: Path, header: str, reason: str):
    message = refusal(lambda: load_task_folder(write(tmp_path / "mine", header)))
    assert f"{tmp_path / 'mine' / 'task.toml'}" in message and reason in message
    assert "pydantic" not in message


def test_files_of_an_editor_that_marks_utf8_are_read_and_utf16_is_refused(tmp_path: Path):
    lines = '{"text": "grün", "label": "plant"}\r\n{"text": "Hund", "label": "animal"}\r\n'
    folder = write(tmp_path / "mine", train=lines.encode("utf-8-sig"))
    (folder / "task.toml").write_bytes('labels = ["animal", "plant"]'.encode("utf-8-sig"))
    assert [example.text for example in load_task_folder(folder).train] == ["grün", "Hund"]
    write(folder, train=lines.encode("utf-16"))
    assert f"{folder / 'train.jsonl'} is UTF-16; save it as utf-8" in refusal(lambda: load_task_folder(folder))
    write(folder, train=lines.encode("latin-1"))
    assert f"{folder / 'train.jsonl'}:1: the byte 0xfc is no utf-8" in refusal(lambda: load_task_folder(folder))


def test_a_copy_under_another_name_is_not_unseen_and_other_labels_of_the_same_texts_are(
    shell: Path, config: Callable[..., Config]
):
    write(shell / "spam")
    swapped = {
        split: (shell / "spam" / f"{split}.jsonl").read_bytes().replace(b"animal", b"x").replace(b"plant", b"animal")
        for split in SPLITS
    }
    write(shell / "copy", 'labels = ["plant", "animal"]\nprompts = ["Which?"]')
    write(shell / "other", 'labels = ["x", "animal"]', **swapped)
    settings = resolved(config(ids=["spam"], further=["copy", "other"], unseen=["other", "instructed/copy"]))
    assert "'instructed/folder/copy' has the examples of 'folder/spam'" in refusal(
        lambda: unseen_checked(settings), ConfigError
    )
    unseen_checked(resolved(config(ids=["spam"], unseen=["other"])))
    phase = {"training": {"functional": {"steps": 1}}}
    tree = resolved(config(ids=["other"], further=["copy", "kind/bird"], unseen=["spam"])).model_dump(mode="json")
    assert auxiliary_tasks(open_run(build_config(tree | phase))) == ["kind/bird"]


# One id, from the shell to a worker


def test_one_folder_is_one_task_however_it_is_spelled(shell: Path, config: Callable[..., Config]):
    folder = write(shell / "Spam Mails")
    spelled = ["Spam Mails", "./Spam Mails", str(folder), "../shell/Spam Mails/", "instructed/./Spam Mails"]
    settings = resolved(config(ids=["wordnet/mind", *spelled], unseen=[f"few-shot/{folder}", "kind/bird"]))
    assert settings.tasks.ids == ("wordnet/mind", "folder/spam-mails", "instructed/folder/spam-mails")
    assert settings.tasks.unseen == ("few-shot/folder/spam-mails", "kind/bird")
    assert list(settings.tasks.folders) == ["folder/spam-mails"]
    assert resolved(settings) == settings
    assert {subject(task_id) for task_id in settings.tasks.ids[1:]} == {subject(settings.tasks.unseen[0])}
    assert "'few-shot/folder/spam-mails' has the examples of 'instructed/folder/spam-mails'" in refusal(
        lambda: unseen_checked(settings), ConfigError
    )


@pytest.mark.parametrize("variant", ["", "instructed/", "few-shot/", "shuffled/", "shuffled/instructed/"])
def test_a_worker_knows_the_task_by_its_id_without_the_folder_and_in_any_place(
    shell: Path, config: Callable[..., Config], variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write(shell / "spam")
    here = load_task(f"{variant}./spam")
    settings = resolved(config(ids=[f"{variant}spam"]))
    shutil.rmtree(shell / "spam")
    monkeypatch.chdir(tmp_path)
    [task_id] = build_config(settings.model_dump(mode="json")).tasks.ids  # as it is sent to training workers
    assert open_run(settings).task(task_id) == here
    assert open_run(settings).task(task_id).id == task_id == f"{variant}folder/spam"
    assert resolved(settings) == settings  # a run repeated from its summary


def test_an_id_that_no_folder_gave_is_refused_and_says_what_there_is(shell: Path, config: Callable[..., Config]):
    assert "give the folder's path, from here ./folder/spam" in refusal(lambda: resolved(config(ids=["folder/spam"])))
    assert "begin with resolve_tasks" in refusal(lambda: open_run(config(ids=["./spam"])).task("./spam"))
    assert f"no such folder (looked in {shell})" in refusal(lambda: resolved(config(ids=["my/spam"])))
    assert "no such folder" in refusal(lambda: resolved(config(ids=["~nobody-here/spam"])))
    assert "cannot be read: File name too long" in refusal(lambda: resolved(config(ids=["x" * 5000])))
    (shell / "empty").mkdir()
    assert "the folder has no task.toml" in refusal(lambda: resolved(config(ids=["empty"])))
    for task_id in ("wordnet/mater", "bigbench/none", "instructed/kind/bord"):
        assert "unknown" in refusal(lambda t=task_id: resolved(config(further=[t])))


def test_a_submitted_job_says_where_it_looked(
    tmp_path: Path, config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
):
    copy = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    assert "--working-dir" in refusal(lambda: resolved(config(ids=["data/spam"])))
    assert "--working-dir" not in refusal(lambda: resolved(config(ids=["/data/spam"])))
    write(copy / "data" / "spam")
    assert resolved(config(ids=["data/spam"])).tasks.ids == ("folder/spam",)


def test_two_folders_of_one_name_are_refused_by_both_and_so_is_one_folder_under_two(
    shell: Path, config: Callable[..., Config]
):
    one, two = write(shell / "a" / "spam"), write(shell / "b" / "Spam")
    message = refusal(lambda: resolved(config(ids=["a/spam", "b/Spam"])))
    assert str(one) in message and str(two) in message and "both called 'folder/spam'" in message
    write(two, 'labels = ["animal", "plant"]\nname = "other"')
    assert resolved(config(ids=["a/spam", "b/Spam"])).tasks.ids == ("folder/spam", "folder/other")
    (shell / "mails").symlink_to(one)
    assert "named twice, as 'folder/spam' and as 'folder/mails'" in refusal(
        lambda: resolved(config(ids=["a/spam", "mails"]))
    )


def test_everything_wrong_is_said_before_anything_is_written(shell: Path, config: Callable[..., Config]):
    write(shell / "good")
    write(shell / "one", test=b"{}\n")
    write(shell / "two", 'labels = ["x"]')
    message = refusal(lambda: resolved(config(ids=["good", "one"], further=["two"], unseen=["three"])))
    assert all(part in message for part in ("one/test.jsonl:1", "two/task.toml", "unknown task 'three'"))
    assert kept(config()) == []
    assert resolved(config(ids=["good"]), keep=False).tasks.ids == ("folder/good",)
    assert kept(config()) == []


def test_a_wording_that_no_generator_reads_is_refused_before_anything_is_written(
    shell: Path, config: Callable[..., Config]
):
    write(shell / "mine", f'labels = ["animal", "plant"]\nprompts = ["{"very " * 5000}long"]')
    assert "characters, at most" in refusal(lambda: resolved(config(ids=["mine"])))
    assert kept(config()) == []


def test_other_data_is_another_task_whose_adapters_alone_are_trained_again(
    shell: Path, config: Callable[..., Config], tiny_bert: Path
):
    record = base_of(tiny_bert).record

    def recipes() -> list[str]:
        settings = resolved(config(ids=["spam", "ham"]))
        return [corpus.plan_run(open_run(settings), task_id, [record], 0).recipe for task_id in settings.tasks.ids]

    write(shell / "ham")
    folder = write(shell / "spam")
    before = recipes()
    assert recipes() == before
    with (folder / "test.jsonl").open("a") as file:
        file.write('{"text": "one more", "label": "plant"}\n')
    after = recipes()
    assert after[0] != before[0] and after[1] == before[1]
    assert len(kept(config())) == 3, "both versions of the one, and the other"


def test_what_is_damaged_in_the_store_is_refused_and_mended_from_the_folder(shell: Path, config: Callable[..., Config]):
    write(shell / "spam")
    settings = resolved(config(ids=["spam"]))
    [key] = kept(settings)
    assert key == f"tasks/spam/{settings.tasks.folders['folder/spam']}.json"
    path = Path(settings.store.uri) / key
    whole = path.read_bytes()
    for damage in (b"", whole[:-9], whole.replace(b"red dog runs", b"red dog flew")):
        path.write_bytes(damage)
        assert f"{key} in " in refusal(lambda: resolved(settings), StoreError)
        assert [fault for fault in find_faults(open_objects(settings.store)) if key in fault]
    assert resolved(config(ids=["spam"])) == settings and path.read_bytes() == whole
    assert not list(find_faults(open_objects(settings.store)))
    path.unlink()
    assert "is not in" in refusal(lambda: resolved(settings), StoreError)


def test_a_task_of_ones_own_is_trained_and_scored_where_its_folder_is_not(
    shell: Path, config: Callable[..., Config], tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write(shell / "spam")
    settings = resolved(config(ids=["spam"]))
    monkeypatch.chdir(tmp_path)
    record = base_of(tiny_bert).record
    [entry] = trained(over(settings, record), "folder/spam")
    cell = Cell(
        base=record.id, dtype="float32", task="folder/spam", digests=(Unadapted.BASE, entry.digests[-1]), split="test",
        limit=8,
    )  # fmt: skip
    answers = cells.score_all(over(settings, record), [cell])
    assert {len(values) for values in answers[record.id, "folder/spam"].values.values()} == {8}


def test_labels_that_a_base_cannot_tell_apart_are_named_before_anything_is_trained(
    shell: Path, config: Callable[..., Config], tiny_bert: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
):
    write(shell / "mine", 'labels = ["dog", "dog house"]', **dict.fromkeys(SPLITS, b""))
    for number, split in enumerate(SPLITS):
        (shell / "mine" / f"{split}.jsonl").write_text(f'{{"text": "text {number}", "label": "dog"}}\n')
    settings = resolved(config(ids=["mine"]))
    encoder, causal = base_of(tiny_bert).record, base_of(tiny_llama).record
    check_answers(open_run(settings), [(("folder/mine",), [encoder])])
    monkeypatch.setattr("oral_ray.pipeline.run.run_tasks", None)
    message = refusal(lambda: trained(over(settings, causal), "folder/mine"))
    assert f"task 'folder/mine' on base {causal.id!r}: labels ('dog', 'dog house') share a first token" in message


def test_another_number_of_prompts_makes_other_shards(
    shell: Path, config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
):
    write(shell / "spam")
    monkeypatch.setattr(shards, "plan_learned", lambda run: [])
    asked: list[str] = []

    def there(objects: object, recipe: str) -> ShardManifest:
        asked.append(recipe)
        return ShardManifest.model_construct(fingerprint=recipe)

    monkeypatch.setattr(shards, "read_manifest", there)
    header = 'labels = ["animal", "plant"]\nprompts = ["Animal or plant?"]'
    for ids, num_prompts in ((["spam"], 4), (["spam"], 8), (["spam"], 400), (["spam"], 500), (["wordnet/mind"], 4)):
        shards.write_shards(begin_run(config(ids=ids, num_prompts=num_prompts)), {})
    write(shell / "spam", header)
    shards.write_shards(begin_run(config(ids=["spam"], num_prompts=4)), {})
    assert asked[2] == asked[3], "there are no more than all"
    assert len(set(asked)) == len(asked) - 1


def test_score_takes_a_folder_and_says_the_id_that_a_run_uses(
    shell: Path, tiny_bert: Path, capsys: pytest.CaptureFixture[str], config: Callable[..., Config]
):
    write(shell / "spam")
    settings = resolved(config(ids=["spam"]))
    record = base_of(tiny_bert).record
    [entry] = trained(over(settings, record), "folder/spam")
    folder = Path(settings.store.uri) / "adapters" / entry.digests[-1]
    assert main(["score", str(folder), "--base", str(tiny_bert), "--task", "./spam", "--limit", "5"]) == 0
    assert json.loads(capsys.readouterr().out)["task"] == "folder/spam"
    assert main(["score", str(folder), "--base", str(tiny_bert), "--task", "./ham"]) == 2
    assert "no such folder" in capsys.readouterr().err
