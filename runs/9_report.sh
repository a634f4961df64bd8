#!/usr/bin/env bash
# A report of the results that README speaks of most, as HTML and as PDF (ablations and the rest: docs/experiment_results.md): pip install -c constraints.txt -e '.[report]'. The map of contexts
# is of those that the check of the verdicts has kept (benchmarks/README.md), where there are any.
set -euo pipefail
cd "$(dirname "$0")/.."
results=(benchmarks/results/matrix_{headline_seed2,curve,baselines,demonstrations_seed2,stale_seed1,play_tempo}.json
    benchmarks/results/adapt_tiny_*.json benchmarks/results/verdicts_tiny.json)
contexts=()
[ -d outputs/verdict_contexts ] && contexts=(--contexts outputs/verdict_contexts)
selfalign bench report "${results[@]}" --calibration checkpoints/tiny --films docs/assets/before_after.gif docs/assets/failures \
    "${contexts[@]}" --out outputs/report.html --pdf outputs/report.pdf
