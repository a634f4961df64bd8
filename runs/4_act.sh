#!/usr/bin/env bash
# The same frozen policy on that body: with the prior, and with its context.
set -euo pipefail
cd "$(dirname "$0")/.."
for prior in --prior --no-prior; do
    selfalign eval --checkpoint checkpoints/tiny --context contexts/my_robot.safetensors --body data/my_robot_play \
        --task reach --episodes 20 --seed 0 "$prior"
done
