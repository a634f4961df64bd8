#!/usr/bin/env bash
# What rehearsal is worth: the same model, vision tower, data, steps and bodies with rehearsed contexts, with one learned
# context per body, and with one for all; then adaptation to unseen action frames. Needs the data of 1_pretrain.sh; some
# hours on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
pretrain=(selfalign pretrain --preset tiny --data data/sources --snapshots data/snapshots --seed 0 --pointing-steps 6000)
"${pretrain[@]}" --out runs/ablation/tower --steps 0
for scheme in rehearsal per_body global; do
    mkdir -p "runs/ablation/$scheme"
    cp runs/ablation/tower/{tower.pt,tokens-*.npy} "runs/ablation/$scheme/"
    "${pretrain[@]}" --out "runs/ablation/$scheme" --scheme "$scheme" --steps 3000 --learning-rate 2.5e-3 \
        --widen-steps 1000 --reach-weight 100 --lambda-action 4 --lambda-grounding 20 --play-per-slot 4 \
        --demonstrations-per-slot 12
    selfalign bench adapt --checkpoint "runs/ablation/$scheme/policy" --scenario action --bodies 12 --seed 0 --play 20 \
        --episodes 20 --json "benchmarks/results/ablation_$scheme.json"
done
