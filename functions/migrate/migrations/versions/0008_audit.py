"""Who did what belongs to no account's chain: chains of hashes for it, and by whom prices and openings were."""

from pathlib import Path

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Create the chains, and link what is there; the statements are beside this file."""
    statements = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    # Without it the driver would look for parameters behind each percent sign.
    op.get_bind().exec_driver_sql(statements, execution_options={"no_parameters": True})
