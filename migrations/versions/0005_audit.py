"""Who made, rotated and revoked which API key."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

SEES = "organization_id = current_setting('app.organization', true) OR current_setting('app.system', true) = 'on'"


def upgrade() -> None:
    op.create_table(
        "openclaw_audit",
        sa.Column("audit_id", sa.Uuid(as_uuid=False), primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("organization_id", sa.Text, nullable=False),
        # No foreign key: what was done to a key is known longer than the key.
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text, nullable=True),
        sa.Column("details", sa.JSON, nullable=False),
    )
    op.create_index("idx_audit_org", "openclaw_audit", ["organization_id", "audit_id"])
    op.create_index("idx_api_keys_created", "openclaw_api_keys", ["created_at", "key_id"])
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE openclaw_audit ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
        op.execute(sa.text(f"CREATE POLICY organization ON openclaw_audit USING ({SEES}) WITH CHECK ({SEES})"))


def downgrade() -> None:
    op.drop_index("idx_api_keys_created", "openclaw_api_keys")
    op.drop_table("openclaw_audit")
