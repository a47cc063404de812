"""What the gateway checks of itself and of declared services: disk, memory, event loop, targets."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from prometheus_client import Counter

from openclaw_gateway.api import HealthCheck, Host, Spread
from openclaw_plugins.health.probe import Unwell

if TYPE_CHECKING:
    from aiohttp import ClientSession

_SAMPLE = 0.25
#: those of every service behind the gateway, whoever calls it
_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_CGROUP = Path("/sys/fs/cgroup")


class OwnChecks:
    """The checks, and what they hold open: a sample of the loop's lag, a client for services."""

    def __init__(self, host: Host, *, min_disk: int, max_memory: float, max_lag: float) -> None:
        self._host = host
        self._min_disk = min_disk
        self._max_memory = max_memory
        self._max_lag = max_lag
        self._lags: deque[float] = deque(maxlen=20)
        self._client: ClientSession | None = None
        self._seconds = host.metric(
            Spread,
            "external_service_duration_seconds",
            "How long calls of services behind the gateway take.",
            ("target", "operation"),
            buckets=_BUCKETS,
        )
        self._errors = host.metric(
            Counter,
            "external_service_errors_total",
            "Calls of services behind the gateway that failed.",
            ("target", "operation", "error_type"),
        )

    def checks(self) -> Sequence[HealthCheck]:
        own = [
            HealthCheck("disk", self._disk),
            HealthCheck("memory", self._memory),
            HealthCheck("event_loop", self._event_loop),
        ]
        if self._host.workers is not None:
            own.append(HealthCheck("workers", self._workers))
        return own + [self._target(name) for name in self._host.document.targets]

    async def sample_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _SAMPLE
            await asyncio.sleep(_SAMPLE)
            self._lags.append(max(0.0, loop.time() - due))

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    async def _disk(self) -> Mapping[str, Any]:
        # A network file system that hangs would hang the loop.
        usage = await asyncio.to_thread(lambda: shutil.disk_usage(_existing(self._host.data_dir)))
        if usage.free < self._min_disk:
            raise Unwell(f"{usage.free} bytes are free, fewer than min_disk ({self._min_disk})")
        return {"freeBytes": usage.free, "totalBytes": usage.total}

    async def _memory(self) -> Mapping[str, Any]:
        used, limit = await asyncio.to_thread(memory_use)
        if used is None or limit is None:
            return {"limitBytes": None}
        if used > self._max_memory * limit:
            raise Unwell(f"{used} of {limit} bytes are in use, over max_memory ({self._max_memory:g})")
        return {"usedBytes": used, "limitBytes": limit}

    async def _event_loop(self) -> Mapping[str, Any]:
        lag = max(self._lags, default=0.0)
        if lag > self._max_lag:
            raise Unwell(f"the event loop was {lag * 1000:.0f} ms late")
        return {"maxLagMs": round(lag * 1000, 1)}

    async def _workers(self) -> Mapping[str, Any]:
        workers = self._host.workers
        assert workers is not None
        serving = sum(state.serving for state in workers.states)
        if serving < workers.count:
            raise Unwell(f"{serving} of {workers.count} workers serve")
        return {"workers": [msgspec.structs.asdict(state) for state in workers.states]}

    def _target(self, name: str) -> HealthCheck:
        target = self._host.document.targets[name]
        url = target.url.rstrip("/") + "/" + target.health_path.lstrip("/")

        async def probe() -> Mapping[str, Any]:
            import aiohttp  # costs a third of a second, and most gateways declare no target

            if self._client is None:
                self._client = aiohttp.ClientSession(trust_env=False, cookie_jar=aiohttp.DummyCookieJar())
            limit = aiohttp.ClientTimeout(total=target.timeout)
            started = time.perf_counter()
            failure: str | None = "timeout"
            try:
                async with self._client.get(url, timeout=limit, allow_redirects=False) as response:
                    status = response.status
                failure = "status_5xx" if status >= 500 else None
            except aiohttp.ClientError as error:
                failure = "timeout" if isinstance(error, TimeoutError) else "unreachable"
                raise Unwell("not reachable") from error
            finally:
                self._seconds.labels(name, "probe").observe(time.perf_counter() - started)
                if failure is not None:
                    self._errors.labels(name, "probe", failure).inc()
            if failure is not None:
                raise Unwell(f"answered {status}")
            return {"status": status}

        return HealthCheck(f"target.{name}", probe, "ready" if target.required else "info")


def memory_use(cgroup: Path = _CGROUP) -> tuple[int | None, int | None]:
    """Return the bytes in use and the limit of our control group; None where there is no limit.

    The page cache that the kernel can take back at once is not in use.
    """
    for limit_file, used_file, reclaimable in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        with suppress(OSError, ValueError):
            limit = int((cgroup / limit_file).read_text())  # "max" is no number: no limit
            if limit >= 1 << 60:
                continue
            used = int((cgroup / used_file).read_text())
            stat = (cgroup / used_file).with_name("memory.stat").read_text()
            idle = next((int(line.split()[1]) for line in stat.splitlines() if line.startswith(reclaimable + " ")), 0)
            return max(0, used - idle), limit
    return None, None


def _existing(path: Path) -> Path:
    return path if path.exists() or path == path.parent else _existing(path.parent)
