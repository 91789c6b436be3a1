"""Files that may hold weights, ours and those of others; what in them is code is never run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch

from tomoscale.errors import TomoscaleError

PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and compilation write before the names of weights."""
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network")
"""Under which names foreign checkpoints keep the weights among other things."""


def head_of(target: Path) -> bytes:
    """Return the first bytes of a file that may be a checkpoint."""
    if not target.exists():
        raise TomoscaleError(f"{target}: no such checkpoint")
    if not target.is_file():
        raise TomoscaleError(f"{target}: is a folder; expected a checkpoint, model.safetensors say")
    with open(target, "rb") as file:
        head = file.read(16)
    if not head:
        raise TomoscaleError(f"{target}: is empty; expected a checkpoint")
    return head


def is_pickle(head: bytes) -> bool:
    """Tell whether a file begins as pickles and the archives of PyTorch do."""
    return head[:4] == b"PK\x03\x04" or (head[:1] == b"\x80" and 2 <= head[1] <= 5)


def safetensors_of(target: Path) -> tuple[dict[str, torch.Tensor], Mapping[str, str]]:
    """Return the weights of a file of safetensors, and what is said of them."""
    try:
        with safetensors.safe_open(target, framework="pt") as file:
            return {name: file.get_tensor(name).clone() for name in file.keys()}, file.metadata() or {}
    except (safetensors.SafetensorError, ValueError, RuntimeError, OSError, MemoryError) as error:
        text = " ".join(str(error).split())[:160]
        raise TomoscaleError(f"{target}: not a checkpoint, or a truncated one ({text})") from None


def state_dict(target: Path) -> Any:
    """Return what a file of PyTorch or safetensors holds, as far as it is weights."""
    if not is_pickle(head_of(target)):
        return safetensors_of(target)[0]
    try:
        return torch.load(target, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch raises whatever its unpickler met
        first = next((line for line in str(error).splitlines() if "global" in line.lower()), str(error))
        text = " ".join(first.split())[:160]
        raise TomoscaleError(
            f"{target}: holds more than weights, or is damaged, and nothing of it was run ({text}); "
            "save model.state_dict() alone"
        ) from None


def stripped(found: Any) -> dict[str, torch.Tensor]:
    """Return the weights by their names in the network itself."""
    for name in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    weights = dict(found) if isinstance(found, Mapping) else {}
    for prefix in PREFIXES * 2:
        if weights and all(str(n).startswith(prefix) for n in weights):
            weights = {n.removeprefix(prefix): t for n, t in weights.items()}
    return {str(n): t for n, t in weights.items() if isinstance(t, torch.Tensor)}
