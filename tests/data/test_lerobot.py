import errno
import hashlib
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data.factory import BODIES, assert_same, make_episode
from selfalign.data import lerobot_writer
from selfalign.data.lerobot import LeRobotReader, LeRobotWriter


@pytest.fixture
def episodes():
    return [make_episode(seed, length=8 + seed) for seed in range(5)]


@pytest.fixture
def root(tmp_path, episodes):
    with LeRobotWriter(tmp_path / "set", embodiments=BODIES, robot_type="made up") as writer:
        for episode in episodes:
            writer.add_episode(episode)
    return tmp_path / "set"


@pytest.fixture
def edited(root):
    """The data set without its checksums, for tests that change files on purpose."""
    (root / "meta/checksums.json").unlink()
    return root


def test_round_trip_is_exact(root, episodes):
    reader = LeRobotReader(root)
    assert len(reader) == 5 and reader.num_frames == sum(map(len, episodes))
    assert reader.embodiments == BODIES and reader.info.cameras == ("scene",)
    for actual, expected in zip(reader.episodes(), episodes, strict=True):
        assert_same(actual, expected)
    for index in (3, 0, 4):
        assert_same(reader[index], episodes[index])


def test_pyarrow_alone_reads_the_frames(root, episodes):
    table = pq.read_table(root / "data/chunk-000/file-000.parquet")
    assert table.num_rows == sum(map(len, episodes))
    for name, part in (("observation.state", "state"), ("action", "action")):
        assert table.schema.field(name).type == pa.list_(pa.float32(), 4)
        np.testing.assert_array_equal(
            np.array(table[name].to_pylist(), np.float32), np.concatenate([getattr(e, part) for e in episodes])
        )
    points = np.array(table["privileged.points"].to_pylist(), np.float32)
    np.testing.assert_array_equal(points, np.concatenate([e.extra["privileged.points"] for e in episodes]))
    assert table["grasped"].to_pylist() == np.concatenate([e.extra["grasped"] for e in episodes]).tolist()
    pixels = np.concatenate([e.images["scene"] for e in episodes])
    for row, image in enumerate(table["observation.images.scene"].to_pylist()):
        assert image["path"] is None
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(image["bytes"]))), pixels[row])
    lengths = [len(e) for e in episodes]
    assert table["index"].to_pylist() == list(range(sum(lengths)))
    assert table["episode_index"].to_pylist() == np.repeat(range(5), lengths).tolist()
    assert table["frame_index"].to_pylist() == [i for n in lengths for i in range(n)]
    assert table["embodiment_index"].to_pylist() == np.repeat([0, 1, 0, 1, 0], lengths).tolist()
    assert table["is_play"].to_pylist() == np.repeat([1, 0, 0, 1, 0], lengths).tolist()
    np.testing.assert_allclose(table["timestamp"].to_pylist(), np.array(table["frame_index"].to_pylist()) / 20)


