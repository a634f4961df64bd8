#!/usr/bin/env bash
# The whole life on data as a real robot's comes: LeRobot v3 data sets with video, named dimensions and nothing that only
# a simulator knows. Every step reads its data by `lerobot:`; only the recording and the last step know a simulator.
# About 44,000 frames of two cameras: 2.5 GB decoded in the user's cache, less than 0.5 GB of video; by the pace of
# 1_pretrain.sh, half an hour on two quiet cores. Goes on where it stopped. To try it out in some minutes:
# RIGS=2 STEPS=4 EPISODES=1 runs/7_real_format.sh
set -euo pipefail
cd "$(dirname "$0")/.."
rigs=${RIGS:-60} steps=${STEPS:-3000} episodes=${EPISODES:-20}
selfalign sources --plain --out data/real_sources --rigs "$rigs" --arms panda --demonstrations-per-rig 12 \
    --image-size 96 --seed 0 --workers 2
selfalign inspect --data lerobot:data/real_sources --plots data/real_sources.html
# Such data do not say where things are in their pictures, so the model starts as the shipped one, whose tower sees. With
# `--snapshots data/snapshots` (of 1_pretrain.sh) instead of `--start`, it starts from nothing.
selfalign pretrain --preset tiny --start checkpoints/tiny --data lerobot:data/real_sources --out runs/real_format \
    --steps "$steps" --seed 0 --widen-steps $((steps / 3)) --context-decay-steps 30 --play-per-slot 6 \
    --demonstrations-per-slot 10 --reach-weight 10 --lambda-grounding 20 --lambda-action 4 --changes frames rate --compile
[ -d data/real_recording ] ||
    selfalign play --scenario camera --seed 7 --trajectories 20 --video --out data/real_recording
[ -d data/real_play ] ||
    selfalign play import --source lerobot:data/real_recording --out data/real_play --name my_robot --video
selfalign align --checkpoint runs/real_format/policy --play lerobot:data/real_play --out contexts/real_format.safetensors
acts() {
    selfalign eval --checkpoint runs/real_format/policy --context contexts/real_format.safetensors \
        --body data/real_recording --task reach --episodes "$episodes" --seed 0 "$@"
}
acts --prior --out runs/real_format/before.json
acts --out runs/real_format/aligned.json
