"""The shipped model as somebody would run it who has torch and its files, and nothing of ours.

    net = Net(Path("model_store/buildings/1"))
    picture = decoded(jpeg)
    png = encoded(net.segment([picture])[0])

Only the architecture's code is ours. Pillow decodes and encodes; torch runs eagerly in float32, on
CUDA where there is a device, else on the CPU with as many threads as torch takes by itself.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

from app.architectures.base import get


class Net:
    """The net of a model folder: pictures in, masks out."""

    def __init__(self, folder: Path, *, fast: bool = False) -> None:
        """`fast`: bfloat16 and channels last."""
        manifest = json.loads((folder / "manifest.json").read_text())
        self.stride: int = manifest["input"]["stride"]
        self.threshold: float = manifest["threshold"]
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.bfloat16 if fast else torch.float32
        self.order = torch.channels_last if fast else torch.contiguous_format
        net: Any = get(manifest["architecture"]).build(**manifest["parameters"])
        net.load_state_dict(load_file(folder / "weights.safetensors"))
        self.net = net.eval().to(self.device, self.dtype).to(memory_format=self.order)
        shape = (1, 3, 1, 1)
        self.mean = torch.tensor(manifest["input"]["mean"], device=self.device).view(shape)
        self.std = torch.tensor(manifest["input"]["std"], device=self.device).view(shape)

    def segment(self, pictures: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.bool_]]:
        """(H, W, 3) uint8 each -> (H, W) bool each. Pictures of one size make one batch."""
        masks: list[NDArray[np.bool_] | None] = [None] * len(pictures)
        for shape in {picture.shape for picture in pictures}:
            places = [i for i, picture in enumerate(pictures) if picture.shape == shape]
            batch = self.batch(np.stack([pictures[i] for i in places]))
            for place, mask in zip(places, batch, strict=True):
                masks[place] = mask
        return [mask for mask in masks if mask is not None]

    def batch(self, pictures: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """(N, H, W, 3) uint8 -> (N, H, W) bool."""
        _, height, width, _ = pictures.shape
        down, across = -height % self.stride, -width % self.stride
        top, left = down // 2, across // 2
        edges = ((0, 0), (top, down - top), (left, across - left), (0, 0))
        padded = np.pad(pictures, edges, mode="reflect")
        with torch.inference_mode():
            x = torch.from_numpy(padded).to(self.device).permute(0, 3, 1, 2).float() / 255
            x = ((x - self.mean) / self.std).to(self.dtype).contiguous(memory_format=self.order)
            found = self.net(x).float().sigmoid()[:, 0] > self.threshold
        masks: NDArray[np.bool_] = found.cpu().numpy()
        return masks[:, top : top + height, left : left + width]


def decoded(data: bytes) -> NDArray[np.uint8]:
    """(H, W, 3) uint8. Raises OSError or ValueError for what is no whole picture."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def encoded(mask: NDArray[np.bool_]) -> bytes:
    """A PNG, 255 where the mask is set."""
    out = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(out, "PNG")
    return out.getvalue()
