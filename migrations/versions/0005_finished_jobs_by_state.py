"""Finished jobs by their state: pruning one state visits no job of another.

Revision ID: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_FINISHED = sa.text("finished_at IS NOT NULL")


def upgrade():
    op.drop_index("jobs_finished", table_name="jobs")
    op.create_index("jobs_finished", "jobs", ["state", "finished_at"], sqlite_where=_FINISHED)


def downgrade():
    op.drop_index("jobs_finished", table_name="jobs")
    op.create_index("jobs_finished", "jobs", ["finished_at"], sqlite_where=_FINISHED)
