"""A job's states under any interleaving of actions by users, drivers, Ray and crashes.

The store, the keeper and its policy are real and use real files. Only Ray is a fake, and the state machine decides when the
keeper makes a step. Servers are killed at every await of a step.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule
from sqlalchemy import select

import server.reconciler.driver_watch
import server.reconciler.job_keeper
from cafe_core.errors import StaleAttemptError
from cafe_core.files import write_atomically
from cafe_core.jobs.fence import AttemptFence
from cafe_core.jobs.job import write_manifest
from cafe_core.jobs.jobdir import EventLog, JobDir
from cafe_core.spec.job import parse_job_spec
from server.errors import ConflictError
from server.reconciler.job_keeper import JobKeeper
from server.settings import Settings
from server.states import ENDED, IN_RAY, TRANSITIONS, Status
from server.store import jobs
from server.store.admission import jobs_to_reconcile
from server.store.changes import Changes
from server.store.database import Database
from server.store.models import Artifact, Attempt, Event, Job
from tests.server.conftest import SPEC, FakeRay
from workers.client import RayError, RayJob, RayJobState

KILLED = RayJob(RayJobState.FAILED, "killed", -9)
MAX_ACTIVE = 2


class ServerKilled(BaseException):
    """Simulates SIGKILL."""


class MortalRay(FakeRay):
    """Kills the server at its `dies_in`-th request from now: before Ray receives it, or, if `heard`, afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.dies_in: int | None = None
        self.heard = False
        self.stops_at_once = False

    def _answer(self) -> None:
        if self.dies_in is not None:
            self.dies_in -= 1
            if self.dies_in < 0 and not self.heard:
                raise ServerKilled
        super()._answer()

    def _answered(self) -> None:
        if self.dies_in is not None and self.dies_in < 0:
            raise ServerKilled

    async def submit(self, job_dir: Path, job_id: str, attempt: int, *, python: str, cpus: float) -> None:
        assert (job_id, attempt) not in self.jobs, "submitted twice"
        await super().submit(job_dir, job_id, attempt, python=python, cpus=cpus)
        self._answered()

    async def stop(self, job_id: str, attempt: int) -> bool:
        heard = await super().stop(job_id, attempt)
        self._answered()
        return heard


async def _changes() -> Changes:
    return Changes()


