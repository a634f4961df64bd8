"""The peak of a process's resident memory over a piece of work."""

import re
import resource
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Largest resident memory of this process since this was made.

    Linux forgets the peak when it is asked to. Where it cannot be asked, the peak is that of the process's whole life.
    """

    def __init__(self) -> None:
        try:
            _CLEAR.write_text("5")
            self.forgotten = True
        except OSError:
            self.forgotten = False

    @property
    def megabytes(self) -> float:
        found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text()) if self.forgotten else None
        kilobytes = int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return round(kilobytes * 1024 / 1e6, 1)
