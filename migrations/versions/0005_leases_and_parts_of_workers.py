"""How long each worker may be silent, which an observer measures by its own clock, and how its parts are.

Revision ID: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade():
    op.add_column("workers", sa.Column("parts", sa.Text(), nullable=True))
    op.add_column("workers", sa.Column("lease_us", sa.Integer(), nullable=False, server_default="30000000"))


def downgrade():
    op.drop_column("workers", "lease_us")
    op.drop_column("workers", "parts")
