"""Run as a program in a network namespace of its own: serves, asks a model, prints the answers and every packet seen.

The namespace has a loopback interface and nothing else. What goes anywhere is routed to it, so that an attempt to reach
the outside or to look a name up is a packet that is seen, and not an error that somebody may have swallowed.
"""

from __future__ import annotations

import fcntl
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

COMMAND = (sys.executable, "-c", "from openclaw_gateway.cli import main; main()", "serve", "--port", "18080")
_SIOCSIFFLAGS, _SIOCADDRT, _IFF_UP_RUNNING = 0x8914, 0x890B, 0x41
_RTF_UP, _ETH_P_ALL = 0x1, 0x3
#: Linux's `struct rtentry` on 64 bits: three addresses, flags, and further down the name of the device
_RTENTRY = "=8x16s16s16sH6x8x8xh6xP8x8x8x"


def prepare() -> None:
    """Raise the loopback interface and make it the way to everywhere."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP_RUNNING))
        import ctypes

        device = ctypes.create_string_buffer(b"lo")
        anywhere = struct.pack("=H14x", socket.AF_INET)
        route = bytearray(120)
        route[8:24] = route[24:40] = route[40:56] = anywhere
        route[56:58] = struct.pack("=H", _RTF_UP)
        route[88:96] = struct.pack("=Q", ctypes.addressof(device))
        fcntl.ioctl(control, _SIOCADDRT, bytes(route))


class Packets:
    """Everything that passes the interface: destination, and both ports."""

    def __init__(self) -> None:
        self.seen: set[tuple[str, int, int]] = set()
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
        self._socket.bind(("lo", 0))
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            packet = self._socket.recv(65_535)
            if packet[0] >> 4 == 4:
                start, target = 4 * (packet[0] & 15), socket.inet_ntop(socket.AF_INET, packet[16:20])
                protocol = packet[9]
            else:
                start, target = 40, socket.inet_ntop(socket.AF_INET6, packet[24:40])
                protocol = packet[6]
            if protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
                self.seen.add((target, *struct.unpack("!HH", packet[start : start + 4])))


def attempt() -> None:
    """What must not happen, to show that it would be seen."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as outside:
        outside.setblocking(False)
        outside.connect_ex(("192.0.2.1", 443))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as names:
        names.sendto(b"?", ("192.0.2.53", 53))


def ask(url: str, key: str, body: Any = None) -> str:
    request = urllib.request.Request(url, json.dumps(body).encode() if body is not None else None)
    request.add_header("Authorization", f"Bearer {key}")
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(answer.read().decode())


def serve_and_ask(model: str) -> dict[str, Any]:
    with Path("log").open("w") as log:
        process = subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        try:
            banner = ""
            while "try it" not in banner:
                line = process.stdout.readline()
                assert line, Path("log").read_text()
                banner += line
            found = re.search(r"ocg_\w+", banner)
            assert found, banner
            url, key = "http://127.0.0.1:18080", found.group()
            chat = {"model": model, "max_tokens": 8, "messages": [{"role": "user", "content": "hello"}]}
            return {
                "whole": json.loads(ask(url + "/v1/chat/completions", key, chat)),
                "streamed": ask(url + "/v1/chat/completions", key, {**chat, "stream": True}),
                "docs": len(ask(url + "/api/docs", key)),
                "ready": json.loads(ask(url + "/health/ready", key)),
            }
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0


if __name__ == "__main__":
    prepare()
    packets = Packets()
    if sys.argv[1] == "attempt":
        attempt()
        told: dict[str, Any] = {}
    else:
        told = serve_and_ask(sys.argv[1])
    threading.Event().wait(0.2)  # the last packets
    sys.stdout.write(json.dumps({**told, "packets": sorted(packets.seen)}))
