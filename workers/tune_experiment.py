"""A Ray Tune experiment in a thread of its own, which tells what happens by messages.

What is not left to Tune 2.60, and why:

* resuming: a snapshot is up to 10 s old, marks all trials of a cancelled run as ended and forgets what the scheduler knows. The
  job's own files say what is done, and Tune is given the rest, as a new experiment;
* noticing that a worker is frozen, which it never does, and ending one, for which it asks, and waits up to 15 s: see `tune_run`;
* which trial gets an actor that is free: see :class:`InOrder`.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from ray import tune
from ray.exceptions import RayActorError
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from workers.tune_worker import Records, Told, TrialConfig, TrialWork, TuneWorker

END_S = 2.0
"""How long Tune may take to notice that it was ended. It holds nothing any more then, and ends with the driver at the latest."""

# Tune reads these when an experiment starts.
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON and TensorBoard files of every answer
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # most answers have no metric
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",  # no snapshots: see above
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # a lost worker is an event of the job
    "RAY_AIR_NEW_OUTPUT": "0",  # this one's tables come whatever the verbosity
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


@dataclass(frozen=True)
class Message:
    """From Tune's thread, about a trial."""

    trial: int
    actor: Any = None
    """Where it was started."""
    told: Told | None = None
    lost: RayActorError | None = None
    """How its worker ended."""
    ended: bool = False
    """Tune is done with it."""


class Experiment:
    """An experiment under way: trial i does works[i]."""

    def __init__(
        self,
        works: Sequence[TrialWork],
        *,
        bundle: dict[str, float],
        concurrency: int,
        storage: Path,
        title: str,
        reuse: bool,
        max_failures: int,
        scheduler: TrialScheduler | None,
    ) -> None:
        """See :class:`workers.tune_run.TuneRun`."""
        self.messages: queue.SimpleQueue[Message | BaseException] = queue.SimpleQueue()
        """What happens. An exception: the last thing."""
        self._storage = storage
        self._names: list[str] = []
        self._stopper = _Stopper()
        self._listener = _Listener(self.messages, retries_for_ever=max_failures < 0)
        make = partial(
            self._tuner,
            title=title,
            bundle=bundle,
            concurrency=concurrency,
            reuse=reuse,
            max_failures=max_failures,
            scheduler=scheduler,
        )
        logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it misses the files that are not written
        os.environ |= _ENVIRONMENT | {"TUNE_MAX_PENDING_TRIALS_PG": str(concurrency)}
        trials = [TrialConfig(number, work) for number, work in enumerate(works)]
        self._thread = threading.Thread(target=self._fit, args=(trials, title, make), name="tune", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Start nothing any more."""
        self._stopper.stopped = True

    def close(self) -> None:
        """After the workers were ended: wait for Tune to notice, and remove its files."""
        self.end()
        self._thread.join(END_S)
        for directory in {*(self._storage / name for name in self._names), *self._listener.staging}:
            shutil.rmtree(directory, ignore_errors=True)
            with suppress(OSError):  # another experiment's is in it
                directory.parent.rmdir()

    def _fit(self, trials: list[TrialConfig], title: str, make: Callable[[list[TrialConfig], str], tune.Tuner]) -> None:
        """In Tune's thread: until all trials have ended, which is once but for those that Tune has given up."""
        try:
            while trials and not self._stopper.stopped:
                self._names.append(f"{title.replace('/', '-').replace(' ', '-')}-{uuid4().hex[:8]}")
                make(trials, self._names[-1]).fit()
                trials, self._listener.given_up = self._listener.given_up, []
        except BaseException as error:
            self.messages.put(error)

    def _tuner(
        self,
        trials: list[TrialConfig],
        name: str,
        *,
        title: str,
        bundle: dict[str, float],
        concurrency: int,
        reuse: bool,
        max_failures: int,
        scheduler: TrialScheduler | None,
    ) -> tune.Tuner:
        return tune.Tuner(
            TuneWorker,
            param_space={"trial": tune.grid_search(trials), "bundle": bundle, "title": title},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=concurrency,
                reuse_actors=reuse,
                scheduler=scheduler or InOrder(),  # type: ignore[no-untyped-call]
                trial_name_creator=_name_of,
                trial_dirname_creator=_name_of,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=str(self._storage),
                callbacks=[self._listener],
                stop=self._stopper,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=max_failures),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )


class InOrder(FIFOScheduler):
    """First come, first served.

    Tune's own FIFO gives a free actor to the first trial that waits for one to *start*, and ends the process that starts. While
    the others' work is shorter than a start, nothing that starts ever comes to work: a slot once lost stays lost.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """None in particular: new trials come before those whose actor starts."""


class _Stopper(tune.Stopper):
    """Ends the experiment when told to."""

    def __init__(self) -> None:
        self.stopped = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002
        return False

    def stop_all(self) -> bool:
        return self.stopped


class _Listener(tune.Callback):
    """Passes on what happens. Its methods are called in Tune's thread, one at a time."""

    def __init__(self, messages: queue.SimpleQueue[Message | BaseException], *, retries_for_ever: bool) -> None:
        self._messages = messages
        self._retries_for_ever = retries_for_ever
        self.given_up: list[TrialConfig] = []
        """Trials that are to be tried again all the same."""
        self._told: dict[int, Records] = {}
        self.staging: set[Path] = set()
        """Tune's directories outside of its storage."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its configuration, to resume from; we never do

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        self.staging.add(Path(trial.local_experiment_path).parent)
        self._messages.put(Message(_trial_of(trial).number, actor=trial.temporary_state.ray_actor))

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:  # noqa: ARG002
        number, told = _trial_of(trial).number, result["told"]
        self._told.setdefault(number, []).extend(told.answer.records)
        self._messages.put(Message(number, told=told))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        rest = self._rest(trial)
        trial.set_config(trial.config | {"trial": rest})
        self._messages.put(Message(rest.number, lost=_error_of(trial)))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        # A worker that is lost while it takes over a trial counts twice in Tune: the trial is retried, and given up.
        if self._retries_for_ever:
            self.given_up.append(self._rest(trial))
        else:
            self._messages.put(Message(_trial_of(trial).number, lost=_error_of(trial), ended=True))

    def _rest(self, trial: Any) -> TrialConfig:
        """What is left to do of a trial whose worker was lost."""
        lost = _trial_of(trial)
        return TrialConfig(lost.number, lost.work.after(self._told.pop(lost.number, [])))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        self._messages.put(Message(_trial_of(trial).number, ended=True))


def _trial_of(trial: Any) -> TrialConfig:
    own: TrialConfig = trial.config["trial"]
    return own


def _name_of(trial: Any) -> str:
    """The default has the configuration in it, or what stands for it."""
    return f"trial-{trial.trial_id}"


def _error_of(trial: Any) -> RayActorError:
    """What Tune has noted in a file: how the trial's worker was lost. A worker itself raises nothing."""
    error = pickle.loads(Path(trial.pickled_error_file).read_bytes())
    if not isinstance(error, RayActorError):
        raise error
    return error
