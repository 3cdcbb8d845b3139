"""What a server tells Prometheus. Names and meanings: docs/serving.md."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wrinklefree.engine import Engine
from wrinklefree.server.scheduler import Scheduler
from wrinklefree.server.settings import ServerSettings
from wrinklefree.server.statistics import Distribution
from wrinklefree.version import __version__

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_CLIENT_LEFT = 499  # nginx's status of a request whose client did not wait for the answer


class Metrics:
    """All metrics of one server, in a registry of its own."""

    def __init__(self, engine: Engine, settings: ServerSettings, scheduler: Scheduler) -> None:
        registry = self._registry = CollectorRegistry(auto_describe=False)
        self.requests = Counter(
            "wrinklefree_requests", "HTTP requests that have ended.", ("route", "method", "status"), registry=registry
        )
        self.in_progress = Gauge("wrinklefree_requests_in_progress", "HTTP requests under way.", registry=registry)
        registry.register(_OfScheduler(engine, settings, scheduler))
        ProcessCollector(registry=registry)

    def text(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics and their content type, in the format that the header ``Accept`` asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class CountRequests:
    """The layer of the application (pure ASGI) that counts requests; around all others, so that refusals count too."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count it when it has ended."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        status = _CLIENT_LEFT

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._metrics.in_progress.inc()
        try:
            await self._app(scope, receive, noting)
        finally:
            self._metrics.in_progress.dec()
            route = getattr(scope.get("route"), "path", "unknown")  # what clients make up is no label
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.requests.labels(route, method, str(status)).inc()


class _OfScheduler(Collector):
    """Reads the scheduler's statistics when somebody asks for the metrics; nothing is counted twice."""

    def __init__(self, engine: Engine, settings: ServerSettings, scheduler: Scheduler) -> None:
        self._settings = settings
        self._scheduler = scheduler
        self._build = {
            "version": __version__,
            "model": settings.model_id,
            "kernels": engine.kernels_name,
            "layout": engine.layout,
            "threads": str(engine.threads),
            "context": str(engine.context),
        }

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics as they are now."""
        build = GaugeMetricFamily("wrinklefree_build_info", "What is running; always 1.", labels=list(self._build))
        build.add_metric(list(self._build.values()), 1)
        yield build
        yield from self._gauges()
        yield from self._counters()
        yield from self._histograms()

    def _gauges(self) -> Iterable[Metric]:
        scheduler, settings = self._scheduler, self._settings
        for name, says, value in (
            ("running", "Answers that are being computed.", scheduler.running),
            ("waiting", "Answers that wait for a slot.", scheduler.waiting),
            ("slots", "Answers that can be computed at a time.", settings.slots),
            ("queue_limit", "Answers that may wait; the next one is refused.", settings.queue),
            ("ready", "1 while requests are taken.", int(scheduler.ready)),
        ):
            yield GaugeMetricFamily(f"wrinklefree_{name}", says, value)

    def _counters(self) -> Iterable[Metric]:
        of = self._scheduler.statistics
        for name, says, value in (
            ("prompt_tokens", "Tokens of prompts, those that were not computed again included.", of.prompt_tokens),
            ("cached_prompt_tokens", "Tokens of prompts that were not computed again.", of.cached_tokens),
            ("generated_tokens", "Tokens of answers.", of.generated_tokens),
            ("answer_forwards", "Passes through the model, counted for each answer.", of.forwards),
            ("passes", "Passes through the model, each for all answers together.", of.passes),
            ("pass_seconds", "Time in passes.", of.pass_seconds),
        ):
            yield CounterMetricFamily(f"wrinklefree_{name}", says, value)
        answers = CounterMetricFamily("wrinklefree_answers", "Answers that have ended, by how.", labels=["end"])
        for end, count in dict(of.ended).items():
            answers.add_metric([end], count)
        refused = CounterMetricFamily("wrinklefree_refused", "Answers that were not taken in, by why.", labels=["code"])
        for code, count in dict(of.refused).items():
            refused.add_metric([code], count)
        yield answers
        yield refused

    def _histograms(self) -> Iterable[Metric]:
        of = self._scheduler.statistics
        for name, says, found in (
            ("queue_seconds", "Waiting for a slot.", of.queue_seconds),
            ("first_token_seconds", "From arrival to the first token.", of.first_token_seconds),
            ("between_tokens_seconds", "Between tokens of an answer.", of.between_tokens_seconds),
            ("answer_seconds", "From arrival to the end of an answer.", of.request_seconds),
            ("tokens_per_forward", "Tokens of an answer for each pass.", of.tokens_per_forward),
        ):
            yield HistogramMetricFamily(f"wrinklefree_{name}", says, *_cumulative(found))


def _cumulative(found: Distribution) -> tuple[list[tuple[str, float]], float]:
    """Return Prometheus's buckets (numbers up to a bound, by that bound) and the sum."""
    counts = accumulate(list(found.counts))
    bounds = [*(f"{bound:g}" for bound in found.bounds), "+Inf"]
    return [(bound, float(count)) for bound, count in zip(bounds, counts, strict=True)], found.total
