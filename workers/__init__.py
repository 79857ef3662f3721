"""Run jobs on a Ray cluster.

Each attempt of a job is one Ray Job (`python -m workers run …`). To condense, its driver creates a placement group of W bundles
and starts W `ShardWorker` actors in it, the gang. Each actor has its own GPU or CPU cores and its own class shard. Evaluations
and sweeps run as trials of Ray Tune.

* `driver` runs one attempt: it connects events, signals, Ray and the job's phases.
* `gang_backend` condenses and evaluates on a gang; `backend` adds evaluations and sweeps by Ray Tune.
* `policy` decides, without Ray, what to do when workers are lost; the backends carry it out.
* `gang` places, starts, watches and ends the gang's actors; `processes` makes sure that their processes are gone.
* `tune_run` does the same for trials; `tune_experiment` runs Tune in a thread; `tune_worker` is the actor of a trial.
* `evaluation` splits an evaluation into trials; `sweep` runs a job as a trial.
* `shard_worker` is the gang's actor; `background` runs its work in a thread; `work` defines what actors do.
* `client` is the only module that the server uses.
"""
