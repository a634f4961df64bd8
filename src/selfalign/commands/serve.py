"""`selfalign serve`: answer robots over the network."""

from dataclasses import dataclass

from selfalign.serve.config import ServeConfig


@dataclass(frozen=True)
class ServeCommand(ServeConfig):
    """Answer robots over WebSocket (openpi's protocol): one model, a context for each robot."""


def run(config: ServeCommand) -> None:
    """Serves until it is told to stop.

    Raises:
        RuntimeError: the extra `serve` is not installed.
        ValueError, OSError: what was given cannot be served (see `serve.server.run`).
    """
    try:
        from selfalign.serve import server
    except ModuleNotFoundError as error:
        raise RuntimeError(f"serving needs {error.name}: pip install 'selfalign[serve]'") from error
    server.run(config)
