# MuJoCo 3.3.7 ships no stubs for its compiled half; this says that any name may be there.
from typing import Any

def __getattr__(name: str) -> Any: ...
