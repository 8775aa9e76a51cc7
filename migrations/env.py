"""Runs the migrations on the connection that gpuqueue passes, or on DATABASE when `alembic` runs by itself."""

from alembic import context
from sqlalchemy import create_engine

from gpuqueue.store.sqlite.migrate import VERSION_TABLE
from gpuqueue.store.tables import metadata


def run(connection):
    # One transaction for all migrations, started by the caller; without this, Alembic would commit after each.
    context.configure(connection=connection, target_metadata=metadata, version_table=VERSION_TABLE, transactional_ddl=True)
    context.run_migrations()


handed_over = context.config.attributes.get("connection")
if handed_over is not None:
    run(handed_over)
else:
    with create_engine(context.config.get_main_option("sqlalchemy.url")).begin() as own:
        run(own)
