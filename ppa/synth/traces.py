"""Takes a trace of a trained model for the energy of the operators: python -m ppa.synth.traces RUN [--out FILE]

The model reads windows of its validation text; of every layer some parts of the forward pass are kept, chosen evenly
or by a fixed seed:

    scores        rows of attention scores (after scale and bias), of queries that see 16 keys or more, from all heads
    activations   inputs of the activation, half a thousand neighbouring channels a layer
    norm_inputs   what norms read; norm_weight is the weight of one of them (ones where there is none)
    left, right   what the first linear layer of the middle mlp reads, and rows of its weight

The file is read by ppa/rtl/trace.py. It holds fp16 in base64 and nothing that is executed.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np

from gptcore.errors import RunError, UserError
from gptcore.files import write_atomically

from ..rtl import trace
from ..rtl.rows import SHORTEST

WINDOWS = 4
ROWS, LONGEST_ROW = 128, 256  # of scores
ACTIVATIONS, NORMS, PRODUCTS = 2048, 24, 24  # values; rows; rows of either operand


@dataclass(frozen=True)
class Parts:
    """What one forward pass computed, one array or list for each module that was called."""

    scores: list[list[np.ndarray]]  # live scores of every row of every head
    activations: list[np.ndarray]
    norm_inputs: list[np.ndarray]
    norm_weights: list[np.ndarray]
    left: np.ndarray
    right: np.ndarray


def parts_of(model: Any, tokens: Any) -> Parts:
    """Runs the model once, its attention in the explicit form. UserError where it lacks one of the parts."""
    import torch

    from gptcore.activation import Activation
    from gptcore.linear import Linear
    from gptcore.norm import Norm
    from gptcore.softmax import Softmax

    rows: list[list[np.ndarray]] = []
    read: dict[type, list[np.ndarray]] = {Activation: [], Norm: [], Linear: []}
    linear = _first_linear(model, Linear)
    with ExitStack() as stack, torch.no_grad():
        for module in model.modules():
            if isinstance(module, Softmax):
                stack.enter_context(_explicit(module, Softmax, rows))
            for part in (Activation, Norm):
                if isinstance(module, part):
                    stack.callback(module.register_forward_pre_hook(_reader(read[part])).remove)
        stack.callback(linear.register_forward_pre_hook(_reader(read[Linear])).remove)
        model(tokens)
    for what, found in (("scores", rows), ("activation", read[Activation]), ("norm", read[Norm])):
        if not found:
            raise UserError(f"the model computes no {what}: nothing to replay")
    scales: list[Any] = [getattr(module, "weight", None) for module in model.modules() if isinstance(module, Norm)]
    return Parts(
        rows, read[Activation], read[Norm],
        [scale.detach().float().numpy() for scale in scales if scale is not None],
        read[Linear][0].reshape(-1, linear.d_in), linear.weight.detach().float().numpy(),
    )  # fmt: skip


def capture(run: Path) -> bytes:
    """The trace file of a run folder."""
    import torch

    from gptcore.checkpoint import load_model, read_run
    from gptcore.data import eval_batches, find_dataset, open_dataset

    loaded, described = load_model(run), read_run(run)
    config: Any = loaded.config
    dataset = open_dataset(find_dataset(described["dataset"]))
    ((tokens, _),) = eval_batches(dataset.val, batches=1, batch_size=WINDOWS, block_size=config.block_size)
    source = {
        "run": described["name"], "identity": described["identity"], "step": loaded.step,
        "best_loss": described["best_loss"], "dataset": described["dataset"], "torch": torch.__version__,
        "val_crc32": described.get("data_files", {}).get("val.bin", {}).get("crc32"), "windows": WINDOWS,
        "n_layer": config.n_layer, "n_embd": config.n_embd, "block_size": config.block_size,
        "softmax": _kind(config.attention, "softmax"), "norm": config.norm.kind,
        "activation": _kind(config.mlp, "activation"),
    }  # fmt: skip
    return written(parts_of(loaded.model, tokens), source)


def written(parts: Parts, source: dict[str, Any]) -> bytes:
    """The trace file of a choice of parts."""
    seen = [row[:LONGEST_ROW] for rows in parts.scores for row in rows]
    rows = [row for row in seen if len(row) >= min(SHORTEST, max(map(len, seen)))]
    chosen = [rows[i] for i in np.random.default_rng(0).choice(len(rows), min(ROWS, len(rows)), replace=False)]
    width = parts.norm_inputs[0].shape[-1]
    norms = np.concatenate([found.reshape(-1, width) for found in parts.norm_inputs if found.shape[-1] == width])
    weights = [weight for weight in parts.norm_weights if weight.shape == (width,)]
    share = ACTIVATIONS // len(parts.activations)
    tensors = {
        "score_lengths": np.array([len(row) for row in chosen]),
        "scores": np.concatenate(chosen),
        "activations": np.concatenate([_middle(found.reshape(-1), share) for found in parts.activations]),
        "norm_inputs": _evenly(norms, NORMS),
        "norm_weight": weights[0] if weights else np.ones(width),
        "left": _evenly(parts.left, PRODUCTS),
        "right": _evenly(parts.right, PRODUCTS),
    }
    content = {
        "format": trace.FORMAT, "source": source, "tensors": {name: trace.pack(t) for name, t in tensors.items()}
    }  # fmt: skip
    return (json.dumps(content, indent=1) + "\n").encode()


def _evenly(rows: np.ndarray, count: int) -> np.ndarray:
    return rows[:: max(len(rows) // count, 1)][:count]


def _kind(config: Any, slot: str) -> str | None:
    return getattr(getattr(config, slot, None), "kind", None)


def _middle(values: np.ndarray, count: int) -> np.ndarray:
    first = max((len(values) - count) // 2, 0)
    return values[first : first + count]


def _first_linear(model: Any, linear: type) -> Any:
    block = model.transformer.h[len(model.transformer.h) // 2]
    for module in block.mlp.modules():
        if isinstance(module, linear) and getattr(getattr(module, "weight", None), "ndim", 0) == 2:
            return module
    raise UserError("the mlp of the model has no linear layer with a plain weight")


def _reader(found: list[np.ndarray]) -> Callable[..., None]:
    def hook(module: Any, inputs: tuple[Any, ...]) -> None:
        found.append(inputs[0].float().numpy())

    return hook


@contextmanager
def _explicit(module: Any, base: Any, found: list[Any]) -> Iterator[None]:
    """Attention with its scores in sight, in place of a fused form; live ones of every row are kept."""
    right = module.weights

    def weights(scores: Any, live: Any) -> Any:
        seen = live.expand(scores.shape[-2:]).numpy()
        flat = scores.float().numpy().reshape(-1, *scores.shape[-2:])
        found.append([head[t][seen[t]] for head in flat for t in range(head.shape[0])])
        return right(scores, live)

    module.weights, module.attend = weights, MethodType(base.attend, module)
    try:
        yield
    finally:
        del module.weights, module.attend


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ppa.synth.traces", description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a trained model")
    parser.add_argument("--out", type=Path, default=trace.FILE, metavar="FILE", help="default %(default)s")
    args = parser.parse_args(arguments)
    write_atomically(args.out, capture(args.run))
    trace.load.cache_clear()
    found = trace.load(args.out)
    print(f"written: {args.out} ({args.out.stat().st_size:,} bytes, {len(found.scores)} rows of scores)")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (UserError, RunError) as error:
        print(f"traces: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
