"""Sessions, their messages and the runs of skills.

Messages are partitioned by month on PostgreSQL. There is no default partition: rows in it would keep the real one
from being created.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
ID = sa.Uuid(as_uuid=False)


def upgrade() -> None:
    postgresql = op.get_bind().dialect.name == "postgresql"
    op.create_table(
        "openclaw_sessions",
        sa.Column("session_id", ID, primary_key=True),
        sa.Column("organization_id", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("tier", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False, server_default="active"),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("message_count", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.CheckConstraint("status IN ('active', 'inactive', 'expired')", name="ck_sessions_status"),
        sa.CheckConstraint("message_count >= 0", name="ck_sessions_message_count"),
    )
    op.create_index("idx_sessions_org", "openclaw_sessions", ["organization_id", "created_at", "session_id"])
    op.create_index("idx_sessions_status", "openclaw_sessions", ["status", "organization_id", "created_at"])
    op.create_index("idx_sessions_expires", "openclaw_sessions", ["expires_at"])

    op.create_table(
        "openclaw_messages",
        sa.Column("message_id", ID, nullable=False),
        sa.Column("session_id", ID, nullable=False),
        sa.Column("organization_id", sa.Text, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("content", sa.JSON, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("timestamp", TIME, nullable=False),
        # a partitioned table's key must hold the column by which it is partitioned
        sa.PrimaryKeyConstraint("message_id", "timestamp"),
        sa.ForeignKeyConstraint(["session_id"], ["openclaw_sessions.session_id"], ondelete="CASCADE"),
        sa.CheckConstraint("role IN ('system', 'user', 'assistant', 'tool')", name="ck_messages_role"),
        sa.CheckConstraint("seq > 0", name="ck_messages_seq"),
        postgresql_partition_by="RANGE (timestamp)",
    )
    op.create_index("idx_messages_session", "openclaw_messages", ["session_id", "seq"])
    op.create_index("idx_messages_timestamp", "openclaw_messages", ["timestamp"])

    op.create_table(
        "openclaw_skill_executions",
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
        sa.ForeignKeyConstraint(["session_id"], ["openclaw_sessions.session_id"], ondelete="CASCADE"),
        sa.CheckConstraint(
            "status IN ('running', 'completed', 'failed', 'timed_out', 'cancelled')", name="ck_executions_status"
        ),
        sa.UniqueConstraint("session_id", "idempotency_key", name="uq_executions_idempotency"),
    )
    op.create_index("idx_executions_session", "openclaw_skill_executions", ["session_id", "started_at"])
    op.create_index("idx_executions_skill", "openclaw_skill_executions", ["skill_name", "started_at"])
    op.create_index("idx_executions_status", "openclaw_skill_executions", ["status", "started_at"])

    if postgresql:
        op.execute(ENSURE_PARTITIONS)
        op.execute("SELECT openclaw_ensure_message_partitions(3)")


def downgrade() -> None:
    op.drop_table("openclaw_skill_executions")
    op.drop_table("openclaw_messages")
    op.drop_table("openclaw_sessions")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION openclaw_ensure_message_partitions(integer)")


# It runs as its owner, so that the application's role needs no right to create tables. A partition does not
# inherit row security from its parent, so it gets the same policy in the step that makes it.
ENSURE_PARTITIONS = """
CREATE FUNCTION openclaw_ensure_message_partitions(ahead integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    start timestamp;
    partition text;
    made integer := 0;
BEGIN
    FOR i IN 0..ahead LOOP
        start := date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => i);
        partition := 'openclaw_messages_' || to_char(start, 'YYYY_MM');
        CONTINUE WHEN to_regclass(partition) IS NOT NULL;
        PERFORM pg_advisory_xact_lock(hashtext('openclaw_messages_partitions'));
        CONTINUE WHEN to_regclass(partition) IS NOT NULL;
        EXECUTE format(
            'CREATE TABLE %I PARTITION OF openclaw_messages FOR VALUES FROM (%L) TO (%L)',
            partition, start AT TIME ZONE 'UTC', (start + interval '1 month') AT TIME ZONE 'UTC'
        );
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', partition);
        EXECUTE format(
            'CREATE POLICY organization ON %I USING (organization_id = current_setting(''app.organization'', true) '
            'OR current_setting(''app.system'', true) = ''on'')', partition
        );
        made := made + 1;
    END LOOP;
    RETURN made;
END $$
"""
