"""run.json, the description of a run; read without torch, which takes a second to import."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import CheckpointError
from .files import write_atomically


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def read_run(folder: Path) -> dict[str, Any]:
    """`run.json` of a run folder. CheckpointError when it is missing or damaged."""
    path = folder / "run.json"
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not a run folder (no run.json); `gptcore inspect` lists runs")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); the checkpoints beside it may still be good")
    if not isinstance(content, dict) or "status" not in content:
        raise CheckpointError(f"{path} is not a run description")
    return content