class JobLife(RuleBasedStateMachine):
    """Rules are possible actions; invariants hold after each."""

    made: Bundle[str] = Bundle("made")

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="cafe-status-"))
        bounded = Settings(data_dir=self.directory, max_active_jobs=MAX_ACTIVE, max_lost_attempts=1)
        self.settings = bounded.model_copy(update={"driver_silence_s": 0.0})  # silent from one observation to the next
        self.database = Database(self.settings.database)
        self.database.migrate()
        self.ray = MortalRay()
        self.loop = asyncio.new_event_loop()
        self.changes = self.loop.run_until_complete(_changes())
        self.keepers: dict[str, JobKeeper] = {}
        self.live: set[tuple[str, int]] = set()
        """Attempts with a running driver, known to Ray or not."""
        self.reported: dict[str, list[tuple[int, str]]] = {}
        """The status events of each job seen so far: number, status."""
        self.made_count = 0

    def teardown(self) -> None:
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        self.database.close()
        shutil.rmtree(self.directory)

    # -- users

    @rule(target=made)
    def submit(self) -> str:
        self.made_count += 1
        job_id = f"job_{self.made_count}"
        with self.database.write() as session:
            jobs.create(session, job_id, parse_job_spec(SPEC))
        return job_id

    @rule(job_id=made)
    def cancel(self, job_id: str) -> None:
        with self.database.write() as session:
            job = jobs.get(session, job_id, lock=True)
            going = job.state not in ENDED
            assert jobs.cancel(session, job) == going

    @rule(job_id=made)
    def resume(self, job_id: str) -> None:
        with self.database.write() as session:
            job = jobs.get(session, job_id, lock=True)
            before, attempt = job.state, job.attempt
            if before in (Status.FAILED, Status.CANCELLED):
                jobs.resume(session, job)
                assert (job.state, job.attempt) == (Status.QUEUED, attempt + 1)
            else:
                with pytest.raises(ConflictError):
                    jobs.resume(session, job)
                assert (job.state, job.attempt) == (before, attempt)

    @rule(job_id=consumes(made))
    def delete(self, job_id: str) -> None:
        with self.database.write() as session:
            job = jobs.get(session, job_id)
            if job.state not in ENDED:
                with pytest.raises(ConflictError):
                    jobs.delete(session, job)
                return
            jobs.delete(session, job)
        shutil.rmtree(self.settings.job_dir(job_id).path, ignore_errors=True)
        self.reported.pop(job_id, None)
        self.keepers.pop(job_id, None)

    # -- drivers: each writes what its fence allows

    @rule(data=st.data(), phase=st.sampled_from(["starting_workers", "condensing"]))
    def driver_starts(self, data: st.DataObject, phase: str) -> None:
        self._driver(data, lambda directory, log, fence: log("phase", phase=phase))  # noqa: ARG005

    @rule(data=st.data())
    def driver_makes_progress(self, data: st.DataObject) -> None:
        def checkpoint(directory: JobDir, log: EventLog, fence: AttemptFence) -> None:
            write_atomically(directory.checkpoints / "checkpoint-00000001.safetensors", b"state", fence=fence)
            log("checkpoint", iteration=1, file="checkpoint-00000001.safetensors")

        self._driver(data, checkpoint)

    @rule(data=st.data(), beats=st.integers(1, 3))
    def driver_beats(self, data: st.DataObject, beats: int) -> None:
        """The driver is silent from the keeper's second observation on, unless it beats again."""

        def beat(directory: JobDir, log: EventLog, fence: AttemptFence) -> None:  # noqa: ARG001
            directory.attempt(fence.attempt).heartbeat_file.write_bytes(b"%d" % beats)

        self._driver(data, beat)

    @rule(data=st.data(), exits=st.booleans())
    def driver_finishes(self, data: st.DataObject, exits: bool) -> None:
        def finish(directory: JobDir, log: EventLog, fence: AttemptFence) -> None:
            attempt = directory.attempt(fence.attempt)
            write_atomically(attempt.result_file, b'{"attempt": %d}' % fence.attempt, fence=fence)
            write_manifest(attempt, fence)
            log("finished", result={})

        self._driver(data, finish, RayJob(RayJobState.SUCCEEDED, "", 0) if exits else None)

    @rule(data=st.data())
    def driver_fails(self, data: st.DataObject) -> None:
        error = {"code": "non_finite_loss", "message": "nan", "retryable": False}
        self._driver(data, lambda directory, log, fence: log("failed", error=error), RayJob(RayJobState.FAILED, "", 1))  # noqa: ARG005

    @rule(data=st.data())
    def driver_is_killed(self, data: st.DataObject) -> None:
        self._driver(data, lambda directory, log, fence: None, KILLED)  # noqa: ARG005

    @rule(data=st.data())
    def driver_is_stopped(self, data: st.DataObject) -> None:
        """Ray stops it, for the server or for a person."""
        self._driver(data, lambda directory, log, fence: log("cancelled"), RayJob(RayJobState.STOPPED, ""))  # noqa: ARG005

    def _driver(
        self, data: st.DataObject, does: Callable[[JobDir, EventLog, AttemptFence], object], ends: RayJob | None = None
    ) -> None:
        """Let one of the running drivers act; a stale one ends instead."""
        if not self.live:
            return
        job_id, attempt = data.draw(st.sampled_from(sorted(self.live)), label="driver")
        directory = self.settings.job_dir(job_id)
        fence = AttemptFence.of(directory, attempt)
        if not directory.path.exists():
            self.live.discard((job_id, attempt))
            return
        with contextlib.closing(EventLog(directory.attempt(attempt).events_file)) as log:
            try:
                does(directory, log, fence)
            except StaleAttemptError:
                ends = RayJob(RayJobState.FAILED, "", 1)
        if ends is not None:
            self.live.discard((job_id, attempt))
            if (job_id, attempt) in self.ray.jobs:
                self.ray.jobs[job_id, attempt] = ends

    # -- Ray

    @rule(drivers_live=st.booleans())
    def ray_forgets(self, drivers_live: bool) -> None:
        """Ray restarts. Drivers may survive it, disconnected, except those that it was just starting."""
        self.ray.jobs.clear()
        with self.database.read() as session:
            noted = select(Attempt.job_id, Attempt.number).where(Attempt.submitted_at.is_not(None))
            self.live &= {(job_id, number) for job_id, number in session.execute(noted)} if drivers_live else set()

    @rule(down=st.booleans())
    def ray_goes_down_or_up(self, down: bool) -> None:
        self.ray.down = down

    # -- the server

    @rule(dies_in=st.none() | st.integers(0, 3), heard=st.booleans())
    def server_steps(self, dies_in: int | None, heard: bool) -> None:
        """Let every keeper make one step, during which the server may die."""
        self.ray.dies_in, self.ray.heard = dies_in, heard
        with self.database.read() as session:
            wanted = jobs_to_reconcile(session, set(self.keepers), max_active=MAX_ACTIVE, max_per_owner=None)
        for job_id in wanted:
            if job_id not in self.keepers:
                self.keepers[job_id] = JobKeeper(job_id, self.database, self.ray, self.settings, self.changes)
        submitted = len(self.ray.submissions)
        try:
            for job_id, keeper in list(self.keepers.items()):
                if self.loop.run_until_complete(self._step(keeper)):
                    del self.keepers[job_id]
        except ServerKilled:
            self.keepers.clear()
        finally:
            self.ray.dies_in = None
        for one in self.ray.submissions[submitted:]:
            assert one not in self.live, f"{one} has two drivers"
            self.live.add(one)

    @staticmethod
    async def _step(keeper: JobKeeper) -> bool:
        seen = keeper.record.sync()
        if seen is None:
            return True
        try:
            return await keeper.step(seen)
        except RayError:
            return False

    @precondition(lambda self: self.keepers)
    @rule()
    def server_restarts(self) -> None:
        self.keepers.clear()

    # -- invariants

    @invariant()
    def history_is_legal_and_only_grows(self) -> None:
        with self.database.read() as session:
            for job in session.scalars(select(Job)):
                events = list(session.scalars(select(Event).where(Event.job_id == job.id).order_by(Event.number)))
                assert [event.number for event in events] == list(range(1, job.last_event + 1))
                statuses = [(event.number, event.data["status"]) for event in events if event.type == "status"]
                before = self.reported.get(job.id, [])
                assert statuses[: len(before)] == before
                assert statuses[0][1] == "queued"
                assert statuses[-1][1] == job.status
                for (_, old), (_, new) in itertools.pairwise(statuses):
                    assert Status(new) in TRANSITIONS[Status(old)], statuses
                attempts = [event.attempt for event in events]
                assert attempts == sorted(attempts)
                self.reported[job.id] = statuses

    @invariant()
    def attempts_are_numbered_and_have_a_cause(self) -> None:
        with self.database.read() as session:
            for job in session.scalars(select(Job)):
                attempts = list(session.scalars(select(Attempt).where(Attempt.job_id == job.id).order_by(Attempt.number)))
                assert [attempt.number for attempt in attempts] == list(range(1, job.attempt + 1))
                assert attempts[0].cause == "submitted"
                assert {attempt.cause for attempt in attempts[1:]} <= {"resumed", "lost"}
                assert all(attempt.finished_at is not None for attempt in attempts[:-1])
                assert (attempts[-1].finished_at is not None) == (job.state in ENDED)

    @invariant()
    def only_succeeded_jobs_have_artifacts_of_their_last_attempt(self) -> None:
        with self.database.read() as session:
            for job in session.scalars(select(Job)):
                rows = list(session.scalars(select(Artifact).where(Artifact.job_id == job.id)))
                if job.state is Status.SUCCEEDED:
                    assert [(row.attempt, row.name) for row in rows] == [(job.attempt, "result.json")]
                    assert job.result == {"attempt": job.attempt}
                else:
                    assert rows == []
                    assert job.result is None
                assert (job.error is not None) == (job.state is Status.FAILED)

    @invariant()
    def active_jobs_are_limited(self) -> None:
        with self.database.read() as session:
            assert sum(job.state in IN_RAY for job in session.scalars(select(Job))) <= MAX_ACTIVE


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.reconciler.job_keeper, "RETRY_PAUSE_S", 0.0)
    monkeypatch.setattr(server.reconciler.driver_watch, "STOP_EVERY_S", 0.0)


@pytest.fixture(params=[60.0, 0.0], ids=["ray_stops", "ray_ignores_stops"])
def _stop_deadline(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray may still stop the driver, or counts as ignoring the stop from the keeper's next observation on."""
    monkeypatch.setattr(server.reconciler.driver_watch, "STOPS_WITHIN_S", request.param)


def run(examples: int, steps: int) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    options = settings(max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=quiet)
    run_state_machine_as_test(JobLife, settings=options)


@pytest.mark.usefixtures("_stop_deadline")
def test_no_interleaving_makes_an_illegal_transition() -> None:
    run(examples=12, steps=30)


@pytest.mark.soak
@pytest.mark.usefixtures("_stop_deadline")
def test_no_interleaving_makes_an_illegal_transition_long() -> None:
    run(examples=1000, steps=60)
