from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from selfalign.data.transforms import (
    dim_mask,
    pad_dims,
    pixels_from_model,
    pixels_to_model,
    resize_with_pad,
    resize_with_pad_torch,
    tokenize_tasks,
    unpad_dims,
)
from selfalign.model.tokenizer import ByteTokenizer


def test_pixels_go_to_the_unit_range_channel_first_and_back():
    frames = np.random.default_rng(0).integers(0, 256, (2, 5, 6, 7, 3), dtype=np.uint8)
    images = pixels_to_model(frames)
    assert images.shape == (2, 5, 3, 6, 7) and images.dtype == torch.float32
    np.testing.assert_allclose(images[1, 2, 0].numpy(), frames[1, 2, :, :, 0] / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(pixels_from_model(images), frames)


def test_float_pixels_are_refused(as_users_run):
    with pytest.raises(ValueError, match="uint8"):
        pixels_to_model(np.zeros((2, 6, 7, 3), np.float32))


def test_resizing_keeps_the_aspect_and_pads_evenly():
    frames = np.full((1, 20, 40, 3), 200, np.uint8)
    small = resize_with_pad(frames, 16, 16)
    assert small.shape == (1, 16, 16, 3)
    np.testing.assert_array_equal(small[0, 4:12], 200)
    assert small[0, :4].max() == 0 and small[0, 12:].max() == 0
    assert resize_with_pad(frames, 20, 40) is frames


def test_shrinking_averages():
    checkerboard = np.indices((32, 32)).sum(axis=0) % 2 * 255
    frames = np.repeat(checkerboard[None, :, :, None], 3, axis=3).astype(np.uint8)
    small = resize_with_pad(frames, 8, 8)
    assert np.abs(small[0, 1:-1, 1:-1].astype(int) - 127).max() <= 8


@pytest.fixture(scope="module")
def openpi() -> dict[str, torch.Tensor]:
    """Numbers of openpi's own functions; of the resized pictures, every eighth row and column from the fourth on."""
    return load_file(Path(__file__).parent / "openpi_units" / "units.safetensors")


@pytest.mark.parametrize("picture", ["small", "tall", "wide"])
def test_resizing_is_openpis_clients(openpi, picture):
    resized = resize_with_pad(openpi[f"resize.{picture}.in_u8"].numpy(), 224, 224)
    np.testing.assert_array_equal(resized[:, 3::8, 3::8], openpi[f"resize.{picture}.client_pil_u8"].numpy())


@pytest.mark.parametrize("picture", ["small", "tall", "wide"])
def test_resizing_is_openpis_models(openpi, picture):
    resized = resize_with_pad_torch(pixels_to_model(openpi[f"resize.{picture}.in_u8"]), 224, 224)
    expected = openpi[f"resize.{picture}.torch_float"].movedim(-1, 1)
    torch.testing.assert_close(resized[:, :, 3::8, 3::8], expected, rtol=0, atol=1e-6)
    assert resize_with_pad_torch(resized, 224, 224) is resized


def test_resizing_cuts_fractions_and_puts_the_spare_row_below():
    frames = np.full((1, 100, 67, 3), 255, np.uint8)
    small = resize_with_pad(frames, 20, 24)
    assert (small[0, 0] == 255).any(axis=-1).sum() == 13, "13.4 columns are 13"
    image = resize_with_pad_torch(pixels_to_model(frames), 24, 20)[0, 0]
    rows = (image == 1).any(dim=1).nonzero()
    assert (rows.min(), rows.max()) == (0, 23) and (image == -1).any(dim=0).sum() == 20 - 16
    flat = resize_with_pad_torch(pixels_to_model(np.full((1, 30, 60, 3), 255, np.uint8)), 21, 20)[0, 0]
    assert (flat == 1).any(dim=1).nonzero().flatten().tolist() == list(range(5, 15)), "5 rows above, 6 below"


@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor])
def test_padding_adds_zeros_at_the_end(make):
    values = make(np.arange(6, dtype=np.float32).reshape(2, 3))
    padded = pad_dims(values, 5)
    assert np.asarray(padded).tolist() == [[0, 1, 2, 0, 0], [3, 4, 5, 0, 0]]
    assert np.asarray(unpad_dims(padded, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert dim_mask(3, 5).tolist() == [True, True, True, False, False]
    with pytest.raises(ValueError, match="3 dimensions do not fit into the model's 2"):
        pad_dims(values, 2)


def test_tasks_are_tokenised_once_each():
    tokens, mask = tokenize_tasks(["", "reach the red cube"], ByteTokenizer(32))
    assert tokens.shape == mask.shape and len(tokens) == 2
    assert mask[0].sum() < mask[1].sum()
