"""Payments of funding, the ledger's account for them, and an index of the events that settled some.

What reads whole tables does it in transactions of its own, which lock out nobody who reads or writes them.
"""

from pathlib import Path

from alembic import op

revision = "0005"
down_revision = "0004"

_SLOW = (
    "alter table ledger_lines validate constraint ledger_lines_ledger_account_check",
    # Where the migration was broken off, an index may be there that is not whole.
    "drop index concurrently if exists events_with_funding",
    """
    create index concurrently events_with_funding on events (account_id, event_id desc)
    where body #> '{funding,0}' is not null
    """,
)


def upgrade() -> None:
    """Run the statements beside this file, then those that take long."""
    op.get_bind().exec_driver_sql(Path(__file__).with_suffix(".sql").read_text(encoding="utf-8"))
    with op.get_context().autocommit_block():
        for statement in _SLOW:
            op.get_bind().exec_driver_sql(statement)
