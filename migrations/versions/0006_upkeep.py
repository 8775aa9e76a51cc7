"""Finished jobs by their state, so that pruning one visits no job of another; and where each user's sockets are.

Revision ID: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_FINISHED = sa.text("finished_at IS NOT NULL")


def upgrade():
    op.drop_index("jobs_finished", table_name="jobs")
    op.create_index("jobs_finished", "jobs", ["state", "finished_at"], sqlite_where=_FINISHED)
    op.create_table(
        "runtime_bases",
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("uid", sa.Integer(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("host", "uid"),
        sqlite_with_rowid=False,
    )


def downgrade():
    op.drop_table("runtime_bases")
    op.drop_index("jobs_finished", table_name="jobs")
    op.create_index("jobs_finished", "jobs", ["finished_at"], sqlite_where=_FINISHED)
