"""Jobs on a Ray cluster.

One Ray Job per attempt (`python -m workers run …`). Its driver takes a placement group of W bundles and starts W
`ShardWorker` actors, the gang, each with its own GPU or CPU cores and its own class shard.

* `driver` wires one attempt: events, signals, Ray, the job's phases;
* `backend` runs the phases on a gang and acts when workers are lost;
* `policy` decides what to do then, from facts alone;
* `gang` places, starts, watches and ends the actors; `processes` makes sure that they are gone;
* `shard_worker` is the actor; `work` is what actors are asked to do;
* `client` is the server's only door to all this.
"""
