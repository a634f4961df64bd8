"""The model of a training as others are to have it."""

from typing import cast

from selfalign.model.policy import VLA
from selfalign.model.weights import empty_model, load_tensors, unique_tensors
from selfalign.train.lora import has_lora, merged
from selfalign.train.parallel import whole
from selfalign.train.step import TrainState


def finished(state: TrainState) -> VLA | None:
    """The model with averaged weights, merged adapters and gathered shards; where there are none, itself.

    Every process of a training calls it. Returns None but in the main one.
    """
    model, world, adapted = cast(VLA, state.model), state.engine.world, has_lora(state.model)
    if state.ema is None and not adapted and not state.engine.sharded:
        return model if world.main else None
    tensors = {**unique_tensors(model), **({} if state.ema is None else state.ema.values)}
    if state.engine.sharded:  # one by one, and kept in one process
        gathered = ((name, whole(tensor)) for name, tensor in tensors.items())
        tensors = {name: tensor.cpu() for name, tensor in gathered if world.main}
    if not world.main:
        return None
    plain = empty_model(model.config)
    load_tensors(plain, merged(model, tensors) if adapted else tensors, "the training's model")
    return plain.train(model.training)
