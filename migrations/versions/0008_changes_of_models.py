"""What a change of models costs: whether a reservation's model is unloaded already, and how long attempts took to start again.

Revision ID: 0008
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade():
    op.add_column("jobs", sa.Column("unloaded_lease", sa.Integer()))
    op.add_column("devices", sa.Column("restarted", sa.Text()))


def downgrade():
    op.drop_column("devices", "restarted")
    op.drop_column("jobs", "unloaded_lease")
