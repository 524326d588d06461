"""How shortfalls are settled: planned steps, and rows in liquidations for what was deleveraged."""

from pathlib import Path

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create the table of steps, then the function that appends; the statements are beside this file."""
    for name in ("0003_settlement.sql", "0003_append_events.sql"):
        op.get_bind().exec_driver_sql(Path(__file__).with_name(name).read_text(encoding="utf-8"))
