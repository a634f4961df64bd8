"""`selfalign play`: a simulated robot plays."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from selfalign.commands.evaluate import read_body
from selfalign.configs import below, refuse
from selfalign.robots.record import write_play
from selfalign.sim.bodies import sample_bodies
from selfalign.sim.playing import play_by_axes
from selfalign.sim.record import play_trajectories
from selfalign.sim.regions import Region, Scenario
from selfalign.workers import track


@dataclass(frozen=True)
class RecordConfig:
    """Let a simulated robot play: smooth random motion, no task, no labels. Writes a LeRobot data set."""

    out: Path
    """Folder of the new data set."""
    body: Path | None = None
    """JSON of the body; None: draw one."""
    scenario: Scenario = "camera"
    """What is unseen about the body that is drawn."""
    region: Region = "heldout"
    seed: int = 0
    """Draws the body and its motion."""
    trajectories: int = 20
    length: int = 50
    """Frames of each trajectory, at 20 Hz."""
    axes: bool = False
    """Move the dimensions of its action vector, all of them to random places and one by one, as `--robot` moves a robot
    of yours; otherwise its tip goes about the workspace."""
    brisk: bool = False
    """Move the axes in the brisk tempo of `--robot`, at the speed of the fastest action."""
    image_size: int = 96
    video: bool = False
    """Store the camera's frames as video, which is smaller and not exact."""

    def __post_init__(self) -> None:
        refuse("play", below(self, trajectories=1, length=1, image_size=1))


def run(config: RecordConfig) -> None:
    """Records a body that is given, or drawn.

    Raises:
        ValueError: no frames, no such body, or a tempo of axes that are not moved.
        FileExistsError: the folder holds something.
    """
    if config.brisk and not config.axes:
        raise ValueError("--brisk is a tempo of the axes; give --axes too")
    body = (
        sample_bodies(1, config.seed, config.region, config.scenario)[0]
        if config.body is None
        else read_body(config.body)
    )
    record = partial(play_by_axes, brisk=config.brisk) if config.axes else play_trajectories
    recording = record(body, config.trajectories, config.length, config.seed, image_size=config.image_size)
    write_play(
        config.out,
        track(recording, description="playing", total=config.trajectories),
        embodiment={"name": body.name, **body.to_dict()},
        fps=body.control_hz,
        robot_type=body.robot.name,
        video=config.video,
    )
    print(f"{config.trajectories} trajectories of {body.name} in {config.out}")
