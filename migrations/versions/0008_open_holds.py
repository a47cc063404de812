"""Reservations that still count, and those that are resolved, by their time; holders where there are any."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# Word for word what the account asks for: a store takes a partial index only where a question implies its condition.
COUNTS = "state = 'held' OR (state = 'committed' AND kind = 'lease')"


def upgrade() -> None:
    op.drop_index("idx_holds_holder", "openclaw_holds")
    op.drop_index("idx_holds_expires", "openclaw_holds")
    # An hour of charges lies resolved beside the few that count: whoever looks for these must not read those.
    _create("idx_holds_counting", ["expires_at"], COUNTS)
    _create("idx_holds_resolved", ["expires_at"], f"NOT ({COUNTS})")
    _create("idx_holds_holder", ["organization_id", "holder"], "holder IS NOT NULL")


def downgrade() -> None:
    for name in ("idx_holds_holder", "idx_holds_resolved", "idx_holds_counting"):
        op.drop_index(name, "openclaw_holds")
    op.create_index("idx_holds_expires", "openclaw_holds", ["expires_at"])
    op.create_index("idx_holds_holder", "openclaw_holds", ["organization_id", "holder"])


def _create(name: str, columns: list[str], where: str) -> None:
    op.create_index(name, "openclaw_holds", columns, postgresql_where=sa.text(where), sqlite_where=sa.text(where))
