"""The service against its own OpenAPI: schemathesis asks what the document allows, and what it does not."""

import hashlib
from collections import Counter
from pathlib import Path

import pytest
from cli_fixtures import build_place
from hypothesis import HealthCheck, Phase, assume, given, settings
from service_fixtures import Service, open_test_service

schemathesis = pytest.importorskip("schemathesis")
NUM_EXAMPLES = 12
SETTINGS = settings(
    max_examples=NUM_EXAMPLES, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate],
    database=None, suppress_health_check=list(HealthCheck),
)  # fmt: skip


@pytest.fixture(scope="module")
def service(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Service:
    place = build_place(tmp_path_factory.mktemp("openapi"), tiny_bert)
    (place / "tokens").write_text(f"boss admin {hashlib.sha256(b'secret').hexdigest()}\n")
    return open_test_service(place, "serve.max_wait_s=5", f"serve.tokens=file:{place / 'tokens'}")


@pytest.mark.parametrize("kind", ["positive", "negative"])
def test_no_request_breaks_the_contract(service: Service, kind: str):
    """Status, content type, headers and body are as documented, no 5xx, and nothing undocumented is let through."""
    document = schemathesis.openapi.from_asgi("/openapi.json", service.api)
    asked: Counter[str] = Counter()
    statuses: Counter[int] = Counter()
    for found in document.get_all_operations():
        operation = found.ok()
        mode = schemathesis.GenerationMode(kind)
        if kind == "negative" and not (operation.body or operation.path_parameters or operation.query):
            continue

        @SETTINGS
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case) -> None:
            assume(all(value not in ([], {}, None) for value in (case.query or {}).values()))  # no URL can say these
            if kind == "positive" and isinstance(case.body, dict):
                case.body["base"] = "v1"  # or hardly any request would get as far as a generator
                # a pattern cannot say which of Unicode's characters are visible; the description does
                case.body["prompt"] = f"x{case.body['prompt'][1:]}"
                for name in ("r", "lora_alpha", "target_modules"):  # what is valid depends on the corpus
                    case.body.pop(name, None)
            if (
                case.headers and "Idempotency-Key" in case.headers
            ):  # a key that came with another body is a 422, rightly
                case.headers["Idempotency-Key"] = f"key-{asked.total()}"
            answer = case.call_and_validate(headers={"Authorization": "Bearer secret"})
            asked[case.operation.label] += 1
            statuses[answer.status_code] += 1

        ask()
    assert not [status for status in statuses if status >= 500]
    assert asked["POST /v1/adapters"] >= NUM_EXAMPLES // 2
