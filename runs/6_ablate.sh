#!/usr/bin/env bash
# What each part of the recipe is worth: recipes that differ in one thing, all with the shipped vision tower, measured on the
# same validation bodies. Needs the recordings of 1_pretrain.sh. A recipe takes about 20 minutes on two quiet cores, all of them half
# a day; what is finished is kept, so it may be stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
selfalign bench ablate --out runs/ablation --cells losses contexts architecture data --tower checkpoints/tiny \
    --trainings 2 --threads 1
cp runs/ablation/ablation.json benchmarks/results/ablation.json
# The shipped recipe with two other seeds; then, on the bodies of the headline and acting as the shipped checkpoint does, in every task.
selfalign bench ablate --out outputs/seeds --scale shipped --split test --cells all --seeds 1 2 --tower checkpoints/tiny \
    --trainings 2 --threads 1
cp outputs/seeds/ablation.json benchmarks/results/ablation_seeds.json
for seed in 1 2; do # where the plan looks for them
    recipe=$(grep -l '"name": "all"' outputs/seeds/trainings/*/recipe.json | xargs grep -l "\"seed\": $seed\b")
    ln -sfn "trainings/$(basename "$(dirname "$recipe")")" "outputs/seeds/seed-$seed"
done
selfalign bench matrix --plan benchmarks/plans/training_seeds.json --out outputs/training_seeds --cache outputs/cells
cp outputs/training_seeds/matrix.json benchmarks/results/matrix_training_seeds.json
# The headline cells at that scale, beside the shipped recipe with seed 1: 90 minutes for two trainings side by side.
for cells in "all no-rehearsal-512 attached" "baseline global-w"; do
    # shellcheck disable=SC2086  # several cells
    selfalign bench ablate --out outputs/seeds --scale shipped --split test --cells $cells --seeds 1 --scenarios camera action \
        --tower checkpoints/tiny --trainings 2 --threads 1
    name=$([ "${cells%% *}" = all ] && echo shipped || echo headline)
    cp outputs/seeds/ablation.json "benchmarks/results/ablation_$name.json"
done
for name in attached no-rehearsal-512; do
    recipe=$(grep -l "\"name\": \"$name\"" outputs/seeds/trainings/*/recipe.json)
    ln -sfn "trainings/$(basename "$(dirname "$recipe")")" "outputs/seeds/$name-1"
done
selfalign bench matrix --plan benchmarks/plans/recipes_push.json --out outputs/recipes_push --cache outputs/cells
cp outputs/recipes_push/matrix.json benchmarks/results/matrix_recipes_push.json
# The shipped checkpoint, shown more of pushing and lifting: 21 minutes of one quiet core.
selfalign pretrain --preset tiny --start checkpoints/tiny --data data/sources --out outputs/push --steps 3000 --seed 1 \
    --learning-rate 1e-3 --warmup-steps 200 --widen-steps 0 --context-decay-steps 30 --play-per-slot 6 --demonstrations-per-slot 10 \
    --reach-weight 1 --lambda-grounding 20 --lambda-action 4 --compile --threads 1
selfalign bench matrix --plan benchmarks/plans/more_pushing.json --out outputs/more_pushing --cache outputs/cells
cp outputs/more_pushing/matrix.json benchmarks/results/matrix_more_pushing.json
