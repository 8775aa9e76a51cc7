"""Device requirements set by jobs, preemption, and estimates learned from jobs.

Revision ID: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade():
    op.add_column("jobs", sa.Column("wanted_bytes", sa.Integer(), nullable=True))
    op.add_column("jobs", sa.Column("wanted_device", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("fallback", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("preemptible", sa.Integer(), server_default="0", nullable=False))
    op.add_column("jobs", sa.Column("preempt_lease", sa.Integer(), nullable=True))
    op.add_column("jobs", sa.Column("preemptions", sa.Integer(), server_default="0", nullable=False))
    op.add_column("jobs", sa.Column("output_tokens", sa.Integer(), server_default="0", nullable=False))
    op.add_column("attempts", sa.Column("numbers", sa.Text(), nullable=True))
    op.add_column("queues", sa.Column("rate_level", sa.Float(), nullable=True))
    op.add_column("queues", sa.Column("rate_at", sa.Integer(), nullable=True))
    op.add_column("devices", sa.Column("model", sa.Text(), nullable=True))
    op.add_column("devices", sa.Column("model_since", sa.Integer(), nullable=True))
    op.add_column("backends", sa.Column("models", sa.Text(), nullable=True))
    op.create_table(
        "estimates",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Float(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("at", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "key"),
        sqlite_with_rowid=False,
    )


def downgrade():
    op.drop_table("estimates")
    op.drop_column("backends", "models")
    op.drop_column("devices", "model_since")
    op.drop_column("devices", "model")
    op.drop_column("queues", "rate_at")
    op.drop_column("queues", "rate_level")
    op.drop_column("attempts", "numbers")
    for column in ("output_tokens", "preemptions", "preempt_lease", "preemptible", "fallback", "wanted_device", "wanted_bytes"):
        op.drop_column("jobs", column)
