"""The Python client of the REST API. Of the server, it imports only `server.addresses`.

::

    from server.client import Client

    with Client("http://127.0.0.1:8000", api_key) as client:
        job = client.submit({"dataset": {"name": "digits"}, "ipc": 1})
        for event in client.follow(job["id"]):
            print(event["type"], event["data"])
        paths = list(client.download(job["id"], Path("out")))
"""

from server.client.client import Client
from server.client.connection import ClientError, RefusedError, UnreachableError

__all__ = ["Client", "ClientError", "RefusedError", "UnreachableError"]
