"""Keys, addresses, certificates and rates."""

import hmac
import itertools
from pathlib import Path

import pytest

from selfalign.serve import access
from selfalign.serve.access import ApiKeys, RateLimit, check_exposure, is_loopback, tls_context
from selfalign.serve.config import Limits, ServeConfig

KEY = "a-key-that-nobody-guesses"


@pytest.mark.parametrize(
    ("header", "admitted"),
    [
        (f"Api-Key {KEY}", True),
        ("Api-Key another-key-of-somebody", True),
        ("Api-Key a#key#with#a#hash#in#it", True),
        (f"Api-Key {KEY}x", False),
        (f"Api-Key {KEY[:-1]}", False),
        (KEY, False),
        (f"Bearer {KEY}", False),
        ("Api-Key ", False),
        ("Api-Key \udcff\udcfe", False),
        ("", False),
        (None, False),
    ],
)
def test_only_a_configured_key_is_admitted(tmp_path, header, admitted):
    path = tmp_path / "keys"
    path.write_text(f"# of the arm\n{KEY}\n\nanother-key-of-somebody  # of the other\na#key#with#a#hash#in#it\n")
    assert ApiKeys.read(path).admit(header) is admitted


def test_every_key_is_compared_in_constant_time_whichever_matches(monkeypatch):
    compared, compare = [], hmac.compare_digest

    def spy(a, b):
        compared.append(len(a) == len(b))
        return compare(a, b)

    monkeypatch.setattr(access.hmac, "compare_digest", spy)
    keys = ApiKeys([KEY, KEY + "2", KEY + "3"])
    for given in (KEY, KEY + "3", "x"):
        keys.admit(f"Api-Key {given}")
    assert compared == [True] * 9


@pytest.mark.parametrize(
    ("text", "why"), [("", "no key"), ("# none\n", "no key"), ("secret\n", "too short"), ("a b " * 9, "a space")]
)
def test_a_file_without_a_good_key_is_refused(tmp_path, text, why):
    (tmp_path / "keys").write_text(text)
    with pytest.raises(ValueError, match=f"{why}.*write keys of at least 16 characters"):
        ApiKeys.read(tmp_path / "keys")


def test_without_keys_everyone_is_admitted():
    assert ApiKeys(()).admit(None)


@pytest.mark.parametrize(
    ("host", "own"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)]
    + [("", False), ("192.168.0.4", False), ("robot.example", False), ("localhost.example", False)],
)
def test_addresses_beyond_this_machine_need_keys_or_force(tmp_path, host, own):
    assert is_loopback(host) is own
    if own:
        check_exposure(ServeConfig(host=host))
    else:
        with pytest.raises(ValueError, match=r"refusing to listen on .* without keys.*--api-keys FILE"):
            check_exposure(ServeConfig(host=host))
    check_exposure(ServeConfig(host=host, allow_unprotected=True))
    check_exposure(ServeConfig(host=host, api_keys=tmp_path / "keys"))


def test_certificates_that_cannot_be_used_are_named(tmp_path):
    (tmp_path / "cert.pem").write_text("nothing")
    assert tls_context(ServeConfig()) is None
    for path in (tmp_path / "cert.pem", tmp_path / "none.pem"):
        with pytest.raises(ValueError, match=f"TLS cannot start with certificate .*{path.name}"):
            tls_context(ServeConfig(tls_certificate=path))


def test_a_rate_is_kept_over_any_second():
    now = [0.0]
    limit, served = RateLimit(10.0, lambda: now[0]), []
    for _ in range(60):
        now[0] += limit.delay()
        served.append(now[0])
    assert served[:10] == [0.0] * 10, "a second's worth at once"
    assert all(b - a >= 0.1 - 1e-9 for a, b in itertools.pairwise(served[10:]))
    now[0] += 60
    assert [limit.delay() for _ in range(10)] == [0.0] * 10


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Limits(rate=0), "must be positive: rate=0"),
        (lambda: Limits(message_mb=float("nan")), "must be positive: message_mb=nan"),
        (lambda: ServeConfig(max_batch=0), "must be positive: max_batch=0"),
        (lambda: ServeConfig(speed=0.0), "the speed of acting must be positive"),
        (lambda: ServeConfig(max_wait_ms=-1), "max_wait_ms=-1"),
        (lambda: ServeConfig(port=70000), "port=70000"),
        (lambda: ServeConfig(tls_key=Path("key.pem")), "tls_key without tls_certificate"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
