"""What preemption and the order of jobs for a device depend on: what an attempt cost to start, and what was thrown away.

Revision ID: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade():
    op.add_column("jobs", sa.Column("continues", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("first_output_at", sa.Integer()))
    op.add_column("jobs", sa.Column("passed_at", sa.Integer()))
    op.add_column("devices", sa.Column("thrown", sa.Text()))


def downgrade():
    op.drop_column("devices", "thrown")
    op.drop_column("jobs", "passed_at")
    op.drop_column("jobs", "first_output_at")
    op.drop_column("jobs", "continues")
