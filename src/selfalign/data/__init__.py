"""From recordings on disk to arrays a model can be trained on: episodes, LeRobot files, caches, statistics, frames."""
