"""What the run ran on: the machine, and how its interpreter was built."""

from __future__ import annotations

import platform
import sysconfig
from pathlib import Path


def build() -> str:
    """How the interpreter says that it was built: without a profile and the linker's help it is far slower."""
    told = str(sysconfig.get_config_var("CONFIG_ARGS") or "")
    flags = [flag for flag in ("--enable-optimizations", "--with-lto", "--enable-shared") if flag in told]
    how = f"with {' '.join(flags)}" if flags else "with none of the flags that make it fast"
    return f"built by {' '.join(platform.python_compiler().split())} {how}"


def machine() -> str:
    cores = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    processor = cores[0] if cores else platform.machine()
    return f"{len(cores) or '?'} cores, {processor}, {platform.system()} {platform.release()}"


def _cpuinfo() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.exists() else []
