"""What every provider of models must do, as a class of tests: `testing.contracts` has it with the others."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from openclaw_gateway.contracts.models import HandsOn, ModelCall, ModelProvider


class ModelProviderContract:
    """For a `ModelProvider` whose upstream answers; takes the fixture `provider`."""

    #: the name that the upstream knows the model by
    upstream_model = "m"

    def call(self, *, stream: bool) -> ModelCall:
        request: dict[str, Any] = {"model": self.upstream_model, "messages": [{"role": "user", "content": "one two"}]}
        if stream:
            request["stream"] = True
        return ModelCall(
            model=self.upstream_model,
            upstream_model=self.upstream_model,
            body=msgspec.json.encode(request),
            request=request,
            stream=stream,
            request_id=None,
            first_byte_timeout=30.0,
            idle_timeout=30.0,
            total_timeout=60.0,
        )

    async def test_a_whole_answer_has_openai_s_shape(self, provider: ModelProvider) -> None:
        answer = msgspec.json.decode(await provider.complete(self.call(stream=False)))
        assert answer["object"] == "chat.completion"
        (choice,) = answer["choices"]
        assert choice["message"]["role"] == "assistant"
        assert choice["message"]["content"]
        assert choice["finish_reason"] in ("stop", "length")

    async def test_a_stream_is_chunks_of_json_the_last_with_a_reason(self, provider: ModelProvider) -> None:
        _assert_an_answer([chunk async for chunk in provider.stream(self.call(stream=True))])

    async def test_a_stream_that_hands_on_says_the_same_so(self, provider: ModelProvider) -> None:
        stream = provider.stream(self.call(stream=True))
        chunks = [await anext(stream)]
        if not isinstance(stream, HandsOn):
            return  # it need not

        def put(chunk: bytes) -> bool:
            chunks.append(chunk)
            return len(chunks) % 2 == 0

        await stream.hand_on(put, lambda: None, lambda: asyncio.sleep(0))
        _assert_an_answer(chunks)

    async def test_a_stream_can_be_left_in_the_middle(self, provider: ModelProvider) -> None:
        stream: Any = provider.stream(self.call(stream=True))
        async for _ in stream:
            break
        async with asyncio.timeout(5):
            await stream.aclose()


def _assert_an_answer(stream: list[bytes]) -> None:
    chunks = [msgspec.json.decode(chunk) for chunk in stream]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert "".join(choice["delta"].get("content") or "" for choice in choices)
    assert [c["finish_reason"] for c in choices if c.get("finish_reason")] in (["stop"], ["length"])
