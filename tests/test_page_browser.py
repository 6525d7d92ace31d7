"""The page in a real browser: prompt to adapter to download to peft; refusals, tokens and narrow screens.

`make test-browser`.
"""

import asyncio
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_fixtures import build_place
from page_fixtures import CHROMIUM, DRIVER, chromium, on_a_port
from service_fixtures import Service, open_test_service

from oral_ray.adapters.lora import load_strictly
from oral_ray.bases.loading import open_base
from oral_ray.store.releases import Release, ReleasedAdapter, ReleaseStore
from serve.schema import GenerateRequest, Made

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM.exists() and DRIVER.exists()), reason="needs chromium: apt-get install chromium chromium-driver"
    ),
]
RELEASED = "Sort matter into artifact, substance, food and object."
PROMPT = "Is it a cat or a dog?"
TASKS = 'tasks.ids=["wordnet/matter", "wordnet/mind"]'


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


@pytest.fixture(autouse=True)
def wide_and_light(browser: Any) -> None:
    """Every test starts on the same screen, without motion: a click must not meet what is still moving."""
    show(browser, 1200, "light")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Service:
    """A service whose store has one release, of an adapter from RELEASED."""
    service = open_test_service(build_place(tmp_path_factory.mktemp("page"), tiny_bert), TASKS)
    made = asyncio.run(service.generate(GenerateRequest(prompt=RELEASED, base="v1")))
    assert isinstance(made, Made)
    adapter = ReleasedAdapter(
        task="wordnet/matter", arm="reuse_new", adapter_id="wordnet-matter-1", digest=made.adapter.id, uri="", score=0.75,
        scores={"base": 0.5, "generated": 0.7, "reuse_new": 0.75},
    )  # fmt: skip
    release = Release(base="v1", base_fingerprint="f", generator="r1", name="r", adapters=(adapter,))
    ReleaseStore(service.catalog.objects).append(release)
    return service


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    with on_a_port(service.api) as address:
        yield address


class Page:
    """The page as a user sees it."""

    def __init__(self, browser: Any, url: str) -> None:
        self.browser = browser
        browser.get("about:blank")
        browser.get(url)
        self.until(lambda: self["status"].get_attribute("data-state") != "wait", "the page to load")

    def __getitem__(self, name: str) -> Any:
        return self.browser.find_element("id", name)

    def run(self, script: str) -> Any:
        return self.browser.execute_script(script)

    def until(self, holds: Any, what: str, seconds: float = 60.0) -> Any:
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.browser, seconds, 0.05).until(lambda _: holds(), f"waited for {what}")

    def ask(self, prompt: str) -> None:
        self["prompt"].clear()
        self["prompt"].send_keys(prompt)
        self["generate"].click()

    def generate(self, prompt: str) -> str:
        """Ask, wait for the card, and give the adapter's id."""
        self.ask(prompt)
        self.until(lambda: self["result"].is_displayed() and not self["progress"].is_displayed(), "a result")
        return self["result"].get_attribute("data-id")

    def text(self, name: str) -> str:
        return self[name].text


def test_a_prompt_is_generated_and_downloaded_and_peft_loads_it(browser: Any, url: str, tiny_bert: Path) -> None:
    page = Page(browser, url)
    digest = page.generate(PROMPT)
    assert page.text("result-title") == PROMPT
    assert "Generated in" in page.text("live")
    assert "Not measured" in page.text("result")
    assert digest in page.text("result")
    page["download"].click()
    folder = Path(browser.capabilities["chrome"]["userDataDir"]).parent / "downloads"
    page.until(lambda: list(folder.glob("*.zip")), "the download")
    [archive] = folder.glob("*.zip")
    with zipfile.ZipFile(archive) as packed:
        assert packed.testzip() is None
        packed.extractall(folder)
    artifact = load_strictly(open_base(str(tiny_bert)), folder / archive.stem)
    assert artifact.digest == digest
    assert artifact.provenance.prompt == PROMPT


