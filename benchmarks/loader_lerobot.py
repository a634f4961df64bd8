"""LeRobot's half of `loader.py`: runs in an environment with `lerobot`, without selfalign, and prints one JSON line."""

import json
import sys
import time
from importlib import metadata

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from torch.utils.data import DataLoader


def main(told: dict) -> dict:
    dataset = LeRobotDataset(
        "local/loader",
        root=told["root"],
        delta_timestamps=told["offsets"],
        video_backend=told["video_backend"],
    )
    count = (told["batches"] + 2) * told["batch_size"]
    order = np.random.default_rng(told["seed"]).integers(told["episodes"] * told["frames"], size=count).tolist()
    loader = DataLoader(dataset, told["batch_size"], sampler=order, num_workers=told["workers"])
    began, samples = 0.0, 0
    for number, batch in enumerate(loader):
        if number == 1:  # what comes before is the start of the workers
            began = time.perf_counter()
        if number >= 2:
            samples += len(batch["observation.state"])
    versions = {name: metadata.version(name) for name in ("lerobot", "torch", "av")}
    return {"samples_per_second": samples / (time.perf_counter() - began), "versions": versions}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
