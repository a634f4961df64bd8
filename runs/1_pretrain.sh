#!/usr/bin/env bash
# Record the simulated sources and pretrain `tiny`: about three and a half hours on two quiet cores; goes on where it stopped.
# The shipped checkpoint was made with these commands.
set -euo pipefail
cd "$(dirname "$0")/.."
# The tower learns on pictures of rigs that the policy does not see: it would trust a tower that knows its rigs too much.
selfalign snapshots --out data/snapshots --count 120000 --arms panda panda panda iiwa kinova3 xarm7 jaco \
    --image-size 96 --seed 5 --workers 2
selfalign sources --out data/sources --rigs 300 --arms panda panda panda iiwa kinova3 xarm7 jaco \
    --demonstrations-per-rig 12 --image-size 96 --seed 0 --workers 2
selfalign pretrain --preset tiny --data data/sources --snapshots data/snapshots --out runs/tiny --steps 10000 --seed 0 \
    --learning-rate 2.5e-3 --pointing-steps 6000 --widen-steps 3000 --context-decay-steps 30 --play-per-slot 6 \
    --demonstrations-per-slot 10 --reach-weight 10 --lambda-grounding 20 --lambda-action 4 --compile
# How fast and how surely it acts, and what its play losses are worth: both by validation bodies, an hour. The shipped checkpoint's
# files are those of runs/tiny/policy after this.
selfalign bench acting --checkpoint runs/tiny/policy --out outputs/acting --cache outputs/cells --workers 2
selfalign bench calibrate --checkpoint runs/tiny/policy --out outputs/calibrate.json --workers 2
