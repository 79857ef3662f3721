"""Fuzz the API with schemathesis: requests generated from /openapi.json, single and along its links."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed
from hypothesis import settings as hypothesis_settings
from hypothesis.errors import FlakyStrategyDefinition, Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig
from schemathesis.engine.errors import is_inconsistent_replay

from server.settings import Settings
from tests.server.keyed import add_key
from tests.server.routes.test_hostile import served

CONFIG = {
    "seed": 4,
    "checks": {
        # A spec that fits the schema may still be impossible, e.g. of a dataset that is not there.
        "positive_data_acceptance": {"expected-statuses": ["2xx", 304, 400, 404, 406, 409, 413, 416, 422]},
    },
}
LONGEST_WAIT_S = 0.05


@pytest.fixture
def schema(tmp_path: Path) -> Iterator[Any]:
    """The schema of a server with API keys, and a key of scope admin."""
    key = add_key(Settings(data_dir=tmp_path / "data"), "admin")
    config = SchemathesisConfig.from_dict({**CONFIG, "auth": {"openapi": {"api_key": {"bearer": key}}}})
    with served(tmp_path / "data", requests_per_minute=1_000_000) as server:
        yield schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json", config=config)


def _settings(examples: int, **more: Any) -> hypothesis_settings:
    return hypothesis_settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        **more,
    )


def _shortened(case: Any) -> Any:
    """Set `wait` to 0 in long polls."""
    wait = (case.query or {}).get("wait")
    if isinstance(wait, float | int) and LONGEST_WAIT_S < wait <= 30:
        case.query["wait"] = LONGEST_WAIT_S
    return case


def _fuzz(schema: Any, examples: int, chains: int, steps: int) -> Counter[str]:
    """Send single requests to each operation, then chains along the links; count them by status."""
    sent: Counter[str] = Counter()
    failures: list[str] = []

    def send(case: Any) -> Any:
        response = _shortened(case).call(timeout=30)
        sent[f"{response.status_code}"] += 1
        return response

    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @seed(CONFIG["seed"])
            @_settings(examples)
            @given(case=operation.as_strategy(generation_mode=mode))
            def alone(case: Any) -> None:
                case.validate_response(send(case))

            try:
                alone()
            except Unsatisfiable:
                assert mode is GenerationMode.NEGATIVE, operation.label  # where nothing is asked for, nothing can be wrong
            except BaseExceptionGroup as error:
                failures.append(f"{operation.label}, {mode.value}:\n" + "\n".join(str(each) for each in error.exceptions))
    failures += _failures_of_chains(schema, chains, steps, sent)
    assert failures == [], "\n\n".join(failures)
    return sent


def _failures_of_chains(schema: Any, chains: int, steps: int, sent: Counter[str]) -> list[str]:
    machine = schema.as_state_machine()
    failures: list[str] = []
    begun = 0

    class Chain(machine):  # type: ignore[misc, valid-type]
        def setup(self) -> None:
            nonlocal begun
            begun += 1
            super().setup()

        def call(self, case: Any, **kwargs: Any) -> Any:
            sent["in chains"] += 1
            return super().call(_shortened(case), **kwargs)

        def validate_response(self, response: Any, case: Any, **kwargs: Any) -> None:
            try:
                super().validate_response(response, case, **kwargs)
            except BaseException as error:
                failures.append(f"chain: {error}")
                raise

    while begun < chains and not failures:
        before = begun
        try:
            Chain.run(settings=_settings(chains - begun, stateful_step_count=steps, report_multiple_bugs=False))
        except FlakyStrategyDefinition:
            # The same steps led elsewhere than before: what a server answers depends on what it was asked. Hypothesis, which
            # wants tests without a memory, ends there; schemathesis's own runner then begins anew, as this does.
            assert begun > before
        except (AssertionError, BaseExceptionGroup) as error:  # Hypothesis's other word for that, or a failure, which is noted
            if not (failures or is_inconsistent_replay(error)):
                raise
        else:
            break
    return failures


def test_single_requests_match_openapi(schema: Any) -> None:
    sent = _fuzz(schema, examples=6, chains=8, steps=8)
    assert sent["in chains"] > 8


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_request_chains_match_openapi(schema: Any) -> None:
    started = time.monotonic()
    sent = _fuzz(schema, examples=220, chains=150, steps=12)
    print(f"{sum(sent.values())} cases in {time.monotonic() - started:.0f} s: {dict(sent)}")
    assert sum(sent.values()) >= 5000