def test_metadata_is_lerobots(root, episodes):
    info = json.loads((root / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0" and info["fps"] == 20 and info["robot_type"] == "made up"
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (5, 50, 3)
    assert info["splits"] == {"train": "0:5"} and info["chunks_size"] == 1000 and info["video_path"] is None
    assert info["features"]["observation.images.scene"] == {
        "dtype": "image",
        "shape": [16, 24, 3],
        "names": ["height", "width", "channels"],
    }
    assert info["features"]["action"] == {"dtype": "float32", "shape": [4], "names": None}
    assert info["features"]["episode_index"] == {"dtype": "int64", "shape": [1], "names": None}

    tasks = pq.read_table(root / "meta/tasks.parquet")
    assert tasks.to_pydict() == {"task_index": [0, 1, 2], "task": ["", "reach the red cube", "lift the green cube"]}
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]

    rows = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    starts = np.cumsum([0, *map(len, episodes)])
    for i, row in enumerate(rows):
        assert (row["episode_index"], row["length"], row["tasks"]) == (i, len(episodes[i]), [episodes[i].task])
        assert (row["dataset_from_index"], row["dataset_to_index"]) == (starts[i], starts[i + 1])
        assert (row["data/chunk_index"], row["data/file_index"]) == (0, 0)
        np.testing.assert_allclose(row["stats/action/mean"], episodes[i].action.mean(axis=0), atol=1e-6)


def test_stats_file_equals_numpy(root, episodes):
    stats = json.loads((root / "meta/stats.json").read_text())
    action = np.concatenate([e.action for e in episodes]).astype(np.float64)
    for key, value in {
        "mean": action.mean(0),
        "std": action.std(0),
        "min": action.min(0),
        "max": action.max(0),
    }.items():
        np.testing.assert_allclose(stats["action"][key], value, rtol=1e-9)
    np.testing.assert_allclose(stats["action"]["q90"], np.quantile(action, 0.9, axis=0), rtol=1e-6)
    assert stats["action"]["count"] == [50]
    image = stats["observation.images.scene"]
    assert np.shape(image["mean"]) == (3, 1, 1)  # LeRobot's shape, in [0, 1]
    np.testing.assert_allclose(np.ravel(image["mean"]), 0.5, atol=0.03)


def test_many_files_and_shared_row_groups(tmp_path, episodes, monkeypatch):
    writer = LeRobotWriter(tmp_path / "set", embodiments=BODIES)
    monkeypatch.setattr(writer, "_file_bytes", 15_000)
    monkeypatch.setattr(lerobot_writer.DatasetInfo, "chunks_size", 2)
    monkeypatch.setattr(lerobot_writer, "_ROWS_AT_ONCE", 2)
    for episode in episodes:
        writer.add_episode(episode)
    root = writer.finalize()
    files = sorted(path.relative_to(root).as_posix() for path in root.glob("data/*/*"))
    assert "data/chunk-000/file-001.parquet" in files and "data/chunk-001/file-000.parquet" in files
    (root / "meta/checksums.json").unlink()
    for path in root.glob("data/*/*"):  # as a writer with other row groups would have stored it
        pq.write_table(pq.read_table(path), path, row_group_size=7)
    reader = LeRobotReader(root)
    for index in (0, 4, 2, 1, 3):
        assert_same(reader[index], episodes[index])
    np.testing.assert_array_equal(reader.columns(["action"])["action"], np.concatenate([e.action for e in episodes]))


def test_data_recorded_by_lerobot_itself_is_one_robot_with_demonstrations(edited, episodes):
    """No columns and files of ours, a nameless task index, images by path."""
    root = edited
    (root / "meta/embodiments.json").unlink()
    info = json.loads((root / "meta/info.json").read_text())
    del info["features"]["embodiment_index"], info["features"]["is_play"]
    (root / "meta/info.json").write_text(json.dumps(info))
    frames = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(frames).drop_columns(["embodiment_index", "is_play"])
    (root / "0.png").write_bytes(table["observation.images.scene"][0]["bytes"].as_py())
    images = table["observation.images.scene"].to_pylist()
    images[0] = {"bytes": None, "path": "0.png"}
    column = table.schema.get_field_index("observation.images.scene")
    table = table.set_column(column, table.schema.field(column), pa.array(images, table.schema.field(column).type))
    pq.write_table(table, frames)
    meta = root / "meta/episodes/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(meta).drop_columns(["embodiment_index", "is_play"]), meta)
    tasks = pq.read_table(root / "meta/tasks.parquet").rename_columns(["task_index", "__index_level_0__"])
    pq.write_table(tasks, root / "meta/tasks.parquet")

    reader = LeRobotReader(root)
    assert reader.embodiments == [{"name": "made up"}]
    assert reader.tasks[1] == "reach the red cube"
    episode = reader[0]
    assert episode.embodiment_index == 0 and not episode.is_play
    np.testing.assert_array_equal(episode.images["scene"], episodes[0].images["scene"])


def test_an_interrupted_write_leaves_nothing(tmp_path, episodes):
    with pytest.raises(KeyboardInterrupt), LeRobotWriter(tmp_path / "set", embodiments=BODIES) as writer:
        writer.add_episode(episodes[0])
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_killed_write_leaves_no_data_set(tmp_path, episodes):
    writer = LeRobotWriter(tmp_path / "set", embodiments=BODIES)
    writer.add_episode(episodes[0])
    assert not (tmp_path / "set").exists()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        LeRobotReader(tmp_path / "set")
    with LeRobotWriter(tmp_path / "set", embodiments=BODIES) as again:  # what is left behind is not in the way
        again.add_episode(episodes[1])
    assert len(LeRobotReader(tmp_path / "set")) == 1
    writer.abort()


def test_a_full_disk_leaves_nothing(tmp_path, episodes, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lerobot_writer.pq.ParquetWriter, "write_table", full)
    with (
        pytest.raises(OSError, match="No space left"),
        LeRobotWriter(tmp_path / "set", embodiments=BODIES) as writer,
    ):
        writer.add_episode(episodes[0])
    assert list(tmp_path.iterdir()) == []


def test_the_writer_names_mistakes(tmp_path, episodes):
    (tmp_path / "used").mkdir()
    (tmp_path / "used/file").touch()
    with pytest.raises(ValueError, match="exists already"):
        LeRobotWriter(tmp_path / "used")
    with pytest.raises(ValueError, match="no episode"):
        LeRobotWriter(tmp_path / "empty").finalize()
    assert not (tmp_path / "empty").exists()
    writer = LeRobotWriter(tmp_path / "set", embodiments=BODIES)
    writer.add_episode(episodes[0])
    for changes, message in [
        ({"state": np.zeros((12, 3), np.float32)}, "episode 1: column 'observation.state' has shape \\[3\\]"),
        ({"extra": {}}, "episode 1 has other columns.*missing \\['grasped'"),
        ({"fps": 10.0}, "episode 1 runs at 10.0 Hz, the data set at 20.0 Hz"),
        ({"embodiment_index": 2}, "embodiment 2.*declares 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            writer.add_episode(make_episode(1, **changes))
    writer.abort()


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("file", ["data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"])
def test_cut_off_files_are_named(root, file, keep):
    data = (root / file).read_bytes()
    (root / file).write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ValueError, match=f"{file} is damaged or cut off"):
        LeRobotReader(root)[0]


def test_missing_and_contradicting_files_are_named(edited, tmp_path):
    root = edited
    with pytest.raises(FileNotFoundError, match="does not exist"):
        LeRobotReader(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="not a LeRobot data set"):
        LeRobotReader(tmp_path)
    frames = root / "data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(frames).slice(0, 45), frames)
    assert len(LeRobotReader(root)[3]) == 11
    with pytest.raises(ValueError, match=r"file-000.parquet has 45 rows, the metadata needs 50"):
        LeRobotReader(root)[4]
    pq.write_table(pq.read_table(frames).drop_columns(["action"]), frames)
    with pytest.raises(ValueError, match="lacks the columns action"):
        LeRobotReader(root)[0]
    frames.unlink()
    with pytest.raises(FileNotFoundError, match=r"file-000\.parquet is missing"):
        LeRobotReader(root)[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebase_version": "v1.6"}, "LeRobot v1.6; v2.0, v2.1 and v3.0 can be read"),
        ({"total_episodes": 7}, "says 7 episodes"),
        ({"features": {}}, "no 'observation.state' column"),
        ({"fps": None}, None),
    ],
)
def test_wrong_info_is_named(root, change, message):
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    if message is None:
        path.write_text("{")
        message = "not a LeRobot info file"
    else:
        path.write_text(json.dumps(info | change))
    with pytest.raises(ValueError, match=message):
        LeRobotReader(root)


def test_a_damaged_image_is_named(edited):
    root = edited
    path = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    images = table["observation.images.scene"].to_pylist()
    images[9]["bytes"] = images[9]["bytes"][:50]
    column = table.schema.get_field_index("observation.images.scene")
    field = table.schema.field(column)
    pq.write_table(table.set_column(column, field, pa.array(images, field.type)), path)
    with pytest.raises(ValueError, match="row 9, camera 'scene': not a readable image"):
        LeRobotReader(root)[1]


def test_the_fingerprint_follows_the_data(root, tmp_path, episodes):
    first = LeRobotReader(root).fingerprint
    assert LeRobotReader(root).fingerprint == first
    episodes[2].action[3, 1] += 1e-3
    with LeRobotWriter(tmp_path / "other", embodiments=BODIES, robot_type="made up") as writer:
        for episode in episodes:
            writer.add_episode(episode)
    assert LeRobotReader(tmp_path / "other").fingerprint != first


def test_fingerprints_of_data_with_checksums_are_of_metadata_and_sizes(root):
    """As they have always been: trainings, caches and features hang on them."""
    digest = hashlib.sha256()
    for path in sorted(path for path in (root / "meta").rglob("*") if path.is_file()):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    file = "data/chunk-000/file-000.parquet"
    digest.update(f"{file}:{(root / file).stat().st_size}".encode())
    assert LeRobotReader(root).fingerprint == digest.hexdigest()[:16]


def replace_column(root, name, values, file="data/chunk-000/file-000.parquet"):
    table = pq.read_table(root / file)
    column = table.schema.get_field_index(name)
    pq.write_table(table.set_column(column, pa.field(name, values.type), values), root / file)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("timestamp", lambda v: [*v[:9], v[9] + 0.01, *v[10:]], r"row 9, column 'timestamp'.*episode 1: .*rate of 20"),
        ("frame_index", lambda v: [*v[:9], 5, *v[10:]], r"row 9, column 'frame_index' contradicts.*episode 1"),
        ("index", lambda v: [*v[:9], None, *v[10:]], r"column 'index': row 9 has no value"),
        ("task_index", lambda v: [*v[:9], 7, *v[10:]], r"row 9, column 'task_index'.*7 names no task"),
        ("action", lambda v: [*v[:9], v[9][:3], *v[10:]], r"column 'action': row 9 has 3 values instead of 4"),
        ("action", lambda v: [*v[:9], [9.0] * 4, *v[10:]], r"rows 8 to 16, column 'action', dimension 0: the max"),
        ("action", lambda v: [[int(x) for x in row] for row in v], "column 'action': holds int64 instead of float32"),
        ("action", lambda v: [str(row) for row in v], "column 'action': holds string instead of float32"),
    ],
)
def test_values_that_contradict_the_metadata_are_named(edited, name, change, message):
    values = pq.read_table(edited / "data/chunk-000/file-000.parquet")[name].to_pylist()
    replace_column(edited, name, pa.array(change(values)))
    with pytest.raises(ValueError, match=message):
        LeRobotReader(edited)[1]


