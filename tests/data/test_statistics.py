import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.factory import BODIES, make_episode
from selfalign.commands import inspect
from selfalign.commands.inspect import InspectConfig
from selfalign.commands.stats import StatsConfig, run
from selfalign.data import lerobot
from selfalign.data.lerobot import LeRobotWriter
from selfalign.data.normalize import NormStats
from selfalign.data.sources import SourceData
from selfalign.data.statistics import BLOCK, norm_stats, trajectories
from selfalign.embodiments import DeltaActions, Embodiment, Part, make_bool_mask

JOINTS = Part(("a", "b", "c", "grip"), ("q",))
ROBOT = Embodiment("four", {"base_0_rgb": ("scene",)}, (JOINTS,), (JOINTS,), (DeltaActions(make_bool_mask(3, -1)),))


def recordings(*lengths: int, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=(n, 4)).astype(np.float32), rng.normal(2, 3, (n, 4)).astype(np.float32)) for n in lengths]


def test_statistics_of_recordings_are_numpys():
    given = recordings(30, 1, 200)
    stats = norm_stats(given, "quantile", clip=2.0)
    state, action = (np.concatenate(x).astype(float) for x in zip(*given, strict=True))
    np.testing.assert_allclose(stats.state.mean, state.mean(0), atol=1e-12)
    np.testing.assert_allclose(stats.action.std, action.std(0), rtol=1e-9)
    np.testing.assert_allclose(stats.action.q99, np.quantile(action, 0.99, axis=0), rtol=1e-6)
    assert (stats.mode, stats.clip, stats.action.count) == ("quantile", 2.0, 231)


def test_statistics_of_a_robot_are_of_the_chunks_that_its_model_sees():
    """Plain loops over every (t, k); what lies beyond an episode's end is not counted."""
    given, horizon = recordings(12, 3, BLOCK + 5), 6
    seen = []
    for state, action in given:
        for t in range(len(action)):
            for k in range(horizon):
                if t + k < len(action):
                    seen.append(np.append(action[t + k, :3] - state[t, :3], action[t + k, 3]))
    stats = norm_stats(given, robot=ROBOT, horizon=horizon)
    np.testing.assert_allclose(stats.action.mean, np.mean(seen, axis=0), rtol=1e-5)
    np.testing.assert_allclose(stats.action.std, np.std(seen, axis=0), rtol=1e-5)
    np.testing.assert_allclose(stats.action.q01, np.quantile(seen, 0.01, axis=0), rtol=1e-5)
    assert stats.action.count == len(seen) and stats.state.count == sum(len(s) for s, _ in given)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="four depend on the chunk's start: statistics need the model's horizon"):
        norm_stats(recordings(5), robot=ROBOT)
    with pytest.raises(ValueError, match=r"observation\.state has 3 dimensions in the data, four has 4"):
        norm_stats([(np.zeros((5, 3)), np.zeros((5, 4)))], robot=ROBOT, horizon=2)
    bad = recordings(5, 7)
    bad[1][1][4, 2] = np.nan
    with pytest.raises(ValueError, match="nan in episode 1 of those counted, frame 4, column 'action', dimension 2"):
        norm_stats(bad)
    with pytest.raises(ValueError, match="no frame"):
        norm_stats([])


@pytest.fixture
def root(tmp_path):
    names = {"observation.state": ["pan", "lift", "elbow", "grip"]}
    with LeRobotWriter(tmp_path / "set", embodiments=BODIES, names=names) as writer:
        for seed in range(6):
            episode = make_episode(seed, length=8 + seed)
            episode.state[:, 2] = 0.25
            writer.add_episode(episode)
    return tmp_path / "set"


def test_a_data_set_is_read_without_its_pictures(root, monkeypatch):
    monkeypatch.setattr(lerobot, "decode_frame", lambda data: pytest.fail("a picture was decoded"))
    source = SourceData.open(root)
    found = list(trajectories(source, [4, 0]))
    for (state, action), seed in zip(found, (4, 0), strict=True):
        np.testing.assert_array_equal(action, make_episode(seed, length=8 + seed).action)
        assert state.shape == (8 + seed, 4)


