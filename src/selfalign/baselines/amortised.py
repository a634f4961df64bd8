"""`encoder`: an amortised context. One forward pass over play gives what aligning would fit, after RMA (arXiv
2107.04034). Nothing is optimised for a new body.
"""

from dataclasses import dataclass, field
from functools import lru_cache

from selfalign.baselines.encoder import TrainedEncoder, encoder_inputs
from selfalign.baselines.encoder_training import EncoderTraining, Recordings, train_encoder
from selfalign.baselines.method import Given, Outcome, check_positive
from selfalign.baselines.samples import spread_rows
from selfalign.policy import Policy


@dataclass(frozen=True)
class EncoderConfig:
    """Reading a context out of play: with an encoder from a file, or with one that is trained here."""

    path: str | None = None
    """File of the encoder (`selfalign bench encoder`)."""
    data: tuple[str, ...] = ()
    """Data sets to train one on, once in a process: what tuning does."""
    features: str | None = None
    """Folder for what the vision tower sees in them; None: one of their own."""
    training: EncoderTraining = field(default_factory=EncoderTraining)
    """How; without `data` it means nothing."""
    transitions: int = 1024
    """At most so many transitions of the play are read, evenly spread."""

    def __post_init__(self) -> None:
        check_positive(self, ("transitions",))


def encoder(given: Given, config: EncoderConfig) -> Outcome:
    """The policy as it is, with the context that the encoder gives."""
    play, policy = given.own_play(), given.policy
    trained = _encoder(policy, config)
    inputs = encoder_inputs(policy, policy.transitions(play, given.stats))
    rows = spread_rows(len(inputs), config.transitions)
    read = trained.context(policy, inputs[rows])
    context = given.context_of(policy, like=read)
    history = {"distance_to_prior": context.distance(policy.model.prior()), "training": dict(trained.training)}
    return Outcome(policy, context, history, context.num_bytes)


def _encoder(policy: Policy, config: EncoderConfig) -> TrainedEncoder:
    if (config.path is None) == (not config.data):
        raise ValueError(
            "encoder: give either the `path` of an encoder (`selfalign bench encoder` trains one) or `data` to train "
            f"one on; got path={config.path}, data={config.data}"
        )
    if config.path is not None:
        return TrainedEncoder.load(config.path, fingerprint=policy.fingerprint())
    return _trained(policy, config.data, config.features, config.training)


@lru_cache(maxsize=1)
def _recordings(policy: Policy, data: tuple[str, ...], features: str | None) -> Recordings:
    return Recordings.open(policy, data, features)


@lru_cache(maxsize=2)
def _trained(policy: Policy, data: tuple[str, ...], features: str | None, training: EncoderTraining) -> TrainedEncoder:
    return train_encoder(policy, _recordings(policy, data, features), training)
