#!/usr/bin/env bash
# Fit the body's context to its play.
set -euo pipefail
cd "$(dirname "$0")/.."
selfalign align --checkpoint checkpoints/tiny --play data/my_robot_play --out contexts/my_robot.safetensors
