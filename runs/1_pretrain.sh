#!/usr/bin/env bash
# Record the simulated sources and pretrain the shipped `tiny` checkpoint. About 55 minutes on two cores; goes on where
# it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
selfalign sources --out data/sources --rigs 300 --seed 0 --workers 2
selfalign pretrain --preset tiny --data data/sources --out runs/tiny --steps 2700 --seed 0 \
    --learning-rate 1.5e-3 --reach-weight 4 --lambda-grounding 20
