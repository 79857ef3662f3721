"""The server's view of Ray: the embedded cluster, its capacity, and the interface to Ray jobs."""
