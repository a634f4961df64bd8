"""What stands beside every result."""

from selfalign.provenance import command


def test_the_command_tells_no_path_of_the_machine(monkeypatch):
    arguments = ["--checkpoint", "/home/someone/tiny", "--json", "benchmarks/results/a b.json"]
    monkeypatch.setattr("sys.argv", ["/opt/bin/selfalign", *arguments])
    assert command() == "selfalign --checkpoint tiny --json 'benchmarks/results/a b.json'"
