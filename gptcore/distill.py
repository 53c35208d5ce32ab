"""Knowledge distillation: a trained run teaches another what it thinks of every token (arXiv 1503.02531).

Legend: B batch, T tokens, N = B T, V vocabulary.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .checkpoint import LoadedModel, load_model
from .config import GPTConfig, TrainConfig
from .errors import UserError
from .losses import Objective, make_objective, mean_of_live
from .model import GPT

# What a data folder records besides its tokenizer: where the text came from and how it is stored.
PROVENANCE = {"files", "source", "format", "dtype", "val_fraction"}


@dataclass(frozen=True)
class Teacher:
    """A trained model in evaluation mode whose parameters get no gradients."""

    model: GPT
    step: int

    @torch.no_grad()
    def logits(self, idx_BT: Tensor) -> Tensor:
        return self.model(idx_BT)[0]


def load_teacher(
    source: str, student: GPTConfig, tokenizer_meta: Mapping[str, Any] | None, device: torch.device
) -> Teacher:
    """The best (or newest) model of a run folder, or one checkpoint file of it.

    UserError where it cannot teach `student`: another vocabulary, another tokenizer, or a shorter context.
    """
    path = Path(source)
    folder, which = (path.parent, path.name) if path.is_file() else (path, None)
    found = load_model(folder, which, device=str(device))
    for problem in _obstacles(found, student, tokenizer_meta):
        raise UserError(f"train.distill_from: {found.path} cannot teach this model: {problem}")
    return Teacher(found.model.requires_grad_(False), found.step)


def _obstacles(found: LoadedModel, student: GPTConfig, tokenizer_meta: Mapping[str, Any] | None) -> Iterator[str]:
    teacher = found.config
    if teacher.vocab_size != student.vocab_size:
        yield f"it knows {teacher.vocab_size} tokens, the model {student.vocab_size}"
    theirs, ours = _tokenizer(found.tokenizer_meta), _tokenizer(tokenizer_meta)
    if theirs != ours:
        names = theirs["tokenizer"], ours["tokenizer"]
        what = " and ".join(map(repr, names)) if names[0] != names[1] else f"{names[0]!r} of another vocabulary"
        yield f"its tokenizer is not that of the data set ({what})"
    if teacher.block_size < student.block_size:
        yield f"its block_size {teacher.block_size} is shorter than {student.block_size}"


def _tokenizer(meta: Mapping[str, Any] | None) -> dict[str, Any]:
    """What makes two tokenizers equal; a data set without a description holds GPT-2's tokens."""
    if meta is None or meta.get("tokenizer") == "tiktoken:gpt2":
        return {"tokenizer": "tiktoken:gpt2"}
    return {"tokenizer": None} | {key: value for key, value in meta.items() if key not in PROVENANCE}


def divergence(teacher_NV: Tensor, student_NV: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) of each token (N,), in nats.

    T^2 keeps the size of its gradients where that of the hard loss is, whatever T (section 2 of the paper).
    """
    teacher_NV = F.log_softmax(teacher_NV / temperature, dim=-1)
    student_NV = F.log_softmax(student_NV / temperature, dim=-1)
    return temperature**2 * F.kl_div(student_NV, teacher_NV, reduction="none", log_target=True).sum(-1)


def distilling(config: TrainConfig, teacher: Teacher) -> Objective:
    """(1 - w) (the loss of `config`) + w T^2 KL(teacher || student), means over the tokens that have a target."""
    hard, w, temperature = make_objective(config), config.distill_weight, config.distill_temperature

    def objective(logits_BTV: Tensor, targets_BT: Tensor, idx_BT: Tensor) -> Tensor:
        soft_N = divergence(
            teacher.logits(idx_BT).flatten(0, 1).float(), logits_BTV.flatten(0, 1).float(), temperature
        )  # fmt: skip
        soft = mean_of_live(soft_N, targets_BT.flatten())
        return (1 - w) * hard(logits_BTV, targets_BT, idx_BT) + w * soft

    return objective
