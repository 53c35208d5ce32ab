"""GPT-2 weights from a folder or from the Hugging Face hub, as a configuration and a state dictionary of this program.

A folder holds config.json and model.safetensors (or model.safetensors.index.json with its parts), as transformers
writes it and as the hub has it. Reading one needs safetensors, not transformers; pickles are not opened.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from .config import GPTConfig
from .errors import CheckpointError, RunError, UserError
from .model import GPT
from .registry import nearest

NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
MAX_SHOWN = 6  # tensor names listed in an error message

# What transformers calls these functions; its gelu_fast differs from gelu_new in the last bits of a constant only.
ACTIVATIONS: dict[str, dict[str, str]] = {
    "gelu_new": {"kind": "gelu", "approximate": "tanh"},
    "gelu_pytorch_tanh": {"kind": "gelu", "approximate": "tanh"},
    "gelu_fast": {"kind": "gelu", "approximate": "tanh"},
    "gelu": {"kind": "gelu", "approximate": "none"},
    "relu": {"kind": "relu"},
    "silu": {"kind": "silu"},
    "swish": {"kind": "silu"},
}

# Settings with which the model computes something that a configuration here cannot say: name -> the value that is fine.
# reorder_and_upcast_attn is not among them: it orders the same arithmetic differently.
ONLY = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}

# GPT-2's linear layers are Conv1D: y = x W + b with W (in, out), the transpose of torch's.
CONV1D = re.compile(r"h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight")
CAUSAL_MASK = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # buffers that older versions of transformers stored


def load_pretrained(name_or_dir: str | Path, *, block_size: int | None = None) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Configuration and weights of a GPT-2 model, ready for `GPT(config).load_state_dict(weights)`.

    `name_or_dir` is a folder, which comes first, or one of NAMES: then the local cache of the hub is used, and what it
    lacks is downloaded. `block_size` shortens the table of positions. Weights keep the dtype of the file. Dropout is
    0 whatever config.json says: it is a choice of the training to come.

    Errors: UserError for a name that is neither; RunError when the hub cannot be reached; CheckpointError for a folder
    that is incomplete, damaged, or not a GPT-2 that this program can compute.
    """
    folder = _locate(str(name_or_dir))
    config = _read_config(folder / CONFIG)
    tensors = _read_tensors(folder)
    weights = _convert(tensors, config, folder)
    if block_size is None:
        return config, weights
    if not 1 <= block_size <= config.block_size:
        raise UserError(f"block_size {block_size} is not within the {config.block_size} positions of {name_or_dir}")
    weights["position.weight"] = weights["position.weight"][:block_size]
    return config.model_copy(update={"block_size": block_size}), weights


def _locate(name: str) -> Path:
    if (Path(name) / "run.json").exists():
        raise UserError(f"{name} is a run of this program: train it on with --init_from=resume --out_dir={name}")
    if Path(name).is_dir():
        return Path(name)
    if name in NAMES:
        return _from_hub(name)
    raise UserError(
        f"{name!r} is neither a folder with {CONFIG} and {WEIGHTS} nor one of {', '.join(NAMES)}"
        f"{nearest(name, list(NAMES))}"
    )


def _from_hub(name: str) -> Path:
    """The folder of a hub model in the local cache, downloaded when it is not there."""
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    except ImportError:
        raise UserError(
            f"{name} comes from the Hugging Face hub, which needs a package: pip install 'gptcore[hf]'.\n"
            f"Or give a folder with {CONFIG} and {WEIGHTS}."
        )
    files = (CONFIG, WEIGHTS)
    for repo in (f"openai-community/{name}", name):  # the new name and the old one, under which a cache may have it
        found = [try_to_load_from_cache(repo, file) for file in files]
        if all(isinstance(path, str) for path in found):
            return Path(str(found[0])).parent
    repo = f"openai-community/{name}"
    try:
        get_hf_file_metadata(hf_hub_url(repo, CONFIG))  # one request: the download would retry for half a minute
        return [Path(hf_hub_download(repo, file)).parent for file in files][-1]
    except Exception as error:  # whatever the hub's HTTP library raises: there is no common base class
        reason = str(error).strip().splitlines() or [""]
        raise RunError(
            f"{name} is not in the local cache and cannot be downloaded ({type(error).__name__}: {reason[0]}).\n"
            f"Give the path of a folder that holds its {CONFIG} and {WEIGHTS} instead of the name."
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} has no {path.name}, so it is not a folder of GPT-2 weights")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); copy it again")
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object; copy it again")
    return content


