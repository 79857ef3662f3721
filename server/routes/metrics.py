"""/metrics: metrics for Prometheus."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Request, Response

from server.auth.access import MetricsReader
from server.errors import problems
from server.telemetry.scraping import Scraper

router = APIRouter(tags=["health"])

_TYPES = ("text/plain", "application/openmetrics-text")


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {type: {"schema": {"type": "string"}} for type in _TYPES}}, **problems(422)},
)
async def metrics(request: Request, _: MetricsReader, accept: Annotated[str, Header()] = "") -> Response:
    """Get the metrics of the server.

    In Prometheus's text format, or in OpenMetrics if `Accept` names it. Needs a key of scope admin, or the token that the
    operator has configured for Prometheus.
    """
    scraper: Scraper = request.app.state.scraper
    body, media_type = await scraper.answer(accept)
    return Response(body, media_type=media_type)
