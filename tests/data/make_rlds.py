"""Makes `tests/data/recordings/rlds` with tensorflow-datasets, in an environment of its own. From the root:

    pip install tensorflow-cpu==2.19.1 tensorflow-datasets==4.9.9 tensorflow-metadata==1.17.1
    PYTHONPATH=tests python tests/data/make_rlds.py tests/data/recordings/rlds

The features are laid out as those of Open X-Embodiment's data sets. TFDS shuffles the episodes.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from data.drawn import CAMERAS, LENGTHS, SIZE, draw, numbers, task


class Drawn(tfds.core.GeneratorBasedBuilder):
    """Pictures and numbers that tell where they belong."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        jpeg = tfds.features.Image(shape=(*SIZE, 3), encoding_format="jpeg")
        png = tfds.features.Image(shape=(*SIZE, 3), encoding_format="png")
        observation = {
            **dict.fromkeys(CAMERAS, png),
            "compressed": jpeg,
            "state": tfds.features.Tensor(shape=numbers(0, "observation.state").shape[1:], dtype=np.float32),
        }
        steps = {
            "observation": tfds.features.FeaturesDict(observation),
            "action": tfds.features.Tensor(shape=numbers(0, "action").shape[1:], dtype=np.float32),
            "reward": tfds.features.Scalar(dtype=np.float32),
            **{name: tfds.features.Scalar(dtype=np.bool_) for name in ("is_first", "is_last", "is_terminal")},
            "language_instruction": tfds.features.Text(),
            "language_embedding": tfds.features.Tensor(shape=(8,), dtype=np.float32),
        }
        metadata = tfds.features.FeaturesDict({"file_path": tfds.features.Text()})
        features = {"steps": tfds.features.Dataset(steps), "episode_metadata": metadata}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for episode in range(len(LENGTHS)):
            yield str(episode), {"steps": list(steps(episode)), "episode_metadata": {"file_path": f"episode_{episode}"}}


def steps(episode: int):
    """The steps of an episode as TFDS takes them."""
    columns = {name: numbers(episode, name) for name in ("observation.state", "action", "reward")}
    for t in range(LENGTHS[episode]):
        pictures = {camera: draw(number, episode, t) for number, camera in enumerate(CAMERAS)}
        yield {
            "observation": {**pictures, "compressed": draw(0, episode, t), "state": columns["observation.state"][t]},
            "action": columns["action"][t],
            "reward": columns["reward"][t, 0],
            "is_first": t == 0,
            "is_last": t == LENGTHS[episode] - 1,
            "is_terminal": False,
            "language_instruction": task(episode),
            "language_embedding": np.zeros(8, np.float32),
        }


if __name__ == "__main__":
    root = Path(sys.argv[1])
    shutil.rmtree(root, ignore_errors=True)
    builder = Drawn(data_dir=str(root))
    builder.download_and_prepare()
    print(builder.data_dir)
