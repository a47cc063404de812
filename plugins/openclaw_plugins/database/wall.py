"""Judges the role in which requests run on PostgreSQL: row security binds no superuser, and an owner may end it."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from openclaw_gateway.api import StartFailed

# https://www.postgresql.org/docs/current/ddl-rowsecurity.html: superusers and roles with BYPASSRLS always pass.
# A role that inherits from the owner of a table may do with it what its owner may.
_ROLE = text(
    "SELECT r.rolname, r.rolsuper, r.rolbypassrls, EXISTS (SELECT 1 FROM pg_class c WHERE c.relkind IN ('r', 'p') "
    r"AND c.relname LIKE 'openclaw\_%' AND pg_table_is_visible(c.oid) AND pg_has_role(r.oid, c.relowner, 'USAGE')) "
    "AS owns FROM pg_roles r WHERE r.rolname = current_user"
)


class Wall:
    """Whether row security binds this gateway. Without `role`, an application's role, requests run as the login."""

    def __init__(self, id: str, role: str | None) -> None:
        self._id = id
        self._role = role
        #: what the operator is told once the gateway serves
        self.notices: list[str] = []

    async def judge(self, connection: AsyncConnection) -> None:
        """Look at the role of this connection. Raises StartFailed where the one that was named for it is no wall."""
        found = (await connection.execute(_ROLE)).one()
        if found.rolsuper:
            why = "is a superuser"
        elif found.rolbypassrls:
            why = "has BYPASSRLS"
        elif found.owns and self._role is not None:
            why = "owns tables of the gateway, or inherits from who does"
        else:
            # a login that owns the tables is bound too: row security is forced on them
            return
        gap = f"row security does not bind {found.rolname!r}, in which requests run: it {why}"
        if self._role is not None:
            raise StartFailed(f"plugins.{self._id}.application_role: {gap}; expected a role that owns nothing")
        self.notices = [f"{gap}; name a role that owns nothing in plugins.{self._id}.application_role"]
