"""Talk to the gateway over its WebSocket: `python chat.py "Good morning"`.

Needs `pip install websockets`, and in the environment OPENCLAW_URL (http://127.0.0.1:9090) and OPENCLAW_KEY. It comes
back after a cut connection, and asks for what it missed.
"""

import asyncio
import json
import os
import sys
import urllib.request
import uuid
from contextlib import suppress

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

URL = os.environ.get("OPENCLAW_URL", "http://127.0.0.1:9090")
KEY = os.environ["OPENCLAW_KEY"]


def create_session() -> str:
    request = urllib.request.Request(
        f"{URL}/api/v1/sessions", b"{}", {"X-API-Key": KEY, "Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["sessionId"]


async def ask(session: str, content: str) -> str:
    """Send one message, print the answer as it comes, and return it whole."""
    ref = str(uuid.uuid4())
    last_seq, sent = None, False
    while True:
        target = f"{URL.replace('http', 'ws', 1)}/ws?sessionId={session}"
        if last_seq is not None:
            target += f"&lastSeq={last_seq}"  # what came meanwhile is sent first
        try:
            async with connect(target, additional_headers={"X-API-Key": KEY}) as socket:
                if not sent:
                    await socket.send(json.dumps({"type": "message", "id": ref, "content": content, "stream": True}))
                    sent = True
                async for text in socket:
                    frame = json.loads(text)
                    last_seq = frame.get("seq", last_seq)
                    if frame.get("ref") != ref:
                        continue
                    if frame["type"] == "stream":
                        print(frame["chunk"], end="", flush=True)
                    elif frame["type"] == "message":
                        print()
                        return frame["content"]
                    elif frame["type"] == "error":
                        raise SystemExit(f"{frame['code']}: {frame['message']}")
        except InvalidStatus as refused:
            error = json.loads(refused.response.body)["error"]
            if refused.response.status_code not in (429, 503):
                raise SystemExit(f"{error['code']}: {error['message']}") from None
            await asyncio.sleep(float(refused.response.headers["Retry-After"]))
        except (ConnectionClosed, OSError):
            if sent and last_seq is None:
                raise SystemExit("the connection was lost before anything was answered") from None
        await asyncio.sleep(1)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(ask(create_session(), " ".join(sys.argv[1:]) or "Hello"))
