"""Who a caller is: the `auth` step, and the methods that each recognise one kind of credential.

Importing this package stays light, because the commands of the family live in it too: the step itself is
imported when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openclaw_plugins.auth.step import Auth

__all__ = ["Auth"]


def __getattr__(name: str) -> Any:
    if name == "Auth":
        from openclaw_plugins.auth.step import Auth

        return Auth
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
