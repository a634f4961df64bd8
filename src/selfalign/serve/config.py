"""`ServeConfig`: everything that `selfalign serve` can be told."""

from dataclasses import dataclass, field
from pathlib import Path

from selfalign.acting import Acting
from selfalign.online.config import LearnConfig

MEGABYTE = 2**20


@dataclass(frozen=True)
class Limits:
    """What one client may ask of the server, and how long anything may take."""

    message_mb: float = 16.0
    """Largest message in MiB; a larger one closes the connection before it is read."""
    rate: float = 100.0
    """Requests a second of one connection; whoever sends faster is read more slowly."""
    connections: int = 128
    """Open connections; one more is answered with 503."""
    request_timeout: float = 10.0
    """Seconds from a request's arrival to its answer, waiting for its batch included."""
    idle_timeout: float = 600.0
    """Seconds between two requests of a connection, the time that a message takes to arrive included."""
    ping_interval: float = 20.0
    """Seconds between the server's pings, and how long it waits for the answer. A client that is in the middle of a
    message cannot answer, so this also bounds how slowly a message may come."""
    handshake_timeout: float = 10.0
    """Seconds for the opening handshake."""
    prompt_chars: int = 1000
    """Longest instruction; the tokenizer has a limit of its own."""
    image_side: int = 4096
    """Pixels of an image's longer side."""
    deviation: float = 100.0
    """Spreads of the robot's own play that a state may lie from its mean: degrees sent for radians lie beyond."""

    def __post_init__(self) -> None:
        _require_positive(self, "message_mb", "rate", "connections", "request_timeout", "idle_timeout")
        _require_positive(self, "ping_interval", "handshake_timeout", "prompt_chars", "image_side", "deviation")

    @property
    def message_bytes(self) -> int:
        return int(self.message_mb * MEGABYTE)


@dataclass(frozen=True)
class ServeConfig:
    """Serve a checkpoint to robots over WebSocket, as openpi's server does."""

    checkpoint: Path = Path("checkpoints/tiny")
    """Checkpoint directory."""
    contexts: Path | None = None
    """Folder of context files (`NAME.safetensors`, as `selfalign align` writes them) or of a `ContextStore`; read again
    on SIGHUP. None: the checkpoint's own robot only."""
    tokenizer: Path | None = None
    """PaliGemma's tokenizer, for pi0 and pi0.5 checkpoints that lack it."""
    robot: str | None = None
    """Name of the robot, or path of its file, with which contexts were fitted; None: none, so names are LeRobot's and
    numbers are taken as they come."""
    host: str = "127.0.0.1"
    """Address to listen on; anything but this machine's own needs --api-keys."""
    port: int = 8000
    """0: any free one."""
    api_keys: Path | None = None
    """File with one key a line (# starts a comment). Clients send `Authorization: Api-Key KEY`."""
    tls_certificate: Path | None = None
    """PEM file of the certificate chain: clients then connect with wss://."""
    tls_key: Path | None = None
    """PEM file of its private key; None: it is in the certificate's file."""
    allow_unprotected: bool = False
    """Listen beyond this machine without keys: whoever reaches the port can use the model."""
    max_batch: int = 16
    """Most requests in one forward; 1: no batching."""
    max_wait_ms: float = 5.0
    """How long a request may wait for others to join its forward. Nobody waits once every connection has asked."""
    num_steps: int = 10
    """Euler steps of the flow."""
    speed: float | None = None
    """What displacements are multiplied by; None: the checkpoint's own speed."""
    temperature: float | None = None
    """What the noise that samples start from is multiplied by; None: the checkpoint's own temperature."""
    device: str = "cpu"
    threads: int | None = None
    """Threads of the computation on a CPU; None: torch's choice."""
    rename: dict[str, str] = field(default_factory=dict)
    """Names that robots send, and what the model calls them: `--rename observation/image
    observation.images.base_0_rgb`."""
    learn: Path | None = None
    """Folder for online alignment: what robots do is kept there, and contexts are fitted to it while they act. None:
    nothing is learned."""
    learning: LearnConfig = field(default_factory=LearnConfig)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        _require_positive(self, "max_batch", "num_steps")
        Acting().but(self.speed, self.temperature)
        if not self.max_wait_ms >= 0 or not 0 <= self.port < 65536 or (self.threads is not None and self.threads < 1):
            raise ValueError(
                f"max_wait_ms must not be negative, the port lies in 0..65535 and threads are at least 1; got "
                f"max_wait_ms={self.max_wait_ms}, port={self.port}, threads={self.threads}"
            )
        if self.tls_key is not None and self.tls_certificate is None:
            raise ValueError("tls_key without tls_certificate: TLS needs both the key and the certificate")


def _require_positive(config: object, *names: str) -> None:
    wrong = [f"{name}={getattr(config, name)}" for name in names if not getattr(config, name) > 0]
    if wrong:
        raise ValueError(f"the server's settings must be positive: {', '.join(wrong)}")