def test_the_heat_map_has_a_cell_a_module_and_they_differ(browser: Any, url: str) -> None:
    page = Page(browser, url)
    page.generate(PROMPT)
    cells = page.run(
        "return [...document.querySelectorAll('.heat tbody td')].map(c => getComputedStyle(c).backgroundColor)"
    )
    assert len(cells) == 4  # two layers, q and v
    assert len(set(cells)) > 1


def test_a_released_adapter_shows_what_was_measured_best_first(browser: Any, url: str) -> None:
    page = Page(browser, url)
    browser.find_element("link text", "wordnet/matter").click()
    page.until(lambda: page["result"].is_displayed(), "the released adapter")
    rows = [row.text.split() for row in browser.find_elements("css selector", ".arms li")]
    assert rows == [["reuse", "new", "75.0%"], ["generated", "70.0%"], ["base", "50.0%"]]
    widths = page.run("return [...document.querySelectorAll('.bar')].map(b => getComputedStyle(b).backgroundSize)")
    assert [size.split("%")[0].split("(")[-1] for size in widths] == ["75", "70", "50"]


def test_everything_is_done_by_keyboard_and_focus_is_seen(browser: Any, url: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    page, reached = Page(browser, url), []
    for _ in range(14):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        reached.append(page.run("return document.activeElement.id || document.activeElement.className"))
        if reached[-1]:
            assert page.run("return getComputedStyle(document.activeElement).outlineStyle") != "none", reached[-1]
    for name in ("skip", "token-open", "prompt", "chip", "base", "strength", "seed", "generate"):
        assert name in reached
    page["prompt"].send_keys(PROMPT)
    ActionChains(browser).key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(Keys.CONTROL).perform()
    page.until(lambda: page["result"].is_displayed(), "a result")
    assert page.run("return document.activeElement.id") == "result"
    browser.find_element("id", "tab-0").send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert page.run("return document.activeElement.textContent") == "vLLM"
    assert "vllm serve" in page.text("snippet")


def test_an_example_fills_the_prompt(browser: Any, url: str) -> None:
    page = Page(browser, url)
    chip = browser.find_element("css selector", ".chip")
    chip.click()
    assert page["prompt"].get_attribute("value") == chip.text


def test_a_refusal_is_shown_in_the_services_words_with_its_request_id(browser: Any, url: str) -> None:
    page = Page(browser, url)
    page.ask("   x")
    page.until(lambda: page["result"].is_displayed(), "a result")
    page.run(
        "document.getElementById('base').append(new Option('v9', 'v9')); document.getElementById('base').value = 'v9'"
    )
    page["generate"].click()
    page.until(lambda: page["fault"].is_displayed(), "the refusal")
    assert "v9" in page.text("fault")
    assert "request " in page.text("fault")
    assert page["generate"].is_enabled()


@pytest.mark.parametrize("seed", [2**53 + 1, 2**63 - 1, 7])
def test_a_seed_is_sent_and_shown_to_its_last_digit(browser: Any, url: str, service: Service, seed: int) -> None:
    page = Page(browser, url)
    page["seed"].clear()
    page["seed"].send_keys(str(seed))
    digest = page.generate(PROMPT)
    assert service.catalog.describe(digest)[1].seed == seed
    assert f"seed\n{seed}\n" in page.text("result")


@pytest.mark.parametrize("seed", ["", "-1", "1.5", "1e3", str(2**63), "x"])
def test_what_is_no_seed_is_not_sent_and_the_limit_is_named(browser: Any, url: str, seed: str) -> None:
    page = Page(browser, url)
    page["seed"].clear()
    page["seed"].send_keys(seed)
    page.ask(PROMPT)
    assert str(2**63 - 1) in page["seed"].get_attribute("validationMessage")
    assert not page["result"].is_displayed() and not page["progress"].is_displayed()


def test_what_a_prompt_says_is_shown_and_never_run(browser: Any, url: str) -> None:
    page = Page(browser, url)
    hostile = "<img src=x onerror=\"document.title='owned'\"> or </script>?"
    page.generate(hostile)
    assert page.text("result-title") == hostile
    assert browser.title.startswith("oral_ray")


def test_a_stored_adapter_has_an_address(browser: Any, url: str) -> None:
    digest = Page(browser, url).generate(PROMPT)
    assert Page(browser, url).generate(PROMPT) == digest
    assert "Found in the store in" in browser.find_element("id", "live").text
    page = Page(browser, f"{url}/#{digest}")
    page.until(lambda: page["result"].is_displayed(), "the stored adapter")
    assert "Stored adapter" in page.text("result")
    gone = Page(browser, f"{url}/#{'0' * 64}")
    gone.until(lambda: gone["fault"].is_displayed(), "the refusal")
    assert "0" * 64 in gone.text("fault")


def test_a_closed_service_asks_for_the_token_and_keeps_it_in_this_tab(
    browser: Any, tmp_path: Path, tiny_bert: Path
) -> None:
    import hashlib

    tokens = tmp_path / "tokens"
    tokens.write_text(f"someone generate,read {hashlib.sha256(b's3cret').hexdigest()}\n")
    closed = open_test_service(build_place(tmp_path / "place", tiny_bert), f"serve.tokens=file:{tokens}", TASKS)
    with on_a_port(closed.api) as url:
        page = Page(browser, url)
        assert "bearer token" in page.text("fault")
        page["fault"].find_element("tag name", "button").click()
        page["token"].send_keys("s3cret\n")
        page.until(lambda: page["status"].get_attribute("data-state") == "ok", "the token to be taken")
        page.generate(PROMPT)
        assert page.run("return [localStorage.length, document.cookie]") == [0, ""]
        assert page.run("return sessionStorage.oral_token") == "s3cret"
        assert "s3cret" not in browser.page_source


@pytest.mark.parametrize(("width", "scheme"), [(320, "light"), (768, "dark"), (1280, "dark")])
def test_nothing_is_wider_than_the_screen_and_text_can_be_read(browser: Any, url: str, width: int, scheme: str) -> None:
    show(browser, width, scheme)
    page = Page(browser, url)
    page.generate(PROMPT)
    assert page.run("return document.documentElement.scrollWidth") <= width
    poor = page.run(CONTRAST)
    assert poor == [], json.dumps(poor[:5])


def test_the_browser_has_nothing_to_complain_about(browser: Any, url: str) -> None:
    browser.get_log("browser")
    Page(browser, url).generate(PROMPT)
    assert browser.get_log("browser") == []


def show(browser: Any, width: int, scheme: str, height: int = 900) -> None:
    """Set the width of the screen and the colour scheme."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    features = [
        {"name": "prefers-color-scheme", "value": scheme},
        {"name": "prefers-reduced-motion", "value": "reduce"},
    ]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


# Contrast of every visible text with the nearest opaque background, WCAG 2.1: at least 4.5, or 3 for large text.
CONTRAST = """
const rgb = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
const light = (c) => c.slice(0, 3).map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const behind = (element) => {
  for (; element; element = element.parentElement) {
    const colour = getComputedStyle(element).backgroundColor;
    if (colour.startsWith("rgb") && (rgb(colour)[3] ?? 1) === 1) return rgb(colour);
  }
  return [255, 255, 255];
};
const poor = [];
for (const element of document.querySelectorAll("body *")) {
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  if (!own || !element.checkVisibility() || element.closest(".unseen, .skip, :disabled, option, noscript")) continue;
  const style = getComputedStyle(element);
  const [a, b] = [light(rgb(style.color)), light(behind(element))].sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.7 && style.fontWeight >= 600);
  if (ratio < (large ? 3 : 4.5)) poor.push([element.tagName, element.textContent.slice(0, 40), ratio.toFixed(2)]);
}
return poor;
"""
