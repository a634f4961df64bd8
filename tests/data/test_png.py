import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from selfalign.data.png import decode_frame, encode_frames


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.just(3))))
@settings(max_examples=50)
def test_pillow_reads_the_same_pixels(frames):
    encoded = encode_frames(frames)
    assert len(encoded) == len(frames)
    for data, frame in zip(encoded, frames, strict=True):
        with Image.open(io.BytesIO(data)) as image:
            assert image.format == "PNG" and image.mode == "RGB"
            np.testing.assert_array_equal(np.asarray(image), frame)
        np.testing.assert_array_equal(decode_frame(data), frame)


def test_views_are_encoded_by_value():
    frames = np.random.default_rng(0).integers(0, 256, (2, 8, 6, 3), dtype=np.uint8)
    assert encode_frames(frames[::-1, :, ::-1]) == encode_frames(frames[::-1, :, ::-1].copy())


@pytest.mark.parametrize("keep", [0, 20, 60])
def test_cut_off_images_are_an_error(keep):
    data = encode_frames(np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8))[0]
    with pytest.raises(ValueError, match="not a readable image"):
        decode_frame(data[:keep])
