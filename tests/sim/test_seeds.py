"""Bodies of choices and of results are others, and what the scripts record is what the table says."""

import re
from pathlib import Path

import pytest

from selfalign.sim.bodies import sample_bodies, sample_rigs
from selfalign.sim.regions import SCENARIOS, bearing_region, frame_region
from selfalign.sim.seeds import SNAPSHOT_RIGS, SOURCE_RIGS, TEST, VALIDATION, VALIDATION_FROM, seeds_of, split_of

ROOT = Path(__file__).parents[2]
SPLITS = ("validation", "test")


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_body_is_of_two_splits(scenario):
    drawn = {split: [sample_bodies(5, seed, "heldout", scenario) for seed in seeds_of(split)] for split in SPLITS}
    bodies = {split: [body for bodies in of for body in bodies] for split, of in drawn.items()}
    cameras = {split: {body.camera for body in of} for split, of in bodies.items()}
    frames = {split: {str(body.action_space.to_dict()) for body in of} for split, of in bodies.items()}
    assert len(cameras["test"]) == len(frames["test"]) == 15
    assert not cameras["test"] & cameras["validation"] and not frames["test"] & frames["validation"]
    sources = {rig.camera for rig in sample_rigs(20, SOURCE_RIGS)}
    assert not sources & (cameras["test"] | cameras["validation"])


def test_both_splits_are_held_out():
    for split in SPLITS:
        for body in sample_bodies(5, seeds_of(split)[0], "heldout", "all"):
            assert bearing_region(body.camera.azimuth) == "heldout"
            assert frame_region(body.action_space.frame) == "heldout" and body.arm == "ur5e"


def test_seeds_tell_their_split():
    assert {split_of(seed) for seed in VALIDATION} == {"validation"}
    assert {split_of(seed) for seed in (*TEST, 4321, VALIDATION_FROM - 1)} == {"test"}


def test_the_script_of_the_shipped_checkpoint_records_those_sources():
    script = (ROOT / "runs" / "1_pretrain.sh").read_text().replace("\\\n", " ")
    seeds = dict(re.findall(r"^selfalign (\w+) .*--seed (\d+)", script, flags=re.MULTILINE))
    told = {"snapshots": SNAPSHOT_RIGS, "sources": SOURCE_RIGS, "pretrain": SOURCE_RIGS}
    assert {name: int(seed) for name, seed in seeds.items()} == told
