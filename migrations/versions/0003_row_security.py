"""PostgreSQL: the second wall between organisations. A transaction that names none sees and writes no row."""

from __future__ import annotations

from alembic import op
from sqlalchemy import text

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TABLES = (
    "openclaw_sessions",
    "openclaw_messages",
    "openclaw_skill_executions",
    "openclaw_api_keys",
    "openclaw_usage",
    "openclaw_holds",
)
SEES = "organization_id = current_setting('app.organization', true) OR current_setting('app.system', true) = 'on'"


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    for table in TABLES:
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
        op.execute(text(f"CREATE POLICY organization ON {table} USING ({SEES}) WITH CHECK ({SEES})"))


def downgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    for table in TABLES:
        op.execute(f"DROP POLICY organization ON {table}")
        op.execute(f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY, DISABLE ROW LEVEL SECURITY")
