"""The HTTP metrics are right, and no client can add a series."""

import asyncio
import random
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from openclaw_gateway.api import TRACE_ID
from openclaw_gateway.exchange import Outcome
from openclaw_gateway.testing import build, configuration, serving
from openclaw_plugins.metrics import Metrics

from .operators_kit import small_gateway

_HTTP = ("http_requests_total", "http_request_duration_seconds", "http_request_errors_total")


class Spoken:
    """As much of an exchange as the metrics look at."""

    def __init__(self, method: str, route: str, kind: str = "http", trace: str | None = None) -> None:
        self.kind = kind
        self.method = method
        self.route = SimpleNamespace(route=SimpleNamespace(path=route))
        self._trace = trace

    def get(self, fact: Any) -> Any:
        return self._trace if fact is TRACE_ID else None


def metrics(**config: Any) -> tuple[Metrics, CollectorRegistry]:
    registry = CollectorRegistry()
    host: Any = SimpleNamespace(registry=registry, gateway=SimpleNamespace(version="1.2.3", generation=4))
    return Metrics(Metrics.Config(**config), host), registry


def outcome(status: int, code: str | None = None, seconds: float = 0.02) -> Outcome:
    ended = Outcome()
    ended.status, ended.error_code, ended.seconds = status, code, seconds
    return ended


def end(plugin: Metrics, x: Any, ended: Outcome) -> None:
    plugin.on_complete(x, ended)


def series(registry: CollectorRegistry) -> int:
    return sum(len(family.samples) for family in registry.collect() if family.name.startswith("http_"))


def test_an_exchange_is_counted_and_timed() -> None:
    plugin, registry = metrics()
    for _ in range(3):
        end(plugin, Spoken("POST", "/v1/chat/completions"), outcome(429, "RATE_LIMIT_EXCEEDED", 0.3))
    labels = {"method": "POST", "route": "/v1/chat/completions"}
    value = registry.get_sample_value
    assert value("http_requests_total", {**labels, "status_code": "429"}) == 3
    assert value("http_request_errors_total", {**labels, "error_type": "RATE_LIMIT_EXCEEDED"}) == 3
    assert value("http_request_duration_seconds_sum", {**labels, "status_code": "429"}) == pytest.approx(0.9)
    assert value("http_request_duration_seconds_bucket", {**labels, "status_code": "429", "le": "0.25"}) == 0
    assert value("http_request_duration_seconds_bucket", {**labels, "status_code": "429", "le": "0.5"}) == 3
    assert value("config_generation") == 4


def test_a_good_answer_is_no_error_and_a_nameless_error_is_named_by_its_status() -> None:
    plugin, registry = metrics()
    end(plugin, Spoken("GET", "/x"), outcome(200))
    end(plugin, Spoken("GET", "/x"), outcome(404))
    value = registry.get_sample_value
    assert value("http_request_errors_total", {"method": "GET", "route": "/x", "error_type": "HTTP_404"}) == 1
    assert len([s for f in registry.collect() for s in f.samples if s.name == "http_request_errors_total"]) == 1


def test_of_websockets_only_a_refused_handshake_counts() -> None:
    plugin, registry = metrics()
    end(plugin, Spoken("WEBSOCKET", "/ws", "websocket"), outcome(101, seconds=900))
    end(plugin, Spoken("MESSAGE", "/ws", "message"), outcome(0))
    assert series(registry) == 0
    end(plugin, Spoken("WEBSOCKET", "/ws", "websocket"), outcome(401, "UNAUTHORIZED"))
    labels = {"method": "WEBSOCKET", "route": "/ws", "status_code": "401"}
    assert registry.get_sample_value("http_requests_total", labels) == 1


def test_hostile_methods_and_codes_share_one_series() -> None:
    plugin, registry = metrics()
    rng = random.Random(1)
    for i in range(10_000):
        word = "".join(rng.choice("ABCDEFGHIJ") for _ in range(12))
        end(plugin, Spoken(word, "(unmatched)"), outcome(400, f"not a code {i}"))
    counted = {tuple(s.labels.values()) for f in registry.collect() for s in f.samples if s.name in _HTTP}
    assert counted == {("_OTHER", "(unmatched)", "400"), ("_OTHER", "(unmatched)", "_OTHER")}
    assert len(plugin._failed) + len(plugin._ended) < 10


def test_well_formed_codes_are_bounded_too() -> None:
    plugin, registry = metrics()
    for i in range(5_000):
        end(plugin, Spoken("GET", "/x"), outcome(502, f"CODE_{i}"))
    codes = [s for f in registry.collect() for s in f.samples if s.name == "http_request_errors_total"]
    assert len(codes) <= 65
    assert sum(s.value for s in codes) == 5_000


def test_beyond_the_cap_all_is_counted_in_one_series() -> None:
    plugin, registry = metrics(max_series=10)
    for i in range(500):
        end(plugin, Spoken("GET", f"/route/{i}"), outcome(500, "INTERNAL_SERVER_ERROR"))
    counts = [s.value for f in registry.collect() for s in f.samples if s.name == "http_requests_total"]
    assert len(counts) == 11
    assert sum(counts) == 500


