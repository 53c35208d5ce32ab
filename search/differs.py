"""What a configuration changes against another one, short enough for a column: `n_layer=3, softmax=consmax`.

Works on nested mappings as the ledger keeps them; nothing is validated or imported. Layers are compared one by one,
whether they stand in a schedule or not, and a change of all of them is named once. Where the numbers of layers differ,
added layers are compared with the last one of the other configuration.
"""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

PER_LAYER = ("attention", "mlp", "norm", "block")
IGNORED = {"train.seed", "train.out_dir", "train.sample_tokens", "hardware"}  # no part of what a candidate is
ABSENT = object()


def differs(config: Mapping[str, Any], base: Mapping[str, Any], most: int = 4) -> str:
    """The changes in words, at most `most` of them; empty where there are none."""
    changed = changes(config, base)
    short = Counter(_short(path) for path in changed)
    words = [
        f"{_short(path) if short[_short(path)] == 1 else '.'.join(_parts(path)[-2:])}{where}={_value(value)}"
        for path, (value, where) in changed.items()
    ]
    more = f", +{len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def changes(config: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    """Dotted path -> (new value, layers like `[0,2]` or nothing where all have it). A new kind stands for its knobs."""
    found = {path: (value, "") for path, value in _changed(_whole(config), _whole(base)).items()}
    layers, before = _layers(config), _layers(base)
    by_change: dict[tuple[str, str], tuple[Any, list[int]]] = {}
    for i, layer in enumerate(layers):
        for path, value in _changed(layer, before[min(i, len(before) - 1)]).items():
            by_change.setdefault((path, json.dumps(_plain(value))), (value, []))[1].append(i)
    for (path, _), (value, where) in by_change.items():
        every = len(where) == len(layers)
        name = path if every else f"{path}[{','.join(map(str, where))}]"
        found[name] = value, "" if every else f"[{','.join(map(str, where))}]"
    return found


def _whole(config: Mapping[str, Any]) -> dict[str, Any]:
    """All but the layers; their number is always that of the layers there are."""
    model = {k: v for k, v in config.get("model", {}).items() if k not in (*PER_LAYER, "layers")}
    if config.get("model", {}).get("layers"):
        model["n_layer"] = len(_layers(config))
    return {**config, "model": model}


def _layers(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    model = config.get("model", {})
    entries = model.get("layers") or [{**model, "repeat": model.get("n_layer", 1)}]
    return [{k: e[k] for k in PER_LAYER if k in e} for e in entries for _ in range(e.get("repeat", 1))] or [{}]


def _changed(after: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    new, old = _leaves(after), _leaves(before)
    paths = [p for p in (*new, *(p for p in old if p not in new)) if new.get(p, ABSENT) != old.get(p, ABSENT)]
    kinds = [p.removesuffix("kind") for p in paths if p.rpartition(".")[2] == "kind"]

    def implied(path: str) -> bool:
        return (path not in new or path not in old) and any(path.startswith(k) and path != k + "kind" for k in kinds)

    return {p: new.get(p, ABSENT) for p in paths if p not in IGNORED and not implied(p)}


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {path: value}
    dot = "." if path else ""
    return {name: leaf for key, child in value.items() for name, leaf in _leaves(child, f"{path}{dot}{key}").items()}


def _parts(path: str) -> list[str]:
    parts = path.partition("[")[0].split(".")
    return parts[:-1] if parts[-1] == "kind" and len(parts) > 1 else parts


def _short(path: str) -> str:
    return _parts(path)[-1]


def _plain(value: Any) -> Any:
    return "" if value is ABSENT else value


def _value(value: Any) -> str:
    if value is ABSENT:
        return "(left out)"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)
