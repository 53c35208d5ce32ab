"""Where samples of `gptcore sample` go, and how they look there."""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..model import GPT
from ..prompt_loop import Settings
from ..sample import Sample, Samples, continue_text
from ..sample_file import SampleFile, records
from ..showing import MODES
from ..showing.files import check_folder, write_heatmaps
from ..showing.terminal import Painter, obstacle_to_colour
from ..tokenizer import Tokenizer


@dataclass(frozen=True)
class Source:
    """A model with its tokenizer; `origin` says which it is, in files of samples; `folder` is that of its run."""

    model: GPT
    tokenizer: Tokenizer
    origin: dict[str, Any]
    folder: Path | None

    @property
    def samples_folder(self) -> Path:
        return (self.folder or Path("out")) / "samples"


class Output:
    """Draws samples, and shows and keeps them as asked. Used by `with`.

    `colour`: auto, always, never, or None for no colours asked; `mode` that of the colours (default: minmax in the
    terminal, softmax on the page). `folder`: for heatmaps, of that many `candidates`. `note` tells what was written.
    Errors: UserError, before anything is drawn, for a folder or file that cannot be written.
    """

    def __init__(
        self, source: Source, stops: list[str], dtype: str, *, colour: str | None, mode: str | None,
        folder: Path | None, candidates: int, sample_file: Path | None, note: Callable[[str], object],
    ):  # fmt: skip
        self.source, self.stops, self.dtype, self.mode, self.folder, self.note = (
            source, stops, dtype, mode, folder, note,
        )  # fmt: skip
        self.candidates = candidates if folder is not None else 0 if colour is not None else None
        self.painter: Painter | None = None
        if colour is not None:
            obstacle = obstacle_to_colour(colour, sys.stdout)
            if obstacle is None:
                self.painter = Painter()
            else:
                note(f"no colours: {obstacle} (--color always gives them all the same)")
        if folder is not None:
            check_folder(folder)
        self.file = SampleFile(sample_file) if sample_file is not None else None

    def __enter__(self) -> "Output":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.file is not None:
            self.file.close()

    def draw(
        self, prompt: str, settings: Settings, *, num_samples: int = 1, cancelled: Callable[[], bool],
        on_token: Callable[[int, int], object] | None = None,
    ) -> Samples:  # fmt: skip
        return continue_text(
            self.source.model, self.source.tokenizer, prompt, num_samples=num_samples, stop=self.stops,
            candidates=self.candidates, cancelled=cancelled, on_token=on_token, **asdict(settings),
        )  # fmt: skip

    def continuation(self, sample: Sample, prompt: str) -> str:
        """What follows the prompt as it goes to the terminal, in colours with their legend below it if asked for."""
        if self.painter is None or not sample.steps:
            return sample.text[len(prompt) :]
        mode = self.mode or MODES[0]
        coloured = self.painter.continuation(sample, prompt, self.source.tokenizer, mode)
        return f"{coloured}\n{self.painter.legend(sample, mode)}"

    def keep(self, samples: Samples, settings: Settings) -> None:
        """Writes all files that were asked for, the samples first. RunError where the disk does not take them."""
        told = asdict(settings) | {"stop": self.stops, "num_samples": len(samples.samples), "dtype": self.dtype}
        if self.file is not None:
            self.file.add(records(samples, self.source.origin, told))
            self.note(f"added to {self.file.path}: {len(samples.samples)} sample{'s' * (len(samples.samples) > 1)}")
        if self.folder is not None:
            written, notes = write_heatmaps(
                samples, self.source.tokenizer, self.folder, origin=self.source.origin, settings=told,
                mode=self.mode or "softmax",
            )  # fmt: skip
            for note in notes:
                self.note(note)
            if written:
                self.note(f"written: {', '.join(map(str, written))}")
