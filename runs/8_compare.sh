#!/usr/bin/env bash
# Other ways to a new body, beside Selfalign: each method is tuned with the same number of trials on validation bodies, what
# is best goes into src/selfalign/baselines/choices.json (commit it), and the plans measure test bodies with it. All but the last
# act as the checkpoint was trained. Tuning takes about three hours of one core, the plans three of two; what is finished is kept, so it
# may be stopped. The encoder learns from the recordings of 1_pretrain.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
choices=src/selfalign/baselines/choices.json
tune() {
    selfalign bench tune --method "$1" --trials 6 --out "outputs/tune_$1.json" --choose "$choices" "${@:2}"
    cp "outputs/tune_$1.json" benchmarks/results/
}
measure() { # name of the result, then flags
    selfalign bench matrix --cache outputs/cells --out "outputs/$1" "${@:2}"
    cp "outputs/$1/matrix.json" "benchmarks/results/matrix_$1.json"
}
tune encoder --settings '{"data": ["data/sources"], "features": "runs/tiny"}'
selfalign bench encoder --data data/sources --features runs/tiny --out outputs/encoder.safetensors # as was chosen
for method in pad prompt lora finetune; do tune "$method"; done
measure baselines --plan baselines --bodies 8 --speed 1 --temperature 1
python benchmarks/context_map.py --out benchmarks/results/context_map.json # keeps the contexts that `nearest` looks up
for plan in nearest few_shot_finetune other_tasks_finetune; do
    measure "$plan" --plan "benchmarks/plans/$plan.json"
done
measure demonstrations_seed2 --plan benchmarks/plans/demonstrations_seed2.json --tasks reach push
