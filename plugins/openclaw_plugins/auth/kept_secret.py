"""Secrets that the embedded default makes for itself, once, in files that only its owner reads."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import stat
import tempfile
from pathlib import Path

from openclaw_gateway.api import StartFailed

_BYTES = 48


def kept_secret(path: Path, logger: logging.Logger) -> bytes:
    """Return the secret in `path`, made there by the first process that asks. Raises StartFailed."""
    try:
        if not path.exists():
            _make(path)
        value = path.read_bytes().strip()
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise StartFailed(f"{path.name} in the data directory cannot be used: {error.strerror}") from None
    if len(value) < 32:
        raise StartFailed(f"{path.name} in the data directory holds less than 32 bytes; remove it to have it made anew")
    if os.name == "posix" and mode & 0o077:
        logger.warning("others can read a secret file", extra={"fields": {"file": path.name, "mode": f"{mode:o}"}})
    return value


def _make(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Written whole and then linked: of two processes that start together one wins, and neither reads half a secret.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    draft = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_urlsafe(_BYTES).encode("ascii"))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
