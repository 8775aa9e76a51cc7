"""Progress and log lines of running jobs; holds by a worker's own plugins.

Revision ID: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade():
    op.add_column("jobs", sa.Column("progress", sa.Float(), nullable=True))
    op.add_column("jobs", sa.Column("progress_note", sa.Text(), nullable=True))
    op.add_column("workers", sa.Column("holds", sa.Text(), nullable=True))
    op.create_table(
        "logs",
        sa.Column("job_id", sa.Integer(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("lease", sa.Integer(), nullable=False),
        sa.Column("at", sa.Integer(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "seq"),
        sqlite_with_rowid=False,
    )


def downgrade():
    op.drop_table("logs")
    op.drop_column("workers", "holds")
    op.drop_column("jobs", "progress_note")
    op.drop_column("jobs", "progress")
