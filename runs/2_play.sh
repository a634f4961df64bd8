#!/usr/bin/env bash
# A body that no source resembles plays for 50 seconds: an unseen camera. No task, no labels.
set -euo pipefail
cd "$(dirname "$0")/.."
selfalign play --scenario camera --seed 7 --trajectories 20 --out data/my_robot_play
