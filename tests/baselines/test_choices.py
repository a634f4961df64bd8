"""What tuning has chosen: written down by method, read by the methods, and compared only where tuning was fair."""

import json

import pytest

from baselines.factory import QUICK
from selfalign.baselines import METHODS, choices
from selfalign.baselines.choices import add_choice, check_fair, chosen, read_choices
from selfalign.baselines.encoder_run import EncoderRun
from selfalign.baselines.methods import configured


def tuned(method: str, config: dict, trials: int = 3) -> dict:
    """As `tune` gives it; the last trial is the best."""
    rows = [{"config": {**config, "idle": i}, "score": 1.0 - 0.1 * i} for i in range(trials)]
    told = {"seed": 1_000_000, "bodies": ["camera a"], "fingerprint": "0123", "search": dict.fromkeys(config, "")}
    return {"method": method, "trials": rows, "best": trials - 1, **told}


def test_the_settings_that_were_searched_are_kept_by_method(tmp_path):
    path = tmp_path / "choices.json"
    add_choice(tuned("lora", {"rank": 2}), path)
    add_choice(tuned("encoder", {"training": {"rank": 8}}) | {"search": {"training.rank": ""}}, path)
    add_choice(tuned("lora", {"rank": 4}), path)
    kept = read_choices(path)
    assert list(kept) == ["encoder", "lora"]
    assert kept["lora"]["settings"] == {"rank": 4} and kept["encoder"]["settings"] == {"training.rank": 8}
    assert kept["lora"]["score"] == pytest.approx(0.8) and kept["lora"]["default_score"] == 1.0


def test_what_is_committed_is_what_its_methods_take_and_was_chosen_fairly():
    kept = read_choices()
    for name in kept:
        configured(METHODS[name], kept[name]["settings"])
        assert kept[name]["settings"].keys() == METHODS[name].search.keys()
    assert len({entry["trials"] for entry in kept.values()}) <= 1
    assert min((entry["seed"] for entry in kept.values()), default=1_000_000) >= 1_000_000
    assert all(chosen(name) == (kept[name]["settings"] if name in kept else {}) for name in QUICK)


def test_an_encoder_is_trained_as_was_chosen(monkeypatch):
    monkeypatch.setattr(choices, "_committed", lambda: {"encoder": {"settings": {"training.rank": 7}, "trials": 1}})
    assert EncoderRun().training().rank == 7
    told = EncoderRun(rank=3, steps=11).training()
    assert (told.rank, told.steps) == (3, 11)


def test_unequal_tuning_is_refused():
    few, many = {"trials": 2}, {"trials": 16}
    check_fair(["pad", "lora"], {"pad": many, "lora": many, "prompt": few})
    check_fair(["pad", "lora"], {})
    with pytest.raises(ValueError, match=r"has: pad 16, lora 2; .*the same N"):
        check_fair(["pad", "lora"], {"pad": many, "lora": few})
    for told, (one, other) in {"fingerprint": ("a", "b"), "seed": (1_000_000, 1_000_001)}.items():
        with pytest.raises(ValueError, match=f"has another {told} for each of pad, lora"):
            check_fair(["pad", "lora"], {"pad": {**many, told: one}, "lora": {**many, told: other}})
    with pytest.raises(ValueError, match="pad 16, lora 0"):
        check_fair(["pad", "lora"], {"pad": many})


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "choices.json"
    path.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_choices(path)
    path.write_text(json.dumps({"format": "selfalign-tune-1"}))
    with pytest.raises(ValueError, match="holds no choices"):
        add_choice(tuned("lora", {"rank": 2}), path)
    with pytest.raises(ValueError, match="nothing to choose"):
        add_choice({**tuned("lora", {"rank": 2}), "best": None}, tmp_path / "new.json")