def test_swapped_columns_are_found_by_their_statistics(edited, episodes):
    path = edited / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    swap = {"action": "observation.state", "observation.state": "action"}
    pq.write_table(table.rename_columns([swap.get(name, name) for name in table.column_names]), path)
    with pytest.raises(ValueError, match=r"column '(observation.state|action)', dimension 0.*columns are swapped"):
        LeRobotReader(edited)[0]
    unchecked = LeRobotReader(edited, check_stats=False)[0]
    np.testing.assert_array_equal(unchecked.action, episodes[0].state)


def test_wider_types_of_the_same_kind_are_read_exactly(edited, episodes):
    values = pq.read_table(edited / "data/chunk-000/file-000.parquet")["action"].to_pylist()
    replace_column(edited, "action", pa.array(values, pa.list_(pa.float64())))
    np.testing.assert_array_equal(LeRobotReader(edited)[1].action, episodes[1].action)


def test_words_and_depth_are_tolerated_and_unknown_keys_ignored(edited, episodes):
    path = edited / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    language = pa.array([[{"role": "user", "content": "hello"}]] * len(table))
    pq.write_table(table.append_column("language_events", language), path)
    info = json.loads((edited / "meta/info.json").read_text())
    info |= {"total_videos": 0, "tools": [{"name": "say"}]}
    info["features"]["language_events"] = {"dtype": "language", "shape": [1], "names": None}
    info["features"]["observation.images.depth"] = {
        "dtype": "video",
        "shape": [16, 24, 1],
        "names": None,
        "info": {"is_depth_map": True},
    }
    (edited / "meta/info.json").write_text(json.dumps(info))
    reader = LeRobotReader(edited)
    assert reader.info.ignored == ("language_events", "observation.images.depth")
    assert_same(reader[2], episodes[2])


