"""Names in weight files, and how they become the names of a module.

Modules here have torchvision's attribute names, so nearly every name is its own. What is left are rules, not
tables: prefixes that wrappers add, DenseNet's old names, and the parts that a file may have or lack.
"""

import re
from collections.abc import Iterable

WRAPPERS = ("module.",)
"""What training on several devices puts before every name."""

AUXILIARY = ("aux_classifier.", "aux1.", "aux2.")
"""Heads that only help in training. A file may have them or not, and so may a network."""

TRUNKS = ("backbone", "trunk")
"""Attributes that hold the trunk of a segmentation network, in torchvision and in most of the networks here."""

COUNTER = "num_batches_tracked"
"""Counts the batches of a batch normalisation. Nothing here depends on it."""

OLD_DENSENET = re.compile(r"(\.denselayer\d+\.(?:norm|conv))\.([12]\.)")
"""torchvision's DenseNet files were written when "norm1" was still "norm.1"."""


def renamed(names: Iterable[str]) -> dict[str, str]:
    """The names that a module would have for the names of a file."""
    names = list(names)
    cut = next((len(prefix) for prefix in WRAPPERS if names and all(n.startswith(prefix) for n in names)), 0)
    return {name: OLD_DENSENET.sub(r"\1\2", name[cut:]) for name in names}


def is_counter(name: str) -> bool:
    return name.rpartition(".")[2] == COUNTER


def auxiliary(name: str) -> str | None:
    """The auxiliary head that a name belongs to, or None."""
    return next((head for head in AUXILIARY if name.startswith(head)), None)


RESNETS = {(False, 2): "resnet18", (False, 6): "resnet34", (True, 6): "resnet50", (True, 23): "resnet101"}
"""By the kind of unit (with three convolutions or two) and the number of units in layer3."""

PLAIN = {10: "alexnet", 28: "vgg16", 41: "vgg16_bn"}
"""By the index of the last layer with weights in `features`."""


def family(names: Iterable[str]) -> str | None:
    """Which of torchvision's networks has such names, for an error message. None if it is not known."""
    known = set(renamed(names).values())

    def indices(prefix: str) -> set[int]:
        """The numbers that follow a prefix."""
        rest = (name.removeprefix(prefix).partition(".")[0] for name in known if name.startswith(prefix))
        return {int(part) for part in rest if part.isascii() and part.isdigit()}

    trunk = "backbone." if indices("backbone.layer3.") else ""
    resnet = RESNETS.get((f"{trunk}layer1.0.conv3.weight" in known, len(indices(f"{trunk}layer3."))))
    if resnet is not None:
        head = "deeplabv3_" if "classifier.0.project.0.weight" in known else "fcn_"
        return head + resnet if trunk else resnet
    if "inception3a.branch1.conv.weight" in known:
        return "googlenet"
    if len(indices("features.denseblock3.denselayer")) == 24:
        return "densenet121"
    return PLAIN.get(max(indices("features."), default=0))