def test_an_exemplar_names_the_trace_where_it_is_asked_for() -> None:
    plugin, registry = metrics(exemplars=True)
    end(plugin, Spoken("GET", "/x", trace="4bf92f3577b34da6a3ce929d0e0e4736"), outcome(200))
    found = [s.exemplar for f in registry.collect() for s in f.samples if s.exemplar]
    assert found[0].labels == {"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736"}


def test_an_exchange_costs_some_microseconds() -> None:
    plugin, _ = metrics()
    x, ended = Spoken("GET", "/x"), outcome(200)
    best = 1.0
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(2_000):
            end(plugin, x, ended)
        best = min(best, (time.perf_counter() - began) / 2_000)
    assert best < 25e-6  # about 3 µs on an idle machine


async def test_scrape_in_both_forms_and_by_head(tmp_path: Path) -> None:
    async with serving(small_gateway(tmp_path)) as url, aiohttp.ClientSession() as client:
        await client.get(f"{url}/health/live")
        async with client.get(f"{url}/metrics") as response:
            assert response.status == 200
            assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
            families = {family.name: family for family in parse_text(await response.text())}
        labels = {"method": "GET", "route": "/health/live", "status_code": "200"}
        assert [s.value for s in families["http_requests"].samples if s.labels == labels] == [1]
        assert {"process_cpu_seconds", "process_resident_memory_bytes", "process_start_time_seconds"} <= set(families)
        assert {"build_info", "config_generation", "log_lines_dropped"} <= set(families)
        async with client.get(f"{url}/metrics", headers={"Accept": "application/openmetrics-text"}) as response:
            assert response.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
            text = await response.text()
            assert text.endswith("# EOF\n")
            list(parse_openmetrics(text))
        async with client.head(f"{url}/metrics") as response:
            assert (response.status, await response.read()) == (200, b"")


async def test_an_accept_header_is_never_repeated(tmp_path: Path) -> None:
    accept = "application/openmetrics-text; version=9.9.9hostile; escaping=allow-utf-8"
    async with (
        serving(small_gateway(tmp_path)) as url,
        aiohttp.request("GET", f"{url}/metrics", headers={"Accept": accept}) as response,
    ):
        assert response.status == 200 and "hostile" not in response.headers["content-type"]


async def test_two_thousand_hostile_requests_add_no_series(tmp_path: Path) -> None:
    gateway = small_gateway(tmp_path)
    methods = ("GET", "PUT", "DELETE", "POST", "PATCH", "PROPFIND", "LOCK")
    async with serving(gateway) as url, aiohttp.ClientSession() as client:

        async def flood(mark: str, count: int) -> None:
            for start in range(0, count, 50):
                await asyncio.gather(
                    *(
                        client.request(methods[i % len(methods)], f"{url}/{mark}/{i}/{'x' * (i % 90)}?q={i}")
                        for i in range(start, start + 50)
                    )
                )

        await flood("first", 50)
        before = series(gateway.registry)
        await flood("second", 2_000)
        assert series(gateway.registry) == before
        counted = gateway.registry.get_sample_value(
            "http_requests_total", {"method": "GET", "route": "(unmatched)", "status_code": "404"}
        )
        assert counted is not None and counted > 280


async def test_scrapes_while_requests_run_are_whole_and_hold_nobody_up(tmp_path: Path) -> None:
    gateway = small_gateway(tmp_path)
    async with serving(gateway) as url, aiohttp.ClientSession() as client:

        async def scrape() -> float:
            async with client.get(f"{url}/metrics") as response:
                families = {family.name: family for family in parse_text(await response.text())}
            samples = families["http_requests"].samples if "http_requests" in families else []
            return sum(s.value for s in samples if s.labels.get("route") == "/health/live")

        async def ask() -> None:
            async with client.get(f"{url}/health/live") as response:
                assert response.status == 200

        seen = []
        for _ in range(10):
            *_, value = await asyncio.gather(*(ask() for _ in range(20)), scrape(), scrape(), scrape())
            seen.append(value)
        assert seen == sorted(seen)
        assert await scrape() == 200


async def test_organisations_have_series_only_where_asked_for_and_only_so_many(tmp_path: Path) -> None:
    edit = {"plugins.metrics.organizations": 3}
    gateway = build(configuration(tmp_path, edit=edit))
    async with serving(gateway) as url, aiohttp.ClientSession(url) as client:
        for number in range(10):
            issued = await gateway.plugin("api_key").create(organization=f"o{number}", user="u", tier="teams")
            for path in ("/v1/models", "/v1/models/none"):
                async with client.get(path, headers={"X-API-Key": issued.key}):
                    pass
        async with client.get("/v1/models"):
            pass  # of nobody
        async with client.get("/metrics") as answer:
            text = await answer.text()
    value = gateway.registry.get_sample_value
    seen = {
        s.labels["organization"] for f in parse_text(text) for s in f.samples if s.name == "organization_requests_total"
    }
    assert seen == {"o0", "o1", "o2", "(other)"}
    for organization, times in (("o0", 1.0), ("(other)", 7.0)):
        for status in ("2xx", "4xx"):
            labels = {"organization": organization, "status_class": status}
            assert value("organization_requests_total", labels) == times


def test_without_being_asked_no_metric_knows_an_organisation(tmp_path: Path) -> None:
    registry = build(configuration(tmp_path)).registry
    assert not [f.name for f in registry.collect() for s in f.samples if "organization" in s.labels]