def test_the_command_shows_names_and_writes_what_others_read(root, tmp_path, capsys):
    play = [make_episode(seed, length=8 + seed).action for seed in (0,)]
    with pytest.warns(UserWarning, match=r"state\[2\] elbow"):
        run(StatsConfig((root,), tmp_path / "assets", embodiment_index=0, play_only=True))
    told = capsys.readouterr().out
    assert "2 elbow *" in told and "lift *" not in told and "norm_stats.json" in told
    stats = NormStats.read_openpi(tmp_path / "assets", "quantile")
    np.testing.assert_allclose(stats.action.mean, np.concatenate(play).mean(0), rtol=1e-6)
    with pytest.warns(UserWarning):
        run(StatsConfig((root,), root, format="lerobot", embodiment_index=1))
    data = json.loads((root / "meta/stats.json").read_text())
    ours = np.concatenate([make_episode(seed, length=8 + seed).action for seed in (1, 3, 5)])
    np.testing.assert_allclose(data["action"]["q50"], np.median(ours, axis=0), rtol=1e-6)
    assert "observation.images.scene" in data, "entries of other columns stay"
    with pytest.warns(UserWarning):
        run(StatsConfig((root,), tmp_path / "own.json", format="selfalign", embodiment_index=1, clip=3.0))
    assert NormStats.from_dict(json.loads((tmp_path / "own.json").read_text())).clip == 3.0


def test_one_body_must_be_chosen(root):
    with pytest.raises(ValueError, match=r"robots \[0, 1\]: choose one with --embodiment-index"):
        run(StatsConfig((root,)))
    with pytest.raises(ValueError, match="hold no episode"):
        run(StatsConfig((root,), embodiment_index=7))


def test_a_damaged_file_is_named(root):
    (root / "meta/checksums.json").unlink()
    file = root / "data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(file).slice(0, 20), file)
    with pytest.raises(ValueError, match=r"file-000.parquet has 20 rows"):
        list(trajectories(SourceData.open(root), range(6)))


@pytest.mark.parametrize(
    ("unweighed", "swapped", "message"),
    [
        (False, ("observation.state", "action"), r"file-000.parquet is damaged .*delete meta/checksums.json"),
        (True, ("observation.state", "action"), r"column 'observation.state', dimension 0: .*columns are swapped"),
        (True, ("frame_index", "episode_index"), "column 'frame_index' contradicts|column 'episode_index' contradicts"),
    ],
)
def test_statistics_of_damaged_data_are_refused(root, unweighed, swapped, message):
    """By the checks that reading an episode makes, though no picture is decoded."""
    file = root / "data/chunk-000/file-000.parquet"
    table, other = pq.read_table(file), dict(zip(swapped, reversed(swapped), strict=True))
    columns = [table[other.get(name, name)] for name in table.column_names]
    pq.write_table(pa.Table.from_arrays(columns, schema=table.schema), file)
    if unweighed:
        (root / "meta/checksums.json").unlink()
    for fails in (
        lambda: run(StatsConfig((root,), embodiment_index=0)),
        lambda: inspect.run(InspectConfig(data=str(root))),
    ):
        with pytest.raises(ValueError, match=message):
            fails()


def test_names_and_tasks_with_brackets_are_shown_as_they_are(tmp_path, capsys):
    names = {"observation.state": ["pos[x]", "pos[y]", "pos[z]", "[/]"]}
    with LeRobotWriter(tmp_path / "set", names=names) as writer:
        writer.add_episode(make_episode(task="open [/] it", embodiment_index=0, is_play=False))
    inspect.run(InspectConfig(data=str(tmp_path / "set")))
    told = capsys.readouterr().out
    assert "open [/] it" in told and "pos[y]" in told
    run(StatsConfig((tmp_path / "set",)))
    assert "0 pos[x]" in (told := capsys.readouterr().out) and "3 [/]" in told
