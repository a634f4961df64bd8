#!/usr/bin/env bash
# The matrices of README.md and docs/findings.md, but for those of other methods (8_compare.sh) and trainings (6_ablate.sh): every
# scenario and task, 20 episodes of each; bodies that change; amounts and kinds of play; films of what fails; and what the verdicts
# are worth. About five hours on two quiet cores; what is finished is kept, so it may be stopped. The rest of README's numbers are
# those of `make demo`, of benchmarks/online_story.py and of `bench acting` (benchmarks/README.md).
set -euo pipefail
cd "$(dirname "$0")/.."
measure() { # name of the result, then flags
    selfalign bench matrix --cache outputs/cells --out "outputs/$1" "${@:2}"
    cp "outputs/$1/matrix.json" "benchmarks/results/matrix_$1.json"
}
measure headline_seed2 --plan benchmarks/plans/headline_seed2.json
measure headline_seed1 --plan headline --seed 1 --speed 1 --temperature 1
measure headline --plan headline --seed 0 --speed 1 --temperature 1 # bodies that were looked at while the recipe was made
measure stale_seed1 --plan stale --seed 1 --speed 1 --temperature 1
measure curve --plan curve --bodies 8 --speed 1 --temperature 1
for plan in play_tempo play_motions; do
    measure "$plan" --plan "benchmarks/plans/$plan.json"
done
adapt() { # step by step, and under another body's context: name of the result, then flags
    selfalign bench adapt --checkpoint checkpoints/tiny --bodies 12 --seed 0 --play 20 --episodes 20 --speed 1 --temperature 1 \
        --out "outputs/adapt_tiny_$1.json" "${@:2}"
    cp "outputs/adapt_tiny_$1.json" benchmarks/results/
}
for scenario in camera action joint robot; do adapt "$scenario" --scenario "$scenario"; done
adapt all --scenario all --steps 30 100
adapt action_push --scenario action --task push --steps 30 100
adapt action_lift --scenario action --task lift --steps 30 100
adapt robot_lift --scenario robot --task lift --steps 30
selfalign bench films benchmarks/results/matrix_headline_seed2.json benchmarks/results/adapt_tiny_joint.json \
    --out docs/assets/failures
selfalign bench calibrate --checkpoint checkpoints/tiny --check --bodies 4 --seed 0 \
    --out outputs/verdicts_tiny.json --contexts outputs/verdict_contexts
cp outputs/verdicts_tiny.json benchmarks/results/
