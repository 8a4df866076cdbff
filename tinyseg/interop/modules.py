"""Between weight files and networks."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tinyseg import nn
from tinyseg.backend import Array
from tinyseg.interop import layout, names
from tinyseg.interop.convention import Convention
from tinyseg.interop.errors import WeightsError
from tinyseg.interop.files import Weights, read_weights, write_weights
from tinyseg.interop.layout import Entry
from tinyseg.nn import Module


@dataclass(frozen=True)
class Loaded:
    """What became of a weight file."""

    names: int  # of the network, that were set
    convention: Convention | None  # of the network's input from now on, where it is known; never BGR
    notices: tuple[str, ...]  # what the file has and the network has not, or the other way, where that is in order


def load_weights(
    module: Module,
    source: str | Path | Weights,
    *,
    only: str | None = None,
    convention: Convention | None = None,
) -> Loaded:
    """Set a network's parameters and running statistics from a file with torchvision's names.

    only         the name of a part, as "backbone" or "trunk": set this part alone. The file may be that of a whole
                 network with such a part, or of a classifier that is such a part; the rest is left aside
    convention   of the file, where it does not say it itself. The weights of a network that wants BGR are turned,
                 so that the network wants RGB afterwards

    `num_batches_tracked` may be there or not, and so may auxiliary heads, with a notice. Everything else must be
    there, with its shape. If something does not fit, `WeightsError` lists all of it, and the network stays as it
    was.
    """
    weights = source if isinstance(source, Weights) else read_weights(source)
    part = module if only is None else _part(module, only)
    entries = layout.entries(part)
    file_names = _file_names(weights, only)
    state, problems = _converted(entries, file_names, weights, partial=only is not None)
    if problems:
        raise WeightsError(_misfit(module, weights, problems, only))

    found = convention or weights.convention
    if found is not None and found.channel_order == "BGR":
        turn_round(part, state)
    part.load_state_dict(part.state_dict() | state)
    return Loaded(len(state), found.in_rgb() if found else None, _notices(entries, file_names, weights, only))


def save_weights(path: str | Path, module: Module, *, convention: Convention | None = None) -> None:
    """Write a network's weights for PyTorch: as .pth, or .safetensors, by the name's ending.

    `torch_net.load_state_dict(torch.load(path, weights_only=True))` takes them, where torch_net has the same
    layers under the same names. Raises as `write_weights` does.
    """
    write_weights(path, layout.to_file(module), convention)


def _part(module: Module, name: str) -> Module:
    parts = {path: part for path, part in module.named_modules() if path and "." not in path}
    if name not in parts:
        raise WeightsError(f"{type(module).__name__} has no part {name!r}; it has {', '.join(parts)}")
    return parts[name]


def _file_names(weights: Weights, only: str | None) -> dict[str, str]:
    """The names in the file by the names that they have in the network, or in its part `only`."""
    by_name = {name: file_name for file_name, name in names.renamed(weights.arrays).items()}
    if only is None:
        return by_name
    for part in (only, *names.TRUNKS) if only in names.TRUNKS else (only,):
        prefix = f"{part}."
        inside = {name.removeprefix(prefix): f for name, f in by_name.items() if name.startswith(prefix)}
        if inside:
            return inside
    return by_name


def _converted(
    entries: Mapping[str, Entry], file_names: Mapping[str, str], weights: Weights, *, partial: bool
) -> tuple[dict[str, Array], list[str]]:
    """The arrays for a network in its names and layout, and all that does not fit, in the file's names."""
    heads_here, heads_there = _heads(entries), _heads(file_names)
    prefix = _wrapper(weights)
    state, missing, unexpected, misshapen = {}, [], [], []
    for name, entry in entries.items():
        if name in file_names:
            file_name = file_names[name]
            array = weights.arrays[file_name]
            ours = entry.from_file(array)
            if ours is None:
                misshapen.append(
                    f"shape: {file_name} is {array.shape} in the file and {entry.file_shape} in the network"
                )
            elif array.dtype.kind != entry.value.data.dtype.kind:
                misshapen.append(f"type: {file_name} is {array.dtype}, the network needs {entry.value.data.dtype}")
            else:
                state[name] = ours
        elif names.auxiliary(name) not in heads_here - heads_there:
            missing.append(f"missing: {prefix}{name} {entry.file_shape}")
    for name, file_name in file_names.items():
        known = name in entries or names.is_counter(name) or names.auxiliary(name) in heads_there - heads_here
        if not known and not partial:
            unexpected.append(f"unexpected: {file_name} {weights.arrays[file_name].shape}")
    return state, missing + unexpected + misshapen


def _heads(known: Iterable[str]) -> set[str]:
    """The auxiliary heads among names."""
    return {head for name in known if (head := names.auxiliary(name)) is not None}


def _wrapper(weights: Weights) -> str:
    """What stands before every name of the file, usually nothing."""
    file_name, name = next(iter(names.renamed(weights.arrays).items()), ("", ""))
    return file_name[: len(file_name) - len(name)] if file_name.endswith(name) else ""


def _notices(
    entries: Mapping[str, Entry], file_names: Mapping[str, str], weights: Weights, only: str | None
) -> tuple[str, ...]:
    """What is in order, and yet should be known."""
    heads_here, heads_there = _heads(entries), _heads(file_names)
    notices = [f"{head}* is not in the file: it keeps its weights" for head in sorted(heads_here - heads_there)]
    if only is None:
        notices += [
            f"{head}* of the file is not in the network: left aside" for head in sorted(heads_there - heads_here)
        ]
    else:
        used = sum(name in entries for name in file_names)
        rest = [name for name in weights.arrays if not names.is_counter(name)]
        if len(rest) > used:
            notices.append(f"{len(rest) - used} entries of the file do not belong to {only}: left aside")
    if weights.ignored:
        notices.append(f"{len(weights.ignored)} entries of the file are no tensors: left aside")
    return tuple(notices)


def _misfit(module: Module, weights: Weights, problems: list[str], only: str | None) -> str:
    """The error message for weights of another network."""
    network = type(module).__name__ if only is None else f"the {only} of {type(module).__name__}"
    family = names.family(weights.arrays)
    origin = f"The file has the names of torchvision's {family}. " if family else ""
    trunk = next((name for name, _ in module.named_children() if name in names.TRUNKS), None)
    advice = f'To take the trunk alone, pass only="{trunk}". ' if trunk and only is None else ""
    return (
        f"{weights.path} does not fit {network}: it belongs to another network, or to one with other settings. "
        f"{origin}{advice}{len(problems)} names do not fit, in the layout of the file:\n  " + "\n  ".join(problems)
    )


def turn_round(part: Module, state: dict[str, Array]) -> None:
    """Reverse the input channels of the first convolution in a state of `part`: BGR becomes RGB."""
    for name, layer in part.named_modules():
        if isinstance(layer, nn.Conv2d):
            key = f"{name}.weight" if name else "weight"
            if key not in state or state[key].shape[2] != 3:
                raise WeightsError(
                    f"the weights want BGR, but the first convolution of {type(part).__name__} has "
                    f"{layer.in_channels} input channels, not 3"
                )
            state[key] = state[key][:, :, ::-1, :]
            return
    raise WeightsError(f"the weights want BGR, but {type(part).__name__} has no convolution to turn round")