def _read_config(path: Path) -> GPTConfig:
    """The configuration that a config.json of transformers describes."""
    hf = _read_json(path)
    if hf.get("model_type") != "gpt2":
        raise CheckpointError(f"{path}: model_type is {hf.get('model_type')!r}; only 'gpt2' can be imported")
    missing = [name for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head") if name not in hf]
    if missing:
        raise CheckpointError(f"{path} does not say {', '.join(missing)}; copy it again")
    for name, fine in ONLY.items():
        if hf.get(name, fine) is not fine:
            raise CheckpointError(f"{path}: {name} = {hf[name]!r} is not supported, only {fine}")
    if "quantization_config" in hf:
        raise CheckpointError(f"{path}: quantised weights cannot be imported; use the original ones")
    activation = str(hf.get("activation_function", "gelu_new"))
    if activation not in ACTIVATIONS:
        raise CheckpointError(
            f"{path}: activation_function {activation!r} is not supported (known: {', '.join(ACTIVATIONS)})"
        )
    try:
        config = GPTConfig.model_validate(
            {
                "n_layer": hf["n_layer"],
                "n_embd": hf["n_embd"],
                "block_size": hf["n_positions"],
                "vocab_size": hf["vocab_size"],
                "bias": True,
                "tie_embeddings": hf.get("tie_word_embeddings", True),
                "attention": {"kind": "causal", "n_head": hf["n_head"]},
                "mlp": {"kind": "mlp", "hidden_size": hf.get("n_inner"), "activation": ACTIVATIONS[activation]},
                "norm": {"kind": "layernorm", "eps": hf.get("layer_norm_epsilon", 1e-5)},
                "position": {"kind": "learned"},
            }
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise CheckpointError(f"{path}: {first['loc'][-1]}: {first['msg']}, not {first['input']!r}") from error
    for _, message in config.problems():
        raise CheckpointError(f"{path}: {message}")
    return config


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder by the name it has there."""
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(f"reading {folder} needs the package safetensors: pip install 'gptcore[hf]'")
    tensors: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        try:
            tensors.update(load_file(path))
        except FileNotFoundError:
            raise CheckpointError(f"{path} is missing, but {INDEX} names it; copy it again")
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path} is truncated or damaged ({error}); copy it again") from error
    return tensors


def _weight_files(folder: Path) -> Iterator[Path]:
    if (folder / WEIGHTS).exists():
        yield folder / WEIGHTS
    elif (folder / INDEX).exists():
        parts = _read_json(folder / INDEX).get("weight_map")
        if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
            raise CheckpointError(f"{folder / INDEX} has no weight_map; copy it again")
        for part in sorted(set(parts.values())):
            if Path(part).name != part:
                raise CheckpointError(f"{folder / INDEX} names {part!r}, which is not a file beside it")
            yield folder / part
    else:
        pickles = sorted(path.name for suffix in ("bin", "pt", "pth", "ckpt") for path in folder.glob(f"*.{suffix}"))
        if not pickles:
            raise CheckpointError(f"{folder} has no {WEIGHTS}")
        convert = f"from transformers import GPT2LMHeadModel as M; M.from_pretrained('{folder}').save_pretrained('NEW')"
        raise CheckpointError(
            f"{folder} has no {WEIGHTS}, only {', '.join(pickles)}: a pickle, which can run any code when it is read "
            f'and so is not opened here.\nIf you trust it, convert it: python -c "{convert}"'
        )


@dataclass(frozen=True)
class _Target:
    """Where a tensor of the file goes: our name, our shape, and whether the file holds its transpose."""

    name: str
    shape: torch.Size
    transposed: bool

    @property
    def file_shape(self) -> tuple[int, ...]:
        return tuple(reversed(self.shape)) if self.transposed else tuple(self.shape)


def _targets(config: GPTConfig) -> dict[str, _Target]:
    """Name in the file, without `transformer.`, -> target; from the model itself, so that no name is listed twice."""
    with torch.device("meta"):
        ours = GPT(config).state_dict()
    targets = {}
    for name, tensor in ours.items():
        source = "wpe.weight" if name == "position.weight" else name.removeprefix("transformer.")
        targets[source] = _Target(name, tensor.shape, CONV1D.fullmatch(source) is not None)
    return targets


def _convert(tensors: dict[str, Tensor], config: GPTConfig, folder: Path) -> dict[str, Tensor]:
    """Tensors by our names, in our layout. CheckpointError names every tensor that is missing, unknown or misshapen."""
    targets = _targets(config)
    weights: dict[str, Tensor] = {}
    problems: list[str] = []
    unknown: list[str] = []
    for name, tensor in tensors.items():
        source = name.removeprefix("transformer.")
        target = targets.get(source)
        if CAUSAL_MASK.fullmatch(source):
            continue
        if target is None or target.name in weights:
            unknown.append(name)
        elif tuple(tensor.shape) != target.file_shape or not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            problems.append(f"{name} is {kind} {tuple(tensor.shape)}, {CONFIG} asks for floats {target.file_shape}")
            weights[target.name] = tensor  # reported once, not as missing too
        else:
            weights[target.name] = tensor.t() if target.transposed else tensor
    table = weights.get("transformer.wte.weight")
    if config.tie_embeddings and table is not None:
        if not torch.equal(weights.setdefault("lm_head.weight", table), table):
            problems.append(
                "lm_head.weight differs from wte.weight although tie_word_embeddings is true: "
                f"set it to false in {CONFIG} if the head is meant, or remove the head"
            )
    missing = [source for source, target in targets.items() if target.name not in weights]
    problems += [f"{what}: {_listed(names)}" for what, names in (("missing", missing), ("unknown", unknown)) if names]
    if problems:
        raise CheckpointError(f"the weights in {folder} do not fit its {CONFIG}:\n  " + "\n  ".join(problems))
    return weights


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return ", ".join(sorted(names)[:MAX_SHOWN]) + more
