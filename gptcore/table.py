"""The token table as a .npy file: to start from one made elsewhere, and to hand the trained one on."""

from pathlib import Path

import numpy as np
import torch

from .config import TrainConfig
from .errors import UserError
from .files import write_atomically
from .model import GPT
from .optim import TABLE


def import_table(model: GPT, config: TrainConfig, *, fresh: bool) -> None:
    """Puts the table of `import_wte_npy` into a model at a fresh start, and freezes it where asked.

    A tied head has the same table. UserError for a file that is not a finite array of the right shape.
    """
    weight = model.get_parameter(TABLE)
    if config.import_wte_npy is not None and fresh:
        table = _read(Path(config.import_wte_npy), tuple(weight.shape))
        with torch.no_grad():
            weight.copy_(torch.from_numpy(table))
    weight.requires_grad_(not config.import_wte_freeze)


def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    try:
        table = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"train.import_wte_npy: {path} cannot be read as a .npy file ({reason})") from error
    if not isinstance(table, np.ndarray) or not np.issubdtype(table.dtype, np.floating):
        raise UserError(f"train.import_wte_npy: {path} does not hold one array of floating-point numbers")
    if table.shape != shape:
        raise UserError(f"train.import_wte_npy: {path} has shape {table.shape}, the token table {shape}")
    if not np.isfinite(table).all():
        raise UserError(f"train.import_wte_npy: {path} holds numbers that are not finite")
    return table.astype(np.float32)


def prepare_export(path: Path) -> None:
    """Makes the folder of `export_wte_npy`. UserError now rather than at the first checkpoint."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"train.export_wte_npy: cannot make the folder of {path}: {error.strerror}") from error
    if path.is_dir():
        raise UserError(f"train.export_wte_npy: {path} is a folder; name a file in it")


def export_table(path: Path, weight: torch.Tensor) -> None:
    write_atomically(path, lambda file: np.save(file, weight.detach().float().cpu().numpy(), allow_pickle=False))
