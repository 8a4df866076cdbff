"""What a network's weights expect of an image: the other half of a weight file, and the half that files leave out.

A network that is given BGR for RGB, or 0..255 for 0..1, answers without complaint, and wrongly. Files written here
therefore carry their convention; for others the caller names it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tinyseg.interop.errors import WeightsError

KEY = "tinyseg.convention"
"""Under which it stands in a file's metadata."""


@dataclass(frozen=True)
class Convention:
    """The input is (image - mean) / std, for an image with values 0..1 and its channels in this order."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    channel_order: str = "RGB"  # "RGB", "BGR", or "grey" with one channel
    align_corners: bool | None = None  # of the network's bilinear resizing; None where it is not known

    def __post_init__(self):
        channels = {"RGB": 3, "BGR": 3, "grey": 1}.get(self.channel_order)
        if channels is None:
            raise WeightsError(f"channel_order must be RGB, BGR or grey, got {self.channel_order!r}")
        if len(self.mean) != channels or len(self.std) != channels or min(self.std) <= 0:
            raise WeightsError(
                f"the input convention needs {channels} means and {channels} positive deviations for "
                f"{self.channel_order}, got {self.mean} and {self.std}"
            )

    def in_rgb(self) -> "Convention":
        """The same for weights whose first layer has its input channels turned round, if this one is BGR."""
        if self.channel_order != "BGR":
            return self
        return Convention(self.mean[::-1], self.std[::-1], "RGB", self.align_corners)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> "Convention | None":
        """The convention that a file carries, if it does. Raises `WeightsError` for one that makes no sense."""
        text = metadata.get(KEY)
        if text is None:
            return None
        try:
            fields = json.loads(text)
            return cls(
                mean=tuple(float(value) for value in fields["mean"]),
                std=tuple(float(value) for value in fields["std"]),
                channel_order=fields["channel_order"],
                align_corners=None if fields["align_corners"] is None else bool(fields["align_corners"]),
            )
        except WeightsError:
            raise
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise WeightsError("is damaged: its input convention cannot be read") from error


TORCHVISION = Convention((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "RGB", align_corners=False)
"""All of torchvision's files but one."""

GOOGLENET = Convention((0.5,) * 3, (0.5,) * 3, "RGB")
"""torchvision's GoogLeNet. It takes images normalised like the others, and rescales them to this first."""

CAFFE = Convention((103.939 / 255, 116.779 / 255, 123.68 / 255), (1 / 255,) * 3, "BGR")
"""Networks converted from Caffe: 0..255 with the means subtracted, and blue first."""

VGG_FEATURES = Convention((0.48235, 0.45882, 0.40784), (1 / 255,) * 3, "RGB")
"""torchvision's vgg16_features file, which a detector's trunk starts from."""

CONVENTIONS = {
    "torchvision": TORCHVISION,
    "googlenet": GOOGLENET,
    "caffe": CAFFE,
    "vgg_features": VGG_FEATURES,
}
"""By the names that the command line has for them."""
