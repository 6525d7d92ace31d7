"""The page is served as files of its own: nothing inline, nothing from elsewhere, colours as in every figure."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cli_fixtures import build_place
from service_fixtures import Service, open_test_service

from oral_ray.evaluation.arms.registry import arm_of
from serve.static import FOLDER

SOURCES = {path.name: path.read_text() for path in sorted(FOLDER.iterdir())}
HTML, SCRIPTS = SOURCES["index.html"], {name: text for name, text in SOURCES.items() if name.endswith(".js")}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Service:
    return open_test_service(build_place(tmp_path_factory.mktemp("page"), tiny_bert))


def test_the_page_and_its_files_are_served_under_a_policy_that_runs_only_them(service: Service) -> None:
    async def talk(client):
        return {name: await client.get("/" if name == "index.html" else f"/page/{name}") for name in SOURCES}

    answers = service.ask(talk)
    assert {name: answer.text for name, answer in answers.items()} == SOURCES
    for answer in answers.values():
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert answers["app.js"].headers["content-type"].startswith("text/javascript")


def test_what_a_browser_has_is_not_sent_again_and_nothing_else_is_served(service: Service) -> None:
    async def talk(client):
        first = await client.get("/page/app.js")
        again = await client.get("/page/app.js", headers={"if-none-match": first.headers["etag"]})
        odd = [await client.get(f"/page/{name}") for name in ("../static.py", "%2e%2e/static.py", "app", "")]
        return first, again, odd

    first, again, odd = service.ask(talk)
    assert (first.status_code, again.status_code, again.content) == (200, 304, b"")
    assert {answer.status_code for answer in odd} == {404}


def test_the_page_needs_no_token_and_says_nothing_of_the_store(tmp_path: Path, tiny_bert: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"someone read {'0' * 64}\n")
    closed = open_test_service(build_place(tmp_path / "place", tiny_bert), f"serve.tokens=file:{tokens}")

    async def talk(client):
        return await client.get("/"), await client.get("/v1/bases")

    page, bases = closed.ask(talk)
    assert (page.status_code, bases.status_code) == (200, 401)


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    assert not re.search(r"<style|style=|\son\w+=|javascript:", HTML)
    assert re.findall(r"<script[^>]*>(.*?)</script>", HTML, re.DOTALL) == [""]
    for name, text in SOURCES.items():
        links = set(
            re.findall(r"(?:https?:)?//[\w.-]+\.\w+", re.sub(r"^\s*(?://|/\*).*", "", text, flags=re.MULTILINE))
        )
        assert links <= {"http://www.w3.org"}, name
    for text in SCRIPTS.values():
        assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|\beval\(|localStorage", text)


def test_every_element_that_a_script_names_is_in_the_page_and_every_input_has_a_label() -> None:
    ids = set(re.findall(r'\bid="([\w-]+)"', HTML))
    named = {name for text in SCRIPTS.values() for name in re.findall(r'\$\("([\w-]+)"\)', text)}
    assert named <= ids
    inputs = re.findall(r'<(?:input|select|textarea)\b[^>]*\bid="([\w-]+)"', HTML)
    assert set(inputs) <= set(re.findall(r'<label[^>]*\bfor="([\w-]+)"', HTML))


def test_an_arm_has_the_colour_that_it_has_in_every_figure() -> None:
    found = dict(re.findall(r'\[data-arm="(\w+)"\](?:, \[data-arm="\w+"\])? \{ --arm: (#\w+)', SOURCES["style.css"]))
    assert len(found) > 8
    assert found == {arm: arm_of(arm).colour for arm in found}


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_archive_that_the_page_writes_is_one_that_python_reads(tmp_path: Path) -> None:
    import zipfile

    files = {"a/weights.bin": list(range(256)) * 40, "a/é.json": [123, 125], "a/empty": []}
    code = (
        f"import {{ zip }} from {str(FOLDER / 'zip.js')!r};"
        f"const files = Object.entries({files!r}).map(([name, data]) => [name, Uint8Array.from(data)]);"
        "const blob = zip(Object.fromEntries(files));"
        "process.stdout.write(Buffer.from(await blob.arrayBuffer()));"
    )
    shutil.copy(FOLDER / "zip.js", tmp_path / "zip.mjs")
    code = code.replace(str(FOLDER / "zip.js"), str(tmp_path / "zip.mjs"))
    (tmp_path / "run.mjs").write_text(code)
    done = subprocess.run(["node", str(tmp_path / "run.mjs")], capture_output=True, check=True, timeout=60)
    (tmp_path / "x.zip").write_bytes(done.stdout)
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        assert archive.testzip() is None
        assert {name: list(archive.read(name)) for name in archive.namelist()} == files


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_page_reads_and_writes_integers_of_any_size(tmp_path: Path) -> None:
    import json

    answer = {
        "seed": 2**63 - 1,
        "prompt": 'say "1234567890123456789" \\',
        "n": [2**53 + 1, 1.5, 12, -(2**60)],
        "x": 1e300,
    }
    shutil.copy(FOLDER / "json.js", tmp_path / "json.mjs")
    code = (
        'import { decode, encode } from "./json.mjs";'
        f"const read = decode({json.dumps(json.dumps(answer))});"
        "console.log(JSON.stringify(read));"
        "console.log(encode({ prompt: read.prompt, seed: BigInt(read.seed), r: 4, names: ['q'] }));"
    )
    (tmp_path / "run.mjs").write_text(code)
    done = subprocess.run(["node", str(tmp_path / "run.mjs")], capture_output=True, check=True, timeout=60, text=True)
    read, written = map(json.loads, done.stdout.splitlines())
    assert read == answer | {"seed": str(2**63 - 1), "n": [str(2**53 + 1), 1.5, 12, str(-(2**60))]}
    assert written == {"prompt": answer["prompt"], "seed": 2**63 - 1, "r": 4, "names": ["q"]}
