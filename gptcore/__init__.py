"""A configurable GPT whose every building block is a registered variant: configure, train, sample, count.

    from gptcore import load, sample_text
    from gptcore.train import train

    config = load("explorations/quickstart.yaml", ["--n_layer=2"]).config
    result = train(config, name="mine")
    print(sample_text(result.folder, start="ROMEO:", max_new_tokens=100)[0])

Names are imported when they are first used, so that `import gptcore` costs nothing.
"""

import importlib
from typing import Any

_HOME = {
    "Config": "config", "GPTConfig": "config", "identity": "config", "load": "loader", "from_dict": "loader",
    "GPT": "model", "declare": "model", "Pass": "ops", "Bits": "ops", "load_model": "checkpoint",
    "RunResult": "train", "generate": "sample", "sample_text": "sample",
}  # fmt: skip

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"gptcore.{_HOME[name]}"), name)
    raise AttributeError(f"module 'gptcore' has no attribute {name!r}")
