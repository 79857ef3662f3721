"""Jobs on a Ray cluster.

One Ray Job per attempt (`python -m workers run …`). To condense, its driver takes a placement group of W bundles and starts W
`ShardWorker` actors, the gang, each with its own GPU or CPU cores and its own class shard. To evaluate, and to sweep, it gives
Ray Tune trials to run.

* `driver` wires one attempt: events, signals, Ray, the job's phases;
* `backend` runs the phases and acts when workers are lost; `policy` decides what to do then, from facts alone;
* `gang` places, starts, watches and ends the actors; `processes` makes sure that they are gone;
* `tune_run` does the same for trials; `tune_experiment` is Tune in its thread; `tune_worker` is its actor;
* `evaluation` cuts an evaluation into trials; `sweep` makes a trial of a job;
* `shard_worker` is the gang's actor; `background` is how an actor works and answers; `work` is what actors are asked to do;
* `client` is the server's only door to all this.
"""