def test_lenient_reading_leaves_out_reports_and_counts(edited, episodes):
    values = pq.read_table(edited / "data/chunk-000/file-000.parquet")["action"].to_pylist()
    replace_column(edited, "action", pa.array([*values[:9], None, *values[10:]], pa.list_(pa.float32())))
    with pytest.raises(ValueError, match="row 9 has no value"):
        list(LeRobotReader(edited).episodes())
    with pytest.warns(UserWarning, match="1 of 5 episodes are broken and left out; the first: .*row 9 has no value"):
        reader = LeRobotReader(edited, strict=False)
    assert [problem.episode for problem in reader.problems] == [1]
    assert [meta.index for meta in reader.metadata] == [0, 2, 3, 4] and reader.num_frames == 50 - 9
    kept = [episodes[i] for i in (0, 2, 3, 4)]
    for actual, expected in zip(reader.episodes(), kept, strict=True):
        assert_same(actual, expected)
    np.testing.assert_array_equal(reader.columns(["action"])["action"], np.concatenate([e.action for e in kept]))


def test_any_changed_byte_of_what_we_wrote_is_noticed(root):
    path = root / "data/chunk-000/file-000.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"file-000.parquet is damaged: it differs from what was written"):
        LeRobotReader(root)[4]


def test_statistics_over_all_but_the_last_axis_are_understood(edited, episodes):
    """As LeRobot writes those of matrices."""
    path = edited / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    for key in ("min", "max", "mean"):
        name = f"stats/privileged.points/{key}"
        values = [getattr(e.extra["privileged.points"].reshape(-1, 4).astype(float), key)(0).tolist() for e in episodes]
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
    pq.write_table(table, path)
    assert_same(LeRobotReader(edited)[1], episodes[1])
    values = pq.read_table(edited / "data/chunk-000/file-000.parquet")["privileged.points"].to_pylist()
    values[9][3][2] = 99.0
    replace_column(edited, "privileged.points", pa.array(values, pa.list_(pa.list_(pa.float32()))))
    with pytest.raises(ValueError, match=r"'privileged.points', dimension 2: the max"):
        LeRobotReader(edited)[1]


