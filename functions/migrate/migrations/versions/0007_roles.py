"""History that nobody changes afterwards, its owner included; what the functions may beside that is in grants.sql."""

from pathlib import Path

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Create the function that refuses, then its triggers; the statements are beside this file."""
    statements = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    # Without it the driver would look for parameters behind each percent sign.
    op.get_bind().exec_driver_sql(statements, execution_options={"no_parameters": True})
