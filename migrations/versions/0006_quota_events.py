"""Thresholds of quotas that were passed, told once each; what a charge was made for; answers that can be repeated."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
TABLES = ("openclaw_quota_events", "openclaw_idempotency")
SEES = "organization_id = current_setting('app.organization', true) OR current_setting('app.system', true) = 'on'"


def upgrade() -> None:
    op.add_column("openclaw_usage", sa.Column("tier", sa.Text, nullable=False, server_default=""))
    op.add_column("openclaw_usage", sa.Column("announced", sa.Integer, nullable=False, server_default="0"))
    op.create_table(
        "openclaw_quota_events",
        sa.Column("event_id", sa.Uuid(as_uuid=False), primary_key=True),
        sa.Column("organization_id", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("limit_name", sa.Text, nullable=False),
        sa.Column("period", sa.Text, nullable=False),
        sa.Column("threshold", sa.Text, nullable=False),
        sa.Column("scope", sa.Text, nullable=False),
        sa.Column("used", sa.BigInteger, nullable=False),
        sa.Column("allowed", sa.BigInteger, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("resets_at", TIME, nullable=True),
        sa.Column("claimed_until", TIME, nullable=True),
        sa.Column("delivered_at", TIME, nullable=True),
        # What makes an event one: whoever passes the threshold again, it is told already.
        sa.UniqueConstraint(
            "organization_id", "subject", "limit_name", "period", "threshold", name="uq_quota_events_key"
        ),
        sa.CheckConstraint("threshold IN ('warning', 'exhausted')", name="ck_quota_events_threshold"),
    )
    op.create_index("idx_quota_events_open", "openclaw_quota_events", ["delivered_at", "created_at"])
    op.create_index("idx_holds_expires", "openclaw_holds", ["expires_at"])
    op.create_index("idx_holds_holder", "openclaw_holds", ["organization_id", "holder"])
    op.create_table(
        "openclaw_idempotency",
        sa.Column("organization_id", sa.Text, nullable=False),
        sa.Column("route", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("claim_id", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.Column("status", sa.Integer, nullable=True),
        sa.Column("headers", sa.JSON, nullable=True),
        sa.Column("body", sa.LargeBinary, nullable=True),
        # The first of several requests is who inserts this.
        sa.PrimaryKeyConstraint("organization_id", "route", "key"),
        sa.CheckConstraint("state IN ('running', 'done', 'lost')", name="ck_idempotency_state"),
    )
    op.create_index("idx_idempotency_expires", "openclaw_idempotency", ["state", "expires_at"])
    op.create_index("idx_idempotency_claim", "openclaw_idempotency", ["claim_id"])
    if op.get_bind().dialect.name == "postgresql":
        for table in TABLES:
            op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
            op.execute(sa.text(f"CREATE POLICY organization ON {table} USING ({SEES}) WITH CHECK ({SEES})"))


def downgrade() -> None:
    op.drop_table("openclaw_idempotency")
    op.drop_index("idx_holds_holder", "openclaw_holds")
    op.drop_index("idx_holds_expires", "openclaw_holds")
    op.drop_table("openclaw_quota_events")
    op.drop_column("openclaw_usage", "announced")
    op.drop_column("openclaw_usage", "tier")
