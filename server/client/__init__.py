"""The Python client of the REST API. It imports nothing else of the server."""
