"""The files of a heatmap: page (HTML), numbers (CSV) and figure (PNG), named after what they show."""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import RunError, UserError
from ..files import write_atomically
from ..sample import Samples
from ..tokenizer import Tokenizer
from . import visible
from .heatmap import draw, heatmap, table
from .page import build_page

_TITLE = ("temperature", "top_k", "top_p", "seed")
_FACTS = (*_TITLE, "max_new_tokens", "stop", "dtype", "tokenizer", "identity", "model_hash")
NO_FIGURE = "no PNG: matplotlib is not installed (pip install 'gptcore[search]')"


def check_folder(folder: Path) -> None:
    """Makes the folder. UserError, before anything is drawn, where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"--show_heatmaps: cannot write to {folder}: {error.strerror}; name another folder")


def write_heatmaps(
    samples: Samples, tokenizer: Tokenizer, folder: Path, *, origin: Mapping[str, Any], settings: Mapping[str, Any],
    mode: str,
) -> tuple[list[Path], list[str]]:  # fmt: skip
    """(paths, notes) of sample-<key>-<n>.csv, .html and .png for each sample with steps.

    The key is a hash of model, prompt and settings, so that the same command writes the same files again. RunError
    where the disk does not take them.
    """
    written, notes = [], []
    shown = " ".join(map(visible, samples.prompt.split(" ")))
    run = f"{Path(origin['run']).name}, " if origin["run"] else ""
    at = f", step {origin['step']:,}" if origin["step"] is not None else ""
    title = f"{run}{origin['checkpoint']}{at}: \u201c{shown if len(shown) <= 40 else chr(0x2026) + shown[-39:]}\u201d"
    told = {**origin, **settings}
    facts = {name: str(told[name]) for name in _FACTS if told.get(name) not in (None, [])}
    for i, sample in enumerate(samples.samples):
        if not sample.steps:
            notes.append(f"no heatmap of sample {i + 1}: it has no token")
            continue
        stem = f"sample-{_key(origin, samples.prompt, settings)}-{i + 1}"
        facts |= {"sample": str(i + 1), "tokens": str(len(sample.tokens)), "ended by": sample.ended}
        words = ", ".join(f"{name} {facts[name]}" for name in (*_TITLE, "sample") if name in facts)
        files = {".csv": table(sample, tokenizer).encode()}
        try:
            files[".png"] = draw(heatmap(sample, tokenizer), f"{title}  ({words})")
        except ImportError:
            notes.append(NO_FIGURE)
        links = [stem + suffix for suffix in files]
        page = build_page(sample, samples.prompt, tokenizer, title=title, facts=facts, links=links, mode=mode)
        files[".html"] = page.encode()
        for suffix, content in files.items():
            path = folder / (stem + suffix)
            try:
                write_atomically(path, content)
            except OSError as error:
                raise RunError(f"--show_heatmaps: cannot write {path}: {error.strerror or error}")
            written.append(path)
    return written, notes


def _key(origin: Mapping[str, Any], prompt: str, settings: Mapping[str, Any]) -> str:
    told = {name: value for name, value in settings.items() if name != "num_samples"}
    told |= {"model": origin["identity"] or origin["model_hash"], "checkpoint": origin["checkpoint"], "prompt": prompt}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]
