"""The database: models, migrations, and operations on jobs, events and webhook deliveries."""
