"""What `/metrics` tells Prometheus."""

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The counters of one server. Labels take few values: nothing that a client can make up becomes one."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._gauges: dict[str, Gauge] = {}
        self.connections = Gauge("selfalign_connections", "Open connections", registry=registry)
        self.refused = Counter(
            "selfalign_refused_total", "Connections that were refused", ["reason"], registry=registry
        )
        self.requests = Counter(
            "selfalign_requests_total", "Requests by outcome", ["embodiment", "outcome"], registry=registry
        )
        self.latency = Histogram(
            "selfalign_request_seconds", "From a request's arrival to its answer", registry=registry, buckets=SECONDS
        )
        self.forward = Histogram("selfalign_forward_seconds", "Of one forward", registry=registry, buckets=SECONDS)
        self.batch = Histogram(
            "selfalign_batch_size",
            "Requests that shared a request's forward",
            registry=registry,
            buckets=(1, 2, 4, 8, 16, 32, 64),
        )

    def learn(self, status: Mapping[str, Mapping[str, Any]]) -> None:
        """Takes over what online alignment says of each embodiment (`Learner.status`)."""
        for name, body in status.items():
            self._gauge("buffer_bytes", "Of the steps that are kept").labels(name).set(body["buffer"]["bytes"])
            self._gauge("lost_steps", "Steps that could not be kept").labels(name).set(body["lost_steps"])
            self._gauge("context_version", "Version of the context in use").labels(name).set(body["version"])
            self._gauge("drifted", "1 while the robot is not what it was").labels(name).set(body["drift"] == "drifted")
            for kind, count in body["counts"].items():
                self._gauge("events", "Of the journal", "kind").labels(name, kind).set(count)
            if body["losses"]:
                loss = body["losses"][-1][1]["live"]
                self._gauge("play_loss", "Of the last window, under the context in use").labels(name).set(loss)

    def _gauge(self, name: str, about: str, *labels: str) -> Gauge:
        if name not in self._gauges:
            self._gauges[name] = Gauge(f"selfalign_{name}", about, ["embodiment", *labels], registry=self._registry)
        return self._gauges[name]

    def render(self) -> bytes:
        """Everything, in Prometheus's text format."""
        return generate_latest(self._registry)
