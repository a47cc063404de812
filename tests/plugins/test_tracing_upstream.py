"""A call of a model is a span of its caller's trace, which the upstream can join; a failed one says so."""

from __future__ import annotations

from pathlib import Path

import aiohttp
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue
from servers import free_port
from upstreams import Cut, chunk, event, scripted

from openclaw_gateway.testing import build, configuration, serving

from .test_tracing import SAMPLED, TRACE, attributes, development_key, receiving

PIPELINE = ("request_id", "tracing", "metrics", "auth", "tier", "ratelimit", "quota", "concurrency")


async def test_an_upstream_call_is_a_child_with_genai_attributes(tmp_path: Path) -> None:
    port = free_port()
    async with receiving(port) as received, scripted() as upstream:
        upstream.script = lambda r: (
            (Cut,)
            if r.json["model"] == "gone"
            else (
                *(event(chunk(word)) for word in ["a", "b", "c", "d"]),
                event(chunk(finish="stop")),
                event(chunk(usage={"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11}, choices=[])),
                event(b"[DONE]"),
            )
        )
        gateway = build(
            configuration(
                tmp_path,
                edit={
                    "gateway.pipeline": [
                        "request_id",
                        "tracing",
                        "metrics",
                        "auth",
                        "tier",
                        "ratelimit",
                        "quota",
                        "concurrency",
                    ],
                    "plugins.tracing": {"endpoint": f"http://127.0.0.1:{port}"},
                    "plugins.access_log": None,
                    "plugins.up": {"use": "providers.openai", "url": upstream.url},
                    "models.good": {"provider": "up", "name": "vendor-small", "retries": 0},
                    "models.gone": {"provider": "up", "retries": 0},
                },
            )
        )
        async with serving(gateway) as url, aiohttp.ClientSession(url) as client:
            headers = {"X-API-Key": await development_key(gateway), "traceparent": SAMPLED}
            for model, status in (("good", 200), ("gone", 502)):
                body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "hush"}]}
                async with client.post("/v1/chat/completions", json=body, headers=headers) as response:
                    await response.read()
                    assert response.status == status
        (good,) = await received.named("chat vendor-small")
        (gone,) = await received.named("chat gone")
        servers = await received.named("POST /v1/chat/completions", 2)
    said = attributes(good)
    assert said["gen_ai.operation.name"] == "chat"
    assert (said["gen_ai.provider.name"], said["gen_ai.request.model"]) == ("up", "vendor-small")
    assert good.kind == 3 and good.trace_id.hex() == TRACE
    assert {good.parent_span_id, gone.parent_span_id} == {server.span_id for server in servers}
    turns = {said["gen_ai.request.model"]: said for said in map(attributes, servers)}
    assert {name: value for name, value in turns["good"].items() if name.startswith("gen_ai.")} == {
        "gen_ai.request.model": "good",
        "gen_ai.request.stream": True,
        "gen_ai.response.model": "vendor-small",
        "gen_ai.response.finish_reasons": ArrayValue(values=[AnyValue(string_value="stop")]),
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 4,
    }
    assert not any("response" in name or "usage" in name for name in turns["gone"] if name.startswith("gen_ai."))
    assert upstream.received[0].headers["traceparent"].startswith(f"00-{TRACE}-{good.span_id.hex()}-")
    assert (attributes(gone)["error.type"], gone.status.code) == ("upstream_error", 2)
    inside = [span.name for span in received.spans if span.parent_span_id == good.span_id]
    assert inside == [], "no span a chunk"
    assert sum(span.name.startswith("chat ") for span in received.spans) == 2
    assert "hush" not in str(received.spans)
