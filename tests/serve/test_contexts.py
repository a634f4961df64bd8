"""Which context an embodiment's name stands for."""

import dataclasses

import pytest
import torch

from align.factory import make_play, small_policy
from selfalign.align.store import ContextStore
from selfalign.serve.contexts import OWN, ContextTable
from serve.serving import robot_context, write_contexts


@pytest.fixture(scope="module")
def policy():
    return small_policy()


def test_files_and_a_store_in_one_folder_are_served_by_name(policy, tmp_path):
    store = ContextStore(write_contexts(policy, tmp_path))
    store.save(robot_context(policy, "arm", 5))
    store.save(newest := robot_context(policy, "arm", 6))
    table = ContextTable(policy, tmp_path)
    assert table.names == ["arm", "fast", "slow"] and not table.broken
    assert table.get("arm").context.distance(newest) == 0
    assert table.get("fast").stats.action.std[0] > 5 * table.get("slow").stats.action.std[0]


def test_a_checkpoint_brings_its_own_robot(policy):
    own = dataclasses.replace(policy, stats=make_play().stats())
    table = ContextTable(own)
    assert table.names == [OWN] and table.get(None) is table.get(OWN)
    assert table.get(None).context.distance(policy.model.prior()) == 0
    with pytest.raises(ValueError, match=r"no robot to serve: no --contexts was given.*selfalign align"):
        ContextTable(policy)


def test_a_name_is_needed_where_there_are_several(policy, tmp_path):
    table = ContextTable(policy, write_contexts(policy, tmp_path))
    with pytest.raises(LookupError, match="say which embodiment this is: send 'embodiment', one of fast, slow"):
        table.get(None)
    with pytest.raises(LookupError, match="embodiment 'sloth' cannot be served; known are fast, slow"):
        table.get("sloth")


def test_a_file_that_cannot_be_used_does_not_keep_the_others_from_being_served(policy, tmp_path):
    write_contexts(policy, tmp_path)
    robot_context(small_policy(1), "foreign").save(tmp_path / "foreign.safetensors")
    (tmp_path / "torn.safetensors").write_bytes((tmp_path / "slow.safetensors").read_bytes()[:200])
    robot_context(policy, "bare").with_info(norm_stats=None).save(tmp_path / "bare.safetensors")
    robot_context(policy, "nan").map(lambda t: t * torch.nan).save(tmp_path / "nan.safetensors")
    table = ContextTable(policy, tmp_path)
    assert table.names == ["fast", "slow"]
    for name, why in (
        ("foreign", "was fitted to model .* align this model to the body's play"),
        ("torn", "not a whole safetensors file"),
        ("bare", "carries no normalisation statistics"),
        ("nan", "weights that are NaN or infinite"),
    ):
        with pytest.raises(LookupError, match=f"embodiment '{name}' cannot be served: .*{why}"):
            table.get(name)


def test_nothing_usable_is_an_error_at_once(policy, tmp_path):
    with pytest.raises(ValueError, match="holds no context"):
        ContextTable(policy, tmp_path)
    robot_context(small_policy(1), "foreign").save(tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match=r"none of the contexts in .* can be served: foreign: .* was fitted to model"):
        ContextTable(policy, tmp_path)
    with pytest.raises(ValueError, match="is not a folder of contexts"):
        ContextTable(policy, tmp_path / "none")


def test_a_swap_serves_the_next_request_and_a_refused_one_changes_nothing(policy, tmp_path):
    table = ContextTable(policy, write_contexts(policy, tmp_path))
    before = table.get("slow")
    table.swap("slow", replacement := robot_context(policy, "slow", 7))
    assert table.get("slow").context.distance(replacement) == 0
    assert before.context.distance(robot_context(policy, "slow", 0)) == 0, "who is under way keeps the old one"
    with pytest.raises(ValueError, match="a context means nothing to another model"):
        table.swap("slow", robot_context(small_policy(1), "slow"))
    assert table.get("slow").context.distance(replacement) == 0


def test_a_refresh_reads_what_has_changed(policy, tmp_path):
    table = ContextTable(policy, write_contexts(policy, tmp_path))
    robot_context(policy, "new").save(tmp_path / "new.safetensors")
    (tmp_path / "fast.safetensors").unlink()
    table.refresh()
    assert table.names == ["new", "slow"]


def test_a_swap_while_the_folder_is_read_is_not_undone(policy, tmp_path, monkeypatch):
    learned = {}
    table = ContextTable(policy, write_contexts(policy, tmp_path), lambda name, given: learned.get(name, given))
    replacement, read = robot_context(policy, "slow", 7), table._read

    def interrupted():
        found = read()
        if not learned:
            learned["slow"] = replacement
            table.swap("slow", replacement)
        return found

    monkeypatch.setattr(table, "_read", interrupted)
    table.refresh()
    assert learned and table.get("slow").context.distance(replacement) == 0
