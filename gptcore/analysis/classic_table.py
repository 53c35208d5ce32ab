"""The list of the classic fork's flags in words: `gptcore config flags`, and docs/classic_flags.md."""

import json
from dataclasses import dataclass
from typing import Any, Literal

from ..classic import Flags, flags
from ..flat import Switch, Target, all_switches, flat_names

_INTRO = """\
# Flags of the classic fork

What every flag of the classic fork's training program means here, or why it has no counterpart. Written by
`gptcore config flags --markdown docs/classic_flags.md`; a test compares it. `gptcore config flags NAME ...` shows rows.

Source of names and defaults: {source}.

| class | flags |
|---|---:|
| the same name | {same} |
| another name or value | {other} |
| no counterpart | {refused} |
| all | {all} |

- Flags stand on the command line (`--flag=value`, `--flag value`, `--flag`, `--no-flag`) and at the top level of YAML
  and JSON files, next to nested names.
- A flag without counterpart is an error with exit code 2 that says why, whatever its value, also where the value is
  the one that turns it off: nothing that is written is ignored.
- Defaults are those of this program: a command line carries over, what it leaves out does not. A run with the fork's
  own defaults is, here, `--batch_size=64 --max_iters=3500 --eval_iters=200 --no-bias --norm_variant_attn=rmsnorm
  --no-decay_lr --warmup_iters=0 --adamw_weight_decay=0.01 --adamw_betas 0.9 0.999 --dtype=float16`.
- A value that the fork knows and this program does not is an error, too, with the values that are known.
"""


@dataclass(frozen=True)
class Row:
    """One flag. `there` and `here` are the defaults of a flag of the same name, as they are written."""

    flag: str
    kind: Literal["same", "other", "refused"]
    meaning: str
    there: str = ""
    here: str = ""
    remark: str = ""

    def __str__(self) -> str:
        lead = "error: " if self.kind == "refused" else ""
        differs = f" [default there {self.there}, here {self.here}]" if self.there != self.here else ""
        return f"--{self.flag:37} {lead}{self.meaning}{differs}{'; ' + self.remark if self.remark else ''}"


def rows() -> list[Row]:
    """Every flag, in the order of the list."""
    known = flags()
    return [_row(flag, known) for flag in known]


def _row(flag: str, known: Flags) -> Row:
    remark = known.remarks.get(flag, "")
    if flag in known.refused:
        return Row(flag, "refused", known.refused[flag])
    if flag in known.translated:
        return Row(flag, "other", _translation(known.translated[flag]), remark=remark)
    if flag in known.places:
        group = known.places[flag]
        bits = group.bits if flag == group.everywhere else group.own_bits(flag)
        return Row(flag, "other", f"true: {bits}, 8 unless said", remark=remark)
    ours: Target | Switch = flat_names()[flag] if flag in flat_names() else all_switches()[flag]
    meaning = ", ".join(".".join(path) for path in ours.paths)
    default = ours.default
    if isinstance(ours, Switch):
        states = (("true", ours.on), ("false", ours.off))
        meaning += f" ({' / '.join(f'{state}: {value}' for state, value in states if value is not None)})"
        default = ours.default == ours.on
    there, here = known.here[flag], "same" if _same(known.here[flag], default, ours) else _shown(default)
    return Row(flag, "same", meaning, _shown(there), _shown(there) if here == "same" else here, remark)


def _same(there: Any, here: Any, ours: Target | Switch) -> bool:
    if isinstance(there, bool) or isinstance(here, bool):
        return there is here or (isinstance(ours, Switch) and not there and not here)  # null: the choice of a whole
    words = ours.values if isinstance(ours, Target) and isinstance(there, str) else {}
    return there == here or (there in words and words[there] == here)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) and value.strip() else json.dumps(value)


def _translation(entry: dict[str, Any]) -> str:
    if "path" in entry:
        return entry["path"]
    if "parts" in entry:
        return ", ".join(entry["parts"])
    if "layers" in entry:
        return f"{entry['layers']} of each layer, by model.layers"
    found = []
    for value, names in entry["values"].items():
        said = ", ".join(
            f"{name.removesuffix('?')}={_shown(ours)}{' unless said' if name.endswith('?') else ''}"
            for name, ours in names.items()
        )
        found.append(f"{value}: {said or 'nothing to say'}")
    return "; ".join(found) + (f"; others: error, {entry['why']}" if "why" in entry else "")


def markdown() -> str:
    """The whole page."""
    found = rows()
    by_kind = {kind: [row for row in found if row.kind == kind] for kind in ("same", "other", "refused")}
    counts = {kind: len(some) for kind, some in by_kind.items()} | {"all": len(found)}
    lines = [_INTRO.format(source=flags().source, **counts)]
    lines += ["## The same name", "", "| flag | here | default there | default here | note |", "|---|---|---|---|---|"]
    for row in by_kind["same"]:
        here = "same" if row.here == row.there else f"`{_cell(row.here)}`"
        paths = _cell(row.meaning).replace(", ", "<br>")
        lines.append(f"| `{row.flag}` | {paths} | `{_cell(row.there)}` | {here} | {_cell(row.remark)} |")
    lines += ["", "## Another name or value", "", "| flag | here | note |", "|---|---|---|"]
    lines += [f"| `{row.flag}` | {_cell(row.meaning)} | {_cell(row.remark)} |" for row in by_kind["other"]]
    lines += ["", "Together:", "", "| flags | here |", "|---|---|"]
    for rule in flags().together:
        lines.append(f"| {_said(rule['given'])} | {_said(rule['means'])} |")
    lines += ["", "## No counterpart", "", "| why, and what there is instead | flags |", "|---|---|"]
    reasons = dict.fromkeys(row.meaning for row in by_kind["refused"])
    for why in reasons:
        names = " ".join(f"`{row.flag}`" for row in by_kind["refused"] if row.meaning == why)
        lines.append(f"| {_cell(why)} | {names} |")
    return "\n".join(lines) + "\n"


def _said(names: dict[str, Any]) -> str:
    return ", ".join(f"`{name}={_shown(value)}`" for name, value in names.items())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


__all__ = ["Row", "markdown", "rows"]
