#!/usr/bin/env bash
# Other ways to a new body, beside Selfalign: each method is tuned with the same number of trials on validation bodies, what
# is best goes into src/selfalign/baselines/choices.json (commit it), and the plans measure test bodies with it. Tuning takes
# about two hours of one core, the plans eight of two; what is finished is kept, so it may be stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
choices=src/selfalign/baselines/choices.json
tune() {
    selfalign bench tune --method "$1" --trials 6 --json "benchmarks/results/tune_$1.json" --choose "$choices" "${@:2}"
}
selfalign bench encoder --bodies 64 --out outputs/encoder.safetensors # source bodies, and what aligning finds for each
examples=(outputs/encoder.examples/*)
tune encoder --settings "{\"examples\": \"${examples[0]}\"}"
selfalign bench encoder --bodies 64 --out outputs/encoder.safetensors # once more, as was chosen
for method in pad prompt lora finetune; do tune "$method"; done
for plan in headline curve few-shot baselines; do
    selfalign bench matrix --plan "$plan" --out "outputs/$plan" --cache outputs/cells
    cp "outputs/$plan/matrix.json" "benchmarks/results/matrix_${plan//-/_}.json"
done
