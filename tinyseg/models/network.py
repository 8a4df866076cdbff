"""What all segmentation networks have in common."""

from tinyseg import nn
from tinyseg.functional import Input
from tinyseg.tape import Tensor


class SegmentationNetwork(nn.Module):
    """A network from images to one number per class and pixel, before the softmax.

    forward:  (N, H, W, in_channels) -> logits (N, h, w, classes)

    Most networks answer for every pixel, h = H. One with unpadded convolutions answers for the middle of its
    input, all but `context` pixels on each side; whoever trains it crops the labels to the middle.
    """

    in_channels: int
    classes: int
    context: int = 0

    def forward(self, x: Input) -> Tensor:
        raise NotImplementedError

    def input_side(self, output_side: int) -> int:
        """The height (or width) of an input whose logits cover at least so many pixels."""
        return output_side
