from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.acting import ReachingActor, StillActor
from selfalign.bench.rollout import Arena, RolloutConfig, rollout
from selfalign.model.context import EmbodimentContext
from selfalign.sim.bodies import ActionSpace, BodySpec, sample_bodies
from selfalign.sim.engine import Simulation
from selfalign.sim.render import WristMount
from selfalign.sim.robots import RobotSpec


def test_an_actor_that_reads_state_and_speaks_the_bodys_numbers_reaches(panda_arena: Arena):
    body = sample_bodies(1, seed=3, scenario="action")[0]
    actor = ReachingActor(panda_arena, body)
    result = rollout(actor, body, config=RolloutConfig(episodes=12, seed=1), arena=panda_arena)
    assert result.successes >= 11
    assert max(outcome.progress for outcome in result.outcomes) <= 0
    # 50 steps, asked again every 4: 13 batches with all episodes in each.
    assert actor.batches == [12] * 13
    assert result.success.value == result.successes / 12


def test_an_actor_that_does_not_move_fails(panda_arena: Arena):
    body = BodySpec()
    result = rollout(StillActor(body), body, config=RolloutConfig(episodes=10, seed=1), arena=panda_arena)
    assert result.successes <= 1


def test_the_same_seed_gives_the_same_scenes_noise_and_outcome_in_any_batch(panda_arena: Arena):
    body = BodySpec()
    first, again, fewer = (ReachingActor(panda_arena, body) for _ in range(3))
    results = [
        rollout(actor, body, config=RolloutConfig(episodes=n, seed=7), arena=panda_arena)
        for actor, n in ((first, 4), (again, 4), (fewer, 2))
    ]
    assert np.array_equal(first.images[0], again.images[0])
    assert np.array_equal(first.noises[3], again.noises[3])
    assert np.array_equal(first.noises[3][:2], fewer.noises[3])
    progress = [[outcome.progress for outcome in result.outcomes] for result in results]
    assert progress[0] == progress[1]
    assert progress[0][:2] == progress[2]
    other = ReachingActor(panda_arena, body)
    rollout(other, body, config=RolloutConfig(episodes=4, seed=8), arena=panda_arena)
    assert not np.array_equal(first.images[0], other.images[0])


def test_pictures_of_a_shared_renderer_are_those_of_a_simulation_of_its_own(panda_arena: Arena):
    body = sample_bodies(1, seed=5, scenario="camera")[0]
    actor = ReachingActor(panda_arena, body)
    config = RolloutConfig(episodes=3, seed=2)
    rollout(actor, body, config=config, arena=panda_arena)
    with Arena(body.robot) as alone:
        one = ReachingActor(alone, body)
        rollout(one, body, config=RolloutConfig(episodes=1, seed=2), arena=alone)
    assert np.abs(one.images[0][0].astype(int) - actor.images[0][0]).max() <= 1
    assert not np.array_equal(actor.images[0][0], actor.images[0][1])


def test_film_shows_the_first_episodes_only(panda_arena: Arena):
    body = BodySpec()
    config = RolloutConfig(episodes=3, video_episodes=2, video_size=32, video_every=5)
    result = rollout(StillActor(body), body, config=config, arena=panda_arena)
    assert [len(outcome.frames) for outcome in result.outcomes] == [11, 11, 0]
    assert result.outcomes[0].frames[0].shape == (32, 32, 3)


def test_errors_name_what_is_wrong(panda_arena: Arena):
    body = BodySpec()
    with pytest.raises(ValueError, match=r"ur5e_panda.*panda_panda|panda_panda.*ur5e_panda"):
        rollout(StillActor(body), BodySpec(arm="ur5e"), arena=panda_arena)
    joint = sample_bodies(1, seed=0, scenario="joint")[0]
    with pytest.raises(ValueError, match="4 action dimensions"):
        rollout(StillActor(body), joint, config=RolloutConfig(episodes=1), arena=panda_arena)
    with pytest.raises(ValueError, match="at least one episode"):
        RolloutConfig(episodes=0)


def test_arena_makes_simulations_once():
    arena = Arena(RobotSpec("panda"))
    first = arena.simulations(2)
    assert all(isinstance(sim, Simulation) for sim in first)
    assert arena.simulations(1)[0] is first[0]


class Asked(StillActor):
    """Keeps what it is asked with."""

    def __init__(self, body: BodySpec):
        super().__init__(body)
        self.asked: list[tuple] = []

    def act(self, observation, context=None, *, noise=None, num_steps=10):
        self.asked.append((context, num_steps))
        return super().act(observation, context)


def test_the_policy_is_asked_under_the_context_in_as_many_steps_as_told(panda_arena: Arena):
    body, context = BodySpec(), EmbodimentContext((torch.zeros(1, 2, 2),), (torch.zeros(1, 1, 2),))
    actor = Asked(body)
    rollout(actor, body, context, RolloutConfig(episodes=1, num_steps=3, execute=8), arena=panda_arena)
    assert len(actor.asked) == 7 and all(own is context and steps == 3 for own, steps in actor.asked)


def test_every_episode_and_every_chunk_has_noise_of_its_own(panda_arena: Arena):
    drawn = []
    for seed in (7, 8):
        actor = ReachingActor(panda_arena, BodySpec())
        rollout(actor, BodySpec(), config=RolloutConfig(episodes=2, seed=seed, execute=8), arena=panda_arena)
        drawn += [row.tobytes() for noises in actor.noises for row in noises]
    assert len(drawn) == 2 * 7 * 2 == len(set(drawn))


def test_the_first_steps_of_every_chunk_are_carried_out_in_their_order(panda_arena: Arena, monkeypatch):
    class Numbered(StillActor):
        chunks = 0

        def act(self, observation, context=None, *, noise=None, num_steps=10):
            actions = np.zeros((1, 8, 4))
            actions[0, :, 0] = 1e-3 * (8 * self.chunks + np.arange(8))
            self.chunks += 1
            return actions

    done = []
    monkeypatch.setattr(ActionSpace, "execute", lambda self, controller, action: done.append(round(1e3 * action[0])))
    body = BodySpec()
    rollout(Numbered(body), body, config=RolloutConfig(episodes=1, execute=3), arena=panda_arena)
    assert done == [8 * chunk + step for chunk in range(17) for step in range(3)][:50]


def test_a_shared_arena_sees_through_the_wrist_camera_of_each_body(panda_arena: Arena):
    seen = []
    for bearing in (-30.0, 30.0):
        body = replace(BodySpec(), wrist=WristMount(bearing))
        panda_arena.dress(body)
        sim = panda_arena.simulations(1)[0]
        sim.reset(np.array([0.0, 0.0, 0.12]), {"red": (0.05, 0.02, 0.0)})
        seen.append(panda_arena.picture(sim, "wrist", 64).astype(int))
        with Simulation(body.robot) as alone:
            alone.mount_wrist(body.wrist)
            alone.reset(np.array([0.0, 0.0, 0.12]), {"red": (0.05, 0.02, 0.0)})
            assert np.abs(alone.render("wrist", 64) - seen[-1]).max() <= 1
    assert np.abs(seen[0] - seen[1]).mean() > 5
