#!/usr/bin/env bash
# A report of the results that README speaks of most, as HTML and as PDF: pip install -c constraints.txt -e '.[report]'.
# Ablations and the rest are in docs/experiment_results.md.
set -euo pipefail
cd "$(dirname "$0")/.."
results=(benchmarks/results/matrix_{headline_seed2,curve,baselines,demonstrations_seed2,stale_seed1,play_tempo}.json
    benchmarks/results/adapt_tiny_*.json benchmarks/results/verdicts_tiny.json)
selfalign bench report "${results[@]}" --calibration checkpoints/tiny --contexts benchmarks/results/context_map.json \
    --films docs/assets/before_after.gif docs/assets/typical docs/assets/failures --out outputs/report.html --pdf outputs/report.pdf
