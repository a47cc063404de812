"""Runs of skills always end: all states by their names, and the time after which nobody runs it any more."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
ID = sa.Uuid(as_uuid=False)
TABLE = "openclaw_skill_executions"
STATES = "'pending', 'running', 'completed', 'failed', 'timeout', 'cancelled', 'lost'"
FORMER_STATES = "'running', 'completed', 'failed', 'timed_out', 'cancelled'"


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.drop_constraint("ck_executions_status", TABLE)
        op.execute("UPDATE openclaw_skill_executions SET status = 'timeout' WHERE status = 'timed_out'")
        op.create_check_constraint("ck_executions_status", TABLE, f"status IN ({STATES})")
        op.add_column(TABLE, sa.Column("deadline_at", TIME, nullable=True))
    else:
        _rebuild(STATES, deadline=True, renamed=("timed_out", "timeout"))


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.drop_column(TABLE, "deadline_at")
        op.drop_constraint("ck_executions_status", TABLE)
        op.execute("UPDATE openclaw_skill_executions SET status = 'timed_out' WHERE status = 'timeout'")
        op.execute("UPDATE openclaw_skill_executions SET status = 'failed' WHERE status IN ('pending', 'lost')")
        op.create_check_constraint("ck_executions_status", TABLE, f"status IN ({FORMER_STATES})")
    else:
        op.execute("UPDATE openclaw_skill_executions SET status = 'failed' WHERE status IN ('pending', 'lost')")
        _rebuild(FORMER_STATES, deadline=False, renamed=("timeout", "timed_out"))


def _rebuild(states: str, *, deadline: bool, renamed: tuple[str, str]) -> None:
    """SQLite cannot change a constraint: make the table anew, under its name, with what it held."""
    for index in ("session", "skill", "status"):
        op.drop_index(f"idx_executions_{index}", TABLE)
    op.rename_table(TABLE, "openclaw_skill_executions_before")
    op.create_table(
        TABLE,
        sa.Column("execution_id", ID, primary_key=True),
        sa.Column("session_id", ID, nullable=True),
        sa.Column("organization_id", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("skill_name", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("params", sa.JSON, nullable=False),
        sa.Column("result", sa.JSON, nullable=True),
        sa.Column("error", sa.Text, nullable=True),
        sa.Column("idempotency_key", sa.Text, nullable=True),
        sa.Column("duration_ms", sa.BigInteger, nullable=True),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("finished_at", TIME, nullable=True),
        *([sa.Column("deadline_at", TIME, nullable=True)] if deadline else []),
        sa.ForeignKeyConstraint(["session_id"], ["openclaw_sessions.session_id"], ondelete="CASCADE"),
        sa.CheckConstraint(f"status IN ({states})", name="ck_executions_status"),
        sa.UniqueConstraint("session_id", "idempotency_key", name="uq_executions_idempotency"),
    )
    former, now = renamed
    kept = (
        "execution_id, session_id, organization_id, user_id, skill_name, {}, params, result, error, "
        "idempotency_key, duration_ms, started_at, finished_at"
    )
    replaced = f"CASE status WHEN '{former}' THEN '{now}' ELSE status END"
    op.execute(
        f"INSERT INTO {TABLE} ({kept.format('status')}) "  # noqa: S608 - words of this file  # noqa: S608 - words of this file
        f"SELECT {kept.format(replaced)} FROM openclaw_skill_executions_before"
    )
    op.drop_table("openclaw_skill_executions_before")
    op.create_index("idx_executions_session", TABLE, ["session_id", "started_at"])
    op.create_index("idx_executions_skill", TABLE, ["skill_name", "started_at"])
    op.create_index("idx_executions_status", TABLE, ["status", "started_at"])
