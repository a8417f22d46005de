"""What Prometheus reads at /metrics. One process, the front, counts."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters since the start."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self.registry = registry
        self.requests = Counter(
            "lowbit_requests", "Requests answered", ["endpoint", "status"], registry=registry
        )
        self.seconds = Histogram(
            "lowbit_request_seconds",
            "From the first byte of a request to the last of its answer",
            ["endpoint"],
            registry=registry,
        )
        self.batches = Histogram(
            "lowbit_batch_rows", "Rows of a batch", buckets=SIZES, registry=registry
        )
        self.tokens = Counter("lowbit_tokens", "Tokens that workers read", registry=registry)
        self.gone = Counter(
            "lowbit_clients_gone", "Requests whose client left before the answer", registry=registry
        )
        self.deaths = Counter(
            "lowbit_worker_deaths",
            "Workers that ended while they had a batch or waited for one",
            registry=registry,
        )
        self.accepted = Gauge(
            "lowbit_rows_accepted", "Rows that are accepted and not answered", registry=registry
        )
        self.workers = Gauge("lowbit_workers", "Workers that are alive", registry=registry)

    def text(self) -> bytes:
        found: bytes = generate_latest(self.registry)
        return found
