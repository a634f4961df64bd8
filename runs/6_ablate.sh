#!/usr/bin/env bash
# What rehearsal is worth: the same model, data, steps and bodies with rehearsed contexts, with one learned context per
# body, and with one for all; then adaptation to unseen action frames. About an hour on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
for scheme in rehearsal per_body global; do
    selfalign pretrain --preset tiny --data data/sources --out "runs/ablation/$scheme" --scheme "$scheme" --steps 3000 \
        --seed 0 --learning-rate 2.5e-3 --widen-steps 1000 --reach-weight 100 --lambda-action 4 --lambda-grounding 20 \
        --play-per-slot 4 --demonstrations-per-slot 12
    selfalign bench adapt --checkpoint "runs/ablation/$scheme/policy" --scenario action --bodies 12 --seed 0 --play 20 \
        --episodes 20 --json "benchmarks/results/ablation_$scheme.json"
done
