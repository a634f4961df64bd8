#!/usr/bin/env bash
# The numbers in README.md: every scenario, 12 held-out bodies of each, 20 episodes under each context; and films of what fails.
set -euo pipefail
cd "$(dirname "$0")/.."
for scenario in camera action joint robot all; do
    selfalign bench adapt --checkpoint checkpoints/tiny --scenario "$scenario" --bodies 12 --seed 0 --play 20 \
        --episodes 20 --json "benchmarks/results/adapt_tiny_${scenario}.json"
done
selfalign bench films benchmarks/results/adapt_tiny_*.json --out docs/assets/failures
