"""Tells a service manager how the process is, by the protocol of sd_notify(3); without one it does nothing.

The protocol is one datagram of `KEY=value` lines to the socket that the environment names: a library would be longer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable

#: what a process started by us must not inherit: it would speak in our name
VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")

logger = logging.getLogger("openclaw.notify")


def notify(**values: str) -> None:
    """Send values (`READY="1"`) to the service manager. Never waits and never raises."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # a name of Linux that is no file
        address = "\0" + address[1:]
    message = "\n".join(f"{key}={value}" for key, value in values.items())
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sender:
            sender.sendto(message.encode(), address)
    except OSError as error:
        logger.warning("the service manager could not be told %s: %s", ", ".join(values), error)


def reloading() -> None:
    """Say that a reload begins; `READY="1"` ends it."""
    # notify-reload compares this with its own reading of the same clock.
    notify(RELOADING="1", MONOTONIC_USEC=str(time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000))


def watchdog_period() -> float | None:
    """Seconds within which the service manager wants to hear from this process, or None."""
    try:
        period = int(os.environ.get("WATCHDOG_USEC", "")) / 1_000_000
        meant = int(os.environ.get("WATCHDOG_PID", os.getpid()))
    except ValueError:
        return None
    return period if period > 0 and meant == os.getpid() else None


async def keep_alive(well: Callable[[], bool] = lambda: True) -> None:
    """Answer the watchdog for as long as the event loop turns and `well` says yes; ends at once where there is none."""
    period = watchdog_period()
    while period is not None:
        if well():
            notify(WATCHDOG="1")
        await asyncio.sleep(period / 2)
