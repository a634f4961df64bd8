"""`encoder`: an amortised context. One forward pass over play gives what aligning would fit, after RMA (arXiv
2107.04034). Nothing is optimised for a new body.
"""

from dataclasses import dataclass, field
from functools import lru_cache

from selfalign.baselines.encoder import TrainedEncoder, encoder_inputs
from selfalign.baselines.encoder_training import EncoderTraining, read_examples, train_encoder
from selfalign.baselines.method import Given, Outcome, check_positive
from selfalign.baselines.samples import spread_rows


@dataclass(frozen=True)
class EncoderConfig:
    """Reading a context out of play: with an encoder from a file, or with one that is trained here."""

    path: str | None = None
    """File of the encoder (`selfalign bench encoder`)."""
    examples: str | None = None
    """Folder of examples to train one from, once in a process: what tuning does."""
    training: EncoderTraining = field(default_factory=EncoderTraining)
    """How; without `examples` it means nothing."""
    transitions: int = 1024
    """At most so many transitions of the play are read, evenly spread."""

    def __post_init__(self) -> None:
        check_positive(self, ("transitions",))


def encoder(given: Given, config: EncoderConfig) -> Outcome:
    """The policy as it is, with the context that the encoder gives."""
    play, policy = given.own_play(), given.policy
    trained = _encoder(config, policy.fingerprint())
    inputs = encoder_inputs(policy, policy.transitions(play, given.stats))
    rows = spread_rows(len(inputs), config.transitions)
    read = trained.network.to(policy.device).context(policy.model, inputs[rows])
    context = given.context_of(policy, like=read)
    history = {"distance_to_prior": context.distance(policy.model.prior()), "training": dict(trained.training)}
    return Outcome(policy, context, history, context.num_bytes)


def _encoder(config: EncoderConfig, fingerprint: str) -> TrainedEncoder:
    if (config.path is None) == (config.examples is None):
        raise ValueError(
            "encoder: give either the `path` of an encoder (`selfalign bench encoder` trains one) or a folder of "
            f"`examples` to train one from; got path={config.path}, examples={config.examples}"
        )
    if config.path is not None:
        return TrainedEncoder.load(config.path, fingerprint=fingerprint)
    trained = _trained(str(config.examples), config.training)
    if trained.fingerprint != fingerprint:
        raise ValueError(f"{config.examples} are of model {trained.fingerprint}, but this model is {fingerprint}")
    return trained


@lru_cache(maxsize=2)
def _trained(examples: str, training: EncoderTraining) -> TrainedEncoder:
    return train_encoder(read_examples(examples), training)
