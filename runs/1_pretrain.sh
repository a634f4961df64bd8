#!/usr/bin/env bash
# Record the simulated sources and pretrain `tiny`. About two hours on two quiet cores; goes on where it stopped. The
# shipped checkpoint came about in two parts: see its model card.
set -euo pipefail
cd "$(dirname "$0")/.."
selfalign sources --out data/sources --rigs 300 --seed 0 --workers 2
# The tower learns on rigs that the policy does not: it would trust a tower that knows its rigs too much.
selfalign sources --out data/tower --rigs 3500 --play-per-rig 1 --demonstrations-per-rig 1 --seed 5 --workers 2
selfalign pretrain --preset tiny --data data/sources --tower-data data/tower --out runs/tiny --steps 12000 --seed 0 \
    --learning-rate 2.5e-3 --pointing-steps 6000 --widen-steps 3000 --context-decay-steps 30 --play-per-slot 6 \
    --demonstrations-per-slot 10 --reach-weight 10 --lambda-grounding 20 --lambda-action 4 --compile
