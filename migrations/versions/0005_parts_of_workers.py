"""How the parts of each worker are, as of its last heartbeat.

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


def downgrade():
    op.drop_column("workers", "parts")
