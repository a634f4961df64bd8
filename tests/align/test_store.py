"""The store keeps every version, and a failure never touches what is in use."""

import errno
import os

import pytest
import torch

from align.factory import make_play, small_policy
from selfalign.align.offline import AlignConfig, align
from selfalign.align.store import ContextStore
from selfalign.model.context import ContextInfo, EmbodimentContext


def make_context(value: float, embodiment: str = "arm") -> EmbodimentContext:
    info = ContextInfo(embodiment, fingerprint="abc", norm_stats={"mode": "zscore"})
    return EmbodimentContext((torch.full((2, 3, 3), value),), (torch.full((2, 1, 3), -value),), info)


def assert_same(a: EmbodimentContext, b: EmbodimentContext) -> None:
    assert all(torch.equal(x, y) for x, y in zip(a.tensors, b.tensors, strict=True)) and a.info == b.info


def test_versions_are_kept_and_rolled_back_bit_for_bit(tmp_path):
    store = ContextStore(tmp_path / "contexts")
    contexts = [make_context(v) for v in (0.1, 0.2, 0.3)]
    assert [store.save(c) for c in contexts] == [1, 2, 3]
    assert store.list() == ["arm"] and store.versions("arm") == [1, 2, 3] and store.current("arm") == 3
    assert_same(store.load("arm"), contexts[2])
    assert store.rollback("arm") == 2
    assert_same(store.load("arm"), contexts[1])
    assert_same(store.load("arm", 3), contexts[2])
    # What is saved after a rollback is a new version, and does not overwrite the one that was rolled back.
    assert store.save(make_context(0.4)) == 4
    assert_same(store.load("arm", 3), contexts[2])
    assert store.rollback("arm", 1) == 1
    assert_same(ContextStore(tmp_path / "contexts").load("arm"), contexts[0])
    with pytest.raises(ValueError, match="version 1 is the oldest of 'arm'"):
        store.rollback("arm")


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "空 arm", "x%2Fy", "UR5e+panda-az+30", "current"])
def test_any_name_is_a_body_and_stays_inside_the_root(tmp_path, name):
    store = ContextStore(tmp_path / "root")
    store.save(make_context(0.5), name)
    store.save(make_context(0.7), "other")
    assert store.list() == sorted([name, "other"])
    assert_same(store.load(name), make_context(0.5))
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_errors_say_what_there_is(tmp_path):
    store = ContextStore(tmp_path)
    assert store.list() == [] and store.versions("arm") == []
    with pytest.raises(LookupError, match="holds no context of 'arm'; it holds nothing"):
        store.load("arm")
    store.save(make_context(0.1))
    with pytest.raises(LookupError, match="no context of 'leg'; it holds arm"):
        store.load("leg")
    with pytest.raises(LookupError, match=r"no version 7; it has \[1\]"):
        store.load("arm", 7)
    with pytest.raises(LookupError, match="no version 7"):
        store.rollback("arm", 7)
    with pytest.raises(ValueError, match="needs the name of its body"):
        store.save(make_context(0.1, embodiment=""))
    with pytest.raises(ValueError, match="fitted to model abc, but this model is xyz"):
        store.load("arm", fingerprint="xyz")
    (tmp_path / "arm" / "current").write_text("9\n")
    with pytest.raises(ValueError, match=r"says '9', which is none of the versions \[1\]"):
        store.load("arm")
    store.rollback("arm", 1)
    assert_same(store.load("arm"), make_context(0.1))


def test_a_damaged_file_is_an_error_and_older_versions_stay(tmp_path):
    store = ContextStore(tmp_path)
    store.save(make_context(0.1))
    store.save(make_context(0.2))
    path = tmp_path / "arm" / "0002.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        store.load("arm")
    store.rollback("arm")
    assert_same(store.load("arm"), make_context(0.1))


@pytest.mark.parametrize("failing", [1, 2])
def test_a_full_disk_leaves_the_version_in_use(tmp_path, monkeypatch, failing):
    """The first rename brings the context, the second the pointer to it."""
    store, real, calls = ContextStore(tmp_path), os.replace, []
    store.save(make_context(0.1))

    def full(source, target):
        calls.append(target)
        if len(calls) == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="'arm' was not saved, what was stored is unchanged: No space left") as caught:
            store.save(make_context(0.2))
    assert caught.value.errno == errno.ENOSPC
    assert sorted(path.name for path in (tmp_path / "arm").iterdir()) == ["0001.safetensors", "current"]
    assert_same(store.load("arm"), make_context(0.1))
    assert store.save(make_context(0.3)) == 2


def test_a_crash_before_the_pointer_moves_leaves_the_version_in_use(tmp_path, monkeypatch):
    store = ContextStore(tmp_path)
    store.save(make_context(0.1))
    with monkeypatch.context() as patch:
        patch.setattr(ContextStore, "_use", lambda *_: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            store.save(make_context(0.2))
        with pytest.raises(SystemExit):
            store.save(make_context(0.2), "new body")
    assert store.current("arm") == 1 and store.list() == ["arm"]
    assert_same(store.load("arm"), make_context(0.1))
    assert store.save(make_context(0.3)) == 3


def test_nearest_finds_the_body_that_the_play_is_of(tmp_path):
    """Two robots, of which one holds each command for a whole episode."""
    policy, store = small_policy(), ContextStore(tmp_path)
    config = AlignConfig(steps=60, eval_samples=16, eval_times=2)
    plays = {"restless": make_play(seed=1), "steady": make_play(seed=2, steady=True)}
    for name, play in plays.items():
        store.save(align(policy, play, config=config, progress=False).fitted, name)
    store.save(store.load("steady").with_info(fingerprint="another model"), "foreign")
    for name, play in plays.items():
        nearest = store.nearest(policy, play)
        assert nearest.embodiment == name, nearest
        assert set(nearest.losses) == {"restless", "steady"} and nearest.loss == min(nearest.losses.values())


def test_nearest_without_a_comparable_context_is_an_error(tmp_path):
    store = ContextStore(tmp_path)
    store.save(make_context(0.1))
    with pytest.raises(ValueError, match=r"none of the 1 contexts in .* is of model"):
        store.nearest(small_policy(), make_play())
