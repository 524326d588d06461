"""What repair needs: pause switches, openings, last mark prices, fences, how events are appended, how sessions end."""

from pathlib import Path

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the tables, then the functions, then what holds for sessions; the statements are beside this file."""
    for name in ("0002_crash_proof.sql", "0002_append_events.sql", "0002_session_defaults.sql"):
        op.get_bind().exec_driver_sql(Path(__file__).with_name(name).read_text(encoding="utf-8"))
