"""The database: models, migrations, the state machine, and the operations on jobs and events."""
