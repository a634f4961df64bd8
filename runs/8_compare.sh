#!/usr/bin/env bash
# Other ways to a new body, beside Selfalign: each method is tuned with the same number of trials on validation bodies, what
# is best goes into src/selfalign/baselines/choices.json (commit it), and the plans measure test bodies with it. Tuning takes
# about three hours of one core, the plans eight of two; what is finished is kept, so it may be stopped. The encoder learns
# from the recordings of 1_pretrain.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
choices=src/selfalign/baselines/choices.json
tune() {
    selfalign bench tune --method "$1" --trials 6 --json "benchmarks/results/tune_$1.json" --choose "$choices" "${@:2}"
}
tune encoder --settings '{"data": ["data/sources"], "features": "runs/tiny"}'
selfalign bench encoder --data data/sources --features runs/tiny --out outputs/encoder.safetensors # as was chosen
for method in pad prompt lora finetune; do tune "$method"; done
for plan in headline curve few-shot baselines; do
    selfalign bench matrix --plan "$plan" --out "outputs/$plan" --cache outputs/cells
    cp "outputs/$plan/matrix.json" "benchmarks/results/matrix_${plan//-/_}.json"
done
