"""`Aligner`: the server's end of the process that measures and aligns. It is started when it is needed, and again."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import selfalign
from selfalign.online.jobs import Job, to_json
from selfalign.online.worker import WorkerSettings


class AlignerError(RuntimeError):
    """A job without result: the process has died, took too long, or says what is wrong."""


class Aligner:
    """Runs one job at a time in a process of its own.

    Args:
        settings: what the process is told.
        timeout: seconds of a job, the start of the process included.
    """

    COMMAND = ("-m", "selfalign.online.worker")
    """What Python is to run."""

    def __init__(self, settings: WorkerSettings, timeout: float):
        self._settings, self._timeout = settings, timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._turn = threading.Lock()

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return None if self._process is None else self._process.pid

    def run(self, job: Job) -> dict[str, Any]:
        """The job's reply.

        Raises:
            AlignerError: there is none; the next job gets a new process if this one has ended.
        """
        with self._turn:
            reply = self._exchange(self._started(), job)
        if "error" in reply:
            raise AlignerError(reply["error"])
        return reply

    def _exchange(self, process: "subprocess.Popen[bytes]", job: Job) -> dict[str, Any]:
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(to_json(job)).encode() + b"\n")
            process.stdin.flush()
            return json.loads(self._line(process))
        except BrokenPipeError as error:
            self._end()
            raise AlignerError(f"the aligner's process {_last_words(process.wait())}") from error
        except json.JSONDecodeError as error:
            self._end()
            raise AlignerError("the aligner's process wrote something else than a reply, and was ended") from error
        except OSError as error:
            self._end()
            raise AlignerError(f"the aligner's process {error}") from error

    def close(self) -> None:
        """Ends the process, whatever it is doing; a `run` in another thread raises."""
        self._closed = True
        if (process := self._process) is not None:
            process.kill()
        with self._turn:
            self._end()

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._closed:
            raise AlignerError("the aligner's process is not started any more: the server is stopping")
        if self._process is not None and self._process.poll() is not None:
            self._end()  # it died between two jobs
        if self._process is None:
            package = Path(selfalign.__file__).parents[1]
            path = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
            self._process = self._spawn(path)
            if self._closed:  # while it was started
                self._process.kill()
        return self._process

    def _spawn(self, path: str) -> "subprocess.Popen[bytes]":
        try:
            return subprocess.Popen(
                [sys.executable, *self.COMMAND, self._settings.to_json()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C in a terminal is for the server
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(self._settings.threads)},
            )
        except OSError as error:
            raise AlignerError(f"the aligner's process cannot be started: {error}") from error

    def _line(self, process: "subprocess.Popen[bytes]") -> bytes:
        """The next line that the process writes."""
        assert process.stdout is not None
        end, data = time.monotonic() + self._timeout, b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not data.endswith(b"\n"):
                if not selector.select(max(0.0, end - time.monotonic())):
                    raise TimeoutError(f"took longer than {self._timeout:g} s and was ended")
                if not (part := os.read(process.stdout.fileno(), 65536)):
                    raise OSError(_last_words(process.wait()))
                data += part
        return data

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what could not be written never will be
                    pipe.close()


def _last_words(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with status {code}; the server's standard error has the reason"
