"""`selfalign serve` with wrong inputs: one line that says what is wrong and what to do, and status 2."""

import socket

import pytest

from align.factory import small_policy
from selfalign.checkpoint import save_checkpoint
from selfalign.cli import main
from serve.serving import robot_context, write_contexts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, contexts of it and of another model, and files that are no certificates and no keys."""
    folder, policy = tmp_path_factory.mktemp("serve"), small_policy()
    save_checkpoint(policy, folder / "checkpoint")
    write_contexts(policy, folder / "contexts")
    robot_context(small_policy(1), "foreign").save(folder / "others" / "foreign.safetensors")
    (folder / "empty").mkdir()
    (folder / "text").write_text("nothing")
    return folder


@pytest.fixture(scope="module")
def taken():
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--host 0.0.0.0", ["refusing to listen on 0.0.0.0 without keys", "--api-keys FILE", "--allow-unprotected"]),
        ("--checkpoint nowhere", ["nowhere"]),
        ("--port {taken}", ["cannot listen on 127.0.0.1, port {taken}", "already in use", "another --port"]),
        ("--host no.such.host.invalid --allow-unprotected", ["cannot listen on no.such.host.invalid", "--host"]),
        ("--contexts nowhere", ["nowhere is not a folder of contexts", "selfalign align --out"]),
        ("--contexts text", ["text is not a folder of contexts"]),
        ("--contexts empty", ["empty holds no context", "selfalign align"]),
        ("--contexts others", ["foreign", "was fitted to model", "align this model to the body's play"]),
        ("--tls-certificate none.pem", ["TLS cannot start with certificate none.pem", "No such file"]),
        ("--tls-certificate text --tls-key text", ["TLS cannot start with certificate text and key text"]),
        ("--api-keys none", ["No such file", "none"]),
        ("--api-keys text", ["key 1 is too short"]),
        ("--learn text", ["text"]),
        ("--learn learned --executed 9", ["--executed 9 is more than the 4 actions of a chunk"]),
    ],
)
def test_a_mistake_ends_with_a_line_that_says_it(folder, taken, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(folder)
    given = {"--checkpoint": "checkpoint", "--contexts": "contexts", "--port": "0"}
    chosen = arguments.format(taken=taken).split()
    given = {name: value for name, value in given.items() if name not in chosen}
    assert main(["serve", *chosen, *(word for pair in given.items() for word in pair)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("selfalign: ")]
    assert len(lines) == 1 and all(word.format(taken=taken) in lines[0] for word in words), lines


@pytest.mark.parametrize("flags", ["--device cuda", "--aligner-device cuda --learn {folder}/learn"])
def test_a_gpu_that_is_not_there_is_told_at_the_start(folder, monkeypatch, capsys, flags):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    told = ["serve", "--checkpoint", str(folder / "checkpoint"), *flags.format(folder=folder).split()]
    assert main([*told, "--contexts", str(folder / "contexts")]) == 2
    assert "this torch has no CUDA" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [("--port 70000", "port=70000"), ("--tls-key text", "tls_key without tls_certificate"), ("--port x", "port")],
)
def test_settings_that_cannot_be_end_with_status_2_too(capsys, arguments, words):
    with pytest.raises(SystemExit) as end:
        main(["serve", *arguments.split()])
    assert end.value.code == 2 and words in capsys.readouterr().err
