"""/v1/jobs/{id}/trials: the networks of an evaluation, or the trials of a sweep."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response

from cafe_core.jobs.trial_table import networks_csv, trials_csv
from cafe_core.spec.job import parse_job_spec
from cafe_core.spec.sweep import SweepSpec
from server import schemas
from server.auth.access import Reader
from server.auth.visibility import find_job
from server.deps import JobId, ServicesDep
from server.errors import problems
from server.files.trials import rows_of
from server.states import IN_RAY
from server.store.events import started_trials

router = APIRouter(prefix="/v1", tags=["results"])

PAGE = 1000
CSV: dict[int | str, dict[str, Any]] = {200: {"content": {"text/csv": {"schema": {"type": "string"}}}}}


@router.get("/jobs/{job_id}/trials", response_model=schemas.TrialPage, responses={**CSV, **problems(404, 422)})
def list_trials(
    job_id: JobId,
    principal: Reader,
    services: ServicesDep,
    after: Annotated[int, Query(ge=0, le=2**53, description="Skip this many rows: `next_after` of the previous page.")] = 0,
    limit: Annotated[
        int | None, Query(ge=1, le=10_000, description=f"Maximum number of rows. Default: {PAGE}, or all rows as CSV.")
    ] = None,
    format: Annotated[Literal["json", "csv"], Query(description="`csv`: a table with one line per trial.")] = "json",
) -> Response:
    """List the trials of a job, also while it runs.

    For an evaluation, including that of a condense job, each row is a network, in the order of training. For a sweep, each row is
    a trial, ordered by number.
    """
    with services.database.read() as session:
        job = find_job(session, principal, job_id)
        running = started_trials(session, job) if job.state in IN_RAY else set()
    spec = parse_job_spec(job.spec)
    bound = limit or (PAGE if format == "json" else None)
    rows = rows_of(services.settings.job_dir(job_id), spec, running, after=after, limit=bound)
    if format == "csv":
        lines = trials_csv(spec.space, rows) if isinstance(spec, SweepSpec) else networks_csv(rows)
        headers = {"Content-Disposition": f'attachment; filename="{job_id}-trials.csv"'}
        return Response("".join(lines), media_type="text/csv", headers=headers)
    page = schemas.TrialPage.model_validate({"data": rows, "next_after": after + len(rows)})
    return Response(page.model_dump_json(), media_type="application/json")
