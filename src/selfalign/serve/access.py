"""Who may connect: API keys, the rule for addresses beyond this machine, TLS, and how often a client may ask."""

import hashlib
import hmac
import ipaddress
import re
import ssl
import time
from collections.abc import Iterable
from pathlib import Path

from selfalign.serve.config import ServeConfig

SCHEME = "Api-Key "
MIN_KEY_LENGTH = 16
_COMMENT = re.compile(r"(^|\s)#.*")


class ApiKeys:
    """Keys that open the server, kept as digests.

    A comparison takes as long for a wrong key as for a right one, wherever they differ and whichever key it is.
    """

    def __init__(self, keys: Iterable[str]):
        self._digests = [_digest(key) for key in keys]

    @classmethod
    def read(cls, path: Path) -> "ApiKeys":
        """One key a line; empty lines and what follows a # (at the start, or after a space) are left out.

        Raises:
            OSError: the file cannot be read.
            ValueError: no key, or one that can be guessed.
        """
        keys = [key for line in path.read_text().splitlines() if (key := _COMMENT.sub("", line).strip())]
        short = [number for number, key in enumerate(keys, 1) if len(key) < MIN_KEY_LENGTH or " " in key]
        if short or not keys:
            reason = f"key {short[0]} is too short or has a space" if short else "it holds no key"
            raise ValueError(
                f"{path}: {reason}; write keys of at least {MIN_KEY_LENGTH} characters, one a line, for example from "
                "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
            )
        return cls(keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def admit(self, authorization: str | None) -> bool:
        """Whether a request with this `Authorization` header may come in; without configured keys, every one may."""
        if not self._digests:
            return True
        given = _digest((authorization or "").removeprefix(SCHEME))
        matches = [
            hmac.compare_digest(given, digest) for digest in self._digests
        ]  # all of them, whatever the first says
        return any(matches) and (authorization or "").startswith(SCHEME)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def check_exposure(config: ServeConfig) -> None:
    """Raises `ValueError` where the server would listen beyond this machine without keys."""
    if config.api_keys is None and not config.allow_unprotected and not is_loopback(config.host):
        raise ValueError(
            f"refusing to listen on {config.host or 'every address'} without keys: whoever reaches it could use the "
            "model. Give --api-keys FILE, or listen on 127.0.0.1 and forward the port (ssh -L), or say "
            "--allow-unprotected"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address. Names other than localhost may mean anything."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def tls_context(config: ServeConfig) -> ssl.SSLContext | None:
    """TLS 1.2 or newer with the configured certificate; None without one.

    Raises:
        ValueError: the files are missing, or do not belong together.
    """
    if config.tls_certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(config.tls_certificate, config.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(
            f"TLS cannot start with certificate {config.tls_certificate} and key {config.tls_key or '(same file)'}: "
            f"{error}"
        ) from error
    return context


class RateLimit:
    """A token bucket: `rate` requests a second, and as many at once after a pause of a second."""

    def __init__(self, rate: float, clock=time.monotonic):
        self._rate, self._clock = rate, clock
        self._tokens, self._last = max(1.0, rate), clock()

    def delay(self) -> float:
        """Counts a request and says how many seconds to wait before it is served; 0 most of the time."""
        now = self._clock()
        self._tokens = min(max(1.0, self._rate), self._tokens + (now - self._last) * self._rate) - 1.0
        self._last = now
        return max(0.0, -self._tokens / self._rate)
