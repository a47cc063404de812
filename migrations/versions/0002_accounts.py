"""API keys, and the durable account: what was used, and what is held."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "openclaw_api_keys",
        sa.Column("key_id", sa.Text, primary_key=True),
        sa.Column("organization_id", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text, nullable=False),
        sa.Column("tier", sa.Text, nullable=False),
        sa.Column("scopes", sa.JSON, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("pepper_version", sa.Integer, nullable=False, server_default="1"),
        sa.Column("name", sa.Text, nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=True),
        sa.Column("last_used_at", TIME, nullable=True),
        sa.Column("revoked_at", TIME, nullable=True),
        sa.Column("replaced_by", sa.Text, nullable=True),
        sa.ForeignKeyConstraint(["replaced_by"], ["openclaw_api_keys.key_id"], ondelete="SET NULL"),
    )
    op.create_table(
        "openclaw_usage",
        sa.Column("organization_id", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("limit_name", sa.Text, nullable=False),
        sa.Column("period", sa.Text, nullable=False),
        sa.Column("used", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("held", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("updated_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("organization_id", "subject", "limit_name", "period"),
        # The limit itself is no check: it changes by editing data, and usage over a lowered limit is legal.
        sa.CheckConstraint("used >= 0", name="ck_usage_used"),
        sa.CheckConstraint("held >= 0", name="ck_usage_held"),
    )
    op.create_table(
        "openclaw_holds",
        sa.Column("hold_id", sa.Uuid(as_uuid=False), primary_key=True),
        sa.Column("organization_id", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("limit_name", sa.Text, nullable=False),
        sa.Column("period", sa.Text, nullable=False),
        sa.Column("meter", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("holder", sa.Text, nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id", "subject", "limit_name", "period"],
            [
                "openclaw_usage.organization_id",
                "openclaw_usage.subject",
                "openclaw_usage.limit_name",
                "openclaw_usage.period",
            ],
            ondelete="CASCADE",
        ),
        sa.CheckConstraint("state IN ('held', 'committed', 'voided', 'expired')", name="ck_holds_state"),
        sa.CheckConstraint("kind IN ('quota', 'lease')", name="ck_holds_kind"),
        sa.CheckConstraint("amount > 0", name="ck_holds_amount"),
    )


def downgrade() -> None:
    op.drop_table("openclaw_holds")
    op.drop_table("openclaw_usage")
    op.drop_table("openclaw_api_keys")