def with_extra(values):
    return make_episode(length=len(values), embodiment_index=0, extra={"reward": np.asarray(values)})


@pytest.mark.parametrize(
    ("first", "later"),
    [
        (np.zeros(4, np.int64), np.linspace(0, 0.9, 4)),
        (np.zeros(4, np.uint8), np.arange(250, 254)),
        (np.zeros(4, np.int16), np.full(4, 40_000)),
        (np.zeros(4, np.uint64), np.full(4, -1)),
        (np.zeros(4, bool), np.arange(4)),
    ],
)
def test_numbers_that_the_first_type_does_not_hold_are_refused(tmp_path, first, later):
    message = f"episode 1: column 'reward' has {later.dtype} numbers that {first.dtype}, .*, does not hold"
    with LeRobotWriter(tmp_path / "set") as writer:
        writer.add_episode(with_extra(first))
        with pytest.raises(ValueError, match=message):
            writer.add_episode(with_extra(later))
        writer.add_episode(with_extra(first))
    assert len(LeRobotReader(tmp_path / "set")) == 2, "the refused one left nothing"


@pytest.mark.parametrize(
    ("first", "later"),
    [
        (np.zeros(4, np.float32), np.linspace(0, 0.5, 4)),
        (np.zeros(4), np.arange(4)),
        (np.zeros(4, np.int16), np.full(4, -32_768)),
        (np.zeros(4, np.int64), np.array([True, False, True, True])),
    ],
)
def test_numbers_that_the_first_type_holds_are_stored_in_it(tmp_path, first, later):
    with LeRobotWriter(tmp_path / "set") as writer:
        writer.add_episode(with_extra(first))
        writer.add_episode(with_extra(later))
    found = LeRobotReader(tmp_path / "set")[1].extra["reward"]
    assert found.dtype == first.dtype
    np.testing.assert_array_equal(found, later.astype(first.dtype))
