"""What openpi and LeRobot call the tensors of pi0 and pi0.5: one table, for reading and for writing."""

from selfalign.model.policy import VLA

PALIGEMMA, EXPERT = "paligemma_with_expert.paligemma.", "paligemma_with_expert.gemma_expert."
TOWER, LANGUAGE = PALIGEMMA + "model.vision_tower.", PALIGEMMA + "model.language_model."
VISION = TOWER + "vision_model."
EMBEDDING, TIED_HEAD = LANGUAGE + "embed_tokens.weight", PALIGEMMA + "lm_head.weight"
UNUSED = EXPERT + "lm_head.weight"
"""A head of the action expert that no forward pass reads."""

STEMS = {
    "vision.patch_embedding": VISION + "embeddings.patch_embedding",
    "vision.position_embedding": VISION + "embeddings.position_embedding.weight",
    "vision.blocks": VISION + "encoder.layers",
    "vision.post_norm": VISION + "post_layernorm",
    "image_proj": PALIGEMMA + "model.multi_modal_projector.linear",
    "embed_tokens": LANGUAGE + "embed_tokens",
    "mixture.vlm.blocks": LANGUAGE + "layers",
    "mixture.vlm.final_norm": LANGUAGE + "norm",
    "mixture.experts.action.blocks": EXPERT + "model.layers",
    "mixture.experts.action.final_norm": EXPERT + "model.norm",
    "state_in": "state_proj",
    "action_in": "action_in_proj",
    "action_out": "action_out_proj",
}
"""Selfalign's module -> openpi's. The time component is in `TIME_STEMS`, what lies inside of a module in `PARTS`."""

TIME_STEMS = {
    "concat": {"time.action.mlp_in": "action_time_mlp_in", "time.action.mlp_out": "action_time_mlp_out"},
    "adarms": {"time.action.mlp_in": "time_mlp_in", "time.action.mlp_out": "time_mlp_out"},
}

PARTS = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "modulation": "dense",
    **{name: f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj", "out_proj")},
}


def tensor_names(model: VLA) -> dict[str, str]:
    """Selfalign's name -> openpi's, for every parameter that openpi has too: the adapter in both directions.

    Alignment expert, TTT layers and grounding heads have no counterpart and are left out.
    """
    stems = STEMS | TIME_STEMS[model.config.time]
    names = {}
    for name, _ in model.named_parameters():
        stem = next((s for s in stems if name == s or name.startswith(s + ".")), None)
        if stem is not None and ".ttt." not in name:
            rest = [PARTS.get(part, part) for part in name[len(stem) :].split(".")]
            names[name] = stems[stem] + ".".join(rest)
    return names


def canonical_name(name: str) -> str:
    """openpi's name of a tensor in a file of openpi or LeRobot.

    LeRobot puts `model.` before every name; newer versions of transformers leave `vision_model.` out; the embedding is
    written under one of two tied names, or under both.
    """
    name = name.removeprefix("model.")
    if name.startswith(TOWER) and not name.startswith(VISION):
        name = VISION + name.removeprefix(TOWER)
    return EMBEDDING if name == TIED_HEAD else name


def written_names(model: VLA) -> dict[str, str]:
    """Selfalign's name -> the name in openpi's file, the tied embedding as openpi writes it (`paligemma.lm_head`)."""
    written = {EMBEDDING: TIED_HEAD}
    return {ours: written.get(theirs, theirs) for ours, theirs in tensor_names(model).items()}
