"""The ways up double a map, each in the way its name says."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import pad

from app.architectures.blocks import UPSAMPLINGS, DecoderBlock, interpolated, transposed

from .nets import hashed


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
def test_decoder_block_doubles(upsampling: str) -> None:
    block = DecoderBlock(4, 6, 2, upsampling=upsampling)
    result = block(hashed((2, 4, 3, 5), seed=1))
    assert result.shape == (2, 2, 6, 10)
    assert float(result.detach().min()) >= 0


@pytest.mark.parametrize("upsampling", ["transposed-2x2", "transposed-3x3", "transposed-4x4"])
def test_transposed_convolution_doubles(upsampling: str) -> None:
    layer = transposed(4, 2, upsampling)
    assert f"transposed-{layer.kernel_size[0]}x{layer.kernel_size[1]}" == upsampling
    assert layer(torch.zeros(1, 4, 3, 5)).shape == (1, 2, 6, 10)


def test_kernel_of_three_is_a_special_case_of_four() -> None:
    three = transposed(4, 2, "transposed-3x3").double()
    four = transposed(4, 2, "transposed-4x4").double()
    with torch.no_grad():
        four.weight.copy_(pad(three.weight, (0, 1, 0, 1)))
        assert three.bias is not None
        assert four.bias is not None
        four.bias.copy_(three.bias)
        picture = hashed((1, 4, 5, 7), seed=2).double()
        torch.testing.assert_close(four(picture), three(picture), rtol=0, atol=2e-15)


def test_aligned_corners_concern_bilinear_alone() -> None:
    picture = hashed((1, 1, 4, 4), seed=3)
    aligned = interpolated("bilinear", align_corners=True)(picture)
    between = interpolated("bilinear", align_corners=False)(picture)
    assert float((aligned - between).abs().max()) > 0.1
    repeated = interpolated("nearest", align_corners=True)(picture)
    assert torch.equal(repeated, picture.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_unknown_upsampling_is_named() -> None:
    with pytest.raises(ValueError, match="unknown upsampling `cubic`; known: transposed-3x3, tr"):
        DecoderBlock(1, 1, 1, upsampling="cubic")
    with pytest.raises(ValueError, match="unknown upsampling `nearest`"):
        transposed(1, 1, "nearest")
