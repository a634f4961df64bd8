"""Where a model may go."""

import torch


def existing_device(name: str | torch.device) -> torch.device:
    """A device that this machine has: asked for before the work, it is told in a line and not after hours.

    Raises:
        ValueError: no device is called so, or CUDA is asked for and there is none, or not so many devices.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f'no device is called "{name}": say "cpu", "cuda", or "cuda:1" for the second GPU') from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(
                f'the device "{name}" was asked for, and this torch has no CUDA or finds no GPU (torch '
                f'{torch.__version__}): install one with CUDA, or take "cpu"'
            )
        if (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(f'there is no device "{name}": torch finds {torch.cuda.device_count()}, counted from 0')
    return device
