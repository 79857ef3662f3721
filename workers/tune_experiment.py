"""Run a Ray Tune experiment in a thread, which sends messages about what happens.

These tasks are not left to Tune 2.60:

* Resuming. Tune's snapshot is up to 10 s old, marks all trials of a cancelled run as ended, and loses the scheduler's state. The
  job's own files record what is done, and Tune runs the rest as a new experiment.
* Noticing a frozen worker, which Tune never does, and ending it, for which Tune waits up to 15 s: see `tune_run`.
* Choosing the trial for a free actor: see :class:`InOrder`.
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

from workers.tune_worker import Records, TrialConfig, TrialUpdate, TrialWork, TuneWorker

END_S = 2.0
"""How long to wait for Tune's thread at the end. It no longer holds resources, and ends with the driver at the latest."""

# Tune reads these when an experiment starts.
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # no CSV, JSON or TensorBoard files for each result
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # most results have no metric
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",  # no snapshots: see above
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # a lost worker is an event of the job
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints tables at any verbosity
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


@dataclass(frozen=True)
class Message:
    """A message from Tune's thread about one trial."""

    trial: int
    actor: Any = None
    """The actor that the trial was started on."""
    update: TrialUpdate | None = None
    lost: RayActorError | None = None
    """How the trial's worker was lost."""
    ended: bool = False
    """Whether Tune has finished the trial."""


class Experiment:
    """A running experiment, in which trial i runs works[i]."""

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
        """Messages in order. An exception, if any, is the last one."""
        self._storage = storage
        self._names: list[str] = []
        self._stopper = _Stopper()
        self._listener = _Listener(self.messages, retries_forever=max_failures < 0)
        make = partial(
            self._tuner,
            title=title,
            bundle=bundle,
            concurrency=concurrency,
            reuse=reuse,
            max_failures=max_failures,
            scheduler=scheduler,
        )
        logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it warns about the files that are not written
        os.environ |= _ENVIRONMENT | {"TUNE_MAX_PENDING_TRIALS_PG": str(concurrency)}
        trials = [TrialConfig(number, work) for number, work in enumerate(works)]
        self._thread = threading.Thread(target=self._fit, args=(trials, title, make), name="tune", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Start no more trials."""
        self._stopper.stopped = True

    def close(self) -> None:
        """Wait for Tune's thread and remove Tune's files. Call this after the workers were ended."""
        self.end()
        self._thread.join(END_S)
        for directory in {*(self._storage / name for name in self._names), *self._listener.staging}:
            shutil.rmtree(directory, ignore_errors=True)
            with suppress(OSError):  # not empty: another experiment uses it
                directory.parent.rmdir()

    def _fit(self, trials: list[TrialConfig], title: str, make: Callable[[list[TrialConfig], str], tune.Tuner]) -> None:
        """Run in Tune's thread until all trials have ended. Trials that Tune gave up run again, in a new experiment."""
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
    """Schedule trials first come, first served.

    Tune's own FIFO gives a free actor to the first trial whose own actor is still *starting*, and ends the starting process. If
    trials are shorter than the start of a process, no new process ever runs one, so a lost worker is never replaced.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Return None, so that new trials come before trials whose actor is starting."""


class _Stopper(tune.Stopper):
    """Stop the experiment once `stopped` is set."""

    def __init__(self) -> None:
        self.stopped = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002
        return False

    def stop_all(self) -> bool:
        return self.stopped


class _Listener(tune.Callback):
    """Turn Tune's callbacks into messages. Tune calls its methods in its thread, one at a time."""

    def __init__(self, messages: queue.SimpleQueue[Message | BaseException], *, retries_forever: bool) -> None:
        self._messages = messages
        self._retries_forever = retries_forever
        self.given_up: list[TrialConfig] = []
        """Trials that Tune gave up, to be run again."""
        self._reported: dict[int, Records] = {}
        self.staging: set[Path] = set()
        """Directories that Tune uses outside of its storage."""

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its configuration to resume from it, which is never done here

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        self.staging.add(Path(trial.local_experiment_path).parent)
        self._messages.put(Message(_trial_of(trial).number, actor=trial.temporary_state.ray_actor))

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:  # noqa: ARG002
        number, update = _trial_of(trial).number, result["update"]
        self._reported.setdefault(number, []).extend(update.answer.records)
        self._messages.put(Message(number, update=update))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        rest = self._rest(trial)
        trial.set_config(trial.config | {"trial": rest})
        self._messages.put(Message(rest.number, lost=_error_of(trial)))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        # Tune counts a worker that is lost while it takes over a trial twice: it retries the trial, and also gives it up.
        if self._retries_forever:
            self.given_up.append(self._rest(trial))
        else:
            self._messages.put(Message(_trial_of(trial).number, lost=_error_of(trial), ended=True))

    def _rest(self, trial: Any) -> TrialConfig:
        """Return the remaining work of a trial whose worker was lost."""
        lost = _trial_of(trial)
        return TrialConfig(lost.number, lost.work.after(self._reported.pop(lost.number, [])))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        self._messages.put(Message(_trial_of(trial).number, ended=True))


def _trial_of(trial: Any) -> TrialConfig:
    own: TrialConfig = trial.config["trial"]
    return own


def _name_of(trial: Any) -> str:
    """Return a short name. Tune's default contains the configuration."""
    return f"trial-{trial.trial_id}"


def _error_of(trial: Any) -> RayActorError:
    """Return the error from the file that Tune wrote when the trial's worker was lost. The worker itself raises nothing."""
    error = pickle.loads(Path(trial.pickled_error_file).read_bytes())
    if not isinstance(error, RayActorError):
        raise error
    return error
