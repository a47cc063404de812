"""The words of messages, for search on SQLite; PostgreSQL finds them in the messages themselves.

The row of a message says under `place` which message, session and organisation it is of, each as one word: what is
looked for is then found among the words of those alone.
"""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

PLACE = "{0}.message_id || ' ' || {0}.session_id || ' o' || lower(hex({0}.organization_id))"
IS_TEXT = "json_type({0}.content) = 'text'"


def upgrade() -> None:
    if op.get_bind().dialect.name != "sqlite":
        return
    op.execute(
        "CREATE VIRTUAL TABLE openclaw_message_words "
        'USING fts5(said, place, tokenize = "unicode61 remove_diacritics 0")'
    )
    columns = f"json_extract({{0}}.content, '$'), {PLACE}"
    op.execute(
        f"INSERT INTO openclaw_message_words (said, place) SELECT {columns.format('m')} "  # noqa: S608 - constants
        f"FROM openclaw_messages AS m WHERE {IS_TEXT.format('m')}"
    )
    follow = f"INSERT INTO openclaw_message_words (said, place) VALUES ({columns.format('new')})"  # noqa: S608
    op.execute(
        f"CREATE TRIGGER openclaw_message_words_insert AFTER INSERT ON openclaw_messages WHEN {IS_TEXT.format('new')} "
        f"BEGIN {follow}; END"
    )
    op.execute(
        "CREATE TRIGGER openclaw_message_words_delete AFTER DELETE ON openclaw_messages BEGIN "
        "DELETE FROM openclaw_message_words WHERE rowid IN (SELECT rowid FROM openclaw_message_words "
        "WHERE openclaw_message_words MATCH 'place : ' || old.message_id); END"
    )


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TRIGGER openclaw_message_words_insert")
        op.execute("DROP TRIGGER openclaw_message_words_delete")
        op.execute("DROP TABLE openclaw_message_words")
