"""Run by Alembic for every migration, on the connection and in the transaction that `Database.migrate` has opened."""

from alembic import context

from server.store.models import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata, render_as_batch=True)
context.run_migrations()
