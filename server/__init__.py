"""The REST API, the reconciler and the `cafe` command. Ray is reached only through workers.client."""
