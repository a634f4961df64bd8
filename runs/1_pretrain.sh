#!/usr/bin/env bash
# Record the simulated sources and pretrain the shipped `tiny` checkpoint. About 70 minutes on two quiet cores; goes on
# where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
selfalign sources --out data/sources --rigs 300 --seed 0 --workers 2
selfalign pretrain --preset tiny --data data/sources --out runs/tiny --steps 9000 --seed 0 --learning-rate 2.5e-3 \
    --pointing-steps 2500 --widen-steps 3000 --play-per-slot 6 --demonstrations-per-slot 10 --reach-weight 10 \
    --lambda-grounding 20 --lambda-action 4 --compile
