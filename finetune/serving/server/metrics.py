"""Numbers for Prometheus, in a registry of their own."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finetune.serving.server.catalogue import Catalogue
from finetune.serving.server.jobs import Job
from finetune.serving.server.lifecycle import Lifecycle
from finetune.serving.server.streaming import CLIENT_GONE

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_ENDPOINTS = frozenset(
    {"/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"}
    | {"/health", "/metrics"}
)


class Metrics:
    """Counts requests and tokens, and asks the engine for its state when it is scraped."""

    def __init__(self, catalogue: Catalogue, lifecycle: Lifecycle) -> None:
        self.catalogue = catalogue
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "finetune_requests", "requests by endpoint and status", ["endpoint", "status"], registry=self.registry
        )
        self.tokens = Counter(
            "finetune_tokens", "tokens read (prompt, cached) and written", ["model", "kind"], registry=self.registry
        )
        self.first = Histogram(
            "finetune_time_to_first_token_seconds", "of an answer", ["model"], buckets=SECONDS, registry=self.registry
        )
        self.whole = Histogram(
            "finetune_answer_seconds", "of all answers of a request", ["model"], buckets=SECONDS, registry=self.registry
        )
        self.registry.register(_State(catalogue, lifecycle))
        ProcessCollector(registry=self.registry)

    def record(self, job: Job) -> None:
        """Count a job that has ended, whole or not."""
        model = self.catalogue.label(job.stamp.voice)
        self.whole.labels(model).observe(time.monotonic() - job.began)
        if job.first is not None:
            self.first.labels(model).observe(job.first - job.began)
        each = len(job.tickets) // job.prompts
        for number, finish in job.finished.items():
            self.tokens.labels(model, "completion").inc(finish.completion_tokens)
            if number % each == 0:
                self.tokens.labels(model, "prompt").inc(finish.prompt_tokens)
                self.tokens.labels(model, "cached").inc(finish.cached_tokens)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class Counted:
    """Counts every response by endpoint and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = CLIENT_GONE

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            self.metrics.requests.labels(_endpoint(scope["path"]), str(status)).inc()


class _State(Collector):
    """What is true at the moment of the scrape."""

    def __init__(self, catalogue: Catalogue, lifecycle: Lifecycle) -> None:
        self.catalogue, self.lifecycle = catalogue, lifecycle

    def collect(self) -> Iterator[Metric]:
        stats = self.lifecycle.engine.stats
        yield GaugeMetricFamily("finetune_rows_running", "answers being written", value=stats.running)
        yield GaugeMetricFamily("finetune_rows_waiting", "answers waiting for a row", value=stats.waiting)
        yield GaugeMetricFamily("finetune_requests_in_flight", "HTTP requests", value=self.lifecycle.in_flight)
        yield GaugeMetricFamily("finetune_adapters_loaded", "adapters", value=len(self.catalogue.bank.names))
        yield GaugeMetricFamily("finetune_draining", "1: nothing new is taken", value=int(self.lifecycle.draining))
        yield CounterMetricFamily("finetune_generated_tokens", "by the engine", value=stats.completion_tokens)
        yield CounterMetricFamily("finetune_engine_steps", "forward passes", value=stats.steps)
        yield CounterMetricFamily("finetune_answers_failed", "by the engine", value=stats.failed)
        yield CounterMetricFamily("finetune_answers_cancelled", "clients left", value=stats.cancelled)
        yield GaugeMetricFamily("finetune_prefix_cache_tokens", "kept for later prompts", value=stats.prefix_tokens)


def _endpoint(path: str) -> str:
    """One of a few values, whatever is asked for."""
    if path.startswith("/v1/models/"):
        return "/v1/models/{model}"
    return path if path in _ENDPOINTS else "other"
