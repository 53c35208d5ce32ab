"""Descriptions of machines: `ppa/hardware/<name>.yaml`. Strict; SI units in key names; a source for every figure.

An `asic` is made of calibrated operators: a systolic array, vector units that the model's variants ask for, SRAM and
DRAM. A `gpu` (ppa/gpu.py) is what it is, whatever the model.
"""

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from gptcore.errors import UserError
from gptcore.registry import Strict, nearest
from gptcore.yamlfile import read_mapping

from .figure import Figure, Section
from .gpu import Gpu

FOLDER = Path(__file__).parent / "hardware"


class Technology(Section):
    """Cells and clock. Operators are those of a calibrated library, carried to another node where one is given."""

    library: Literal["sky130", "sg13g2", "asap7"]
    node_m: Figure | None = Field(default=None, description="feature size to which the library's figures are scaled")
    clock_hz: Figure
    density: Figure = Field(description="area of the cells over the area that they take when placed")


class Array(Section):
    """Systolic arrays of multiply-accumulate units."""

    rows: int = Field(ge=1)
    columns: int = Field(ge=1)
    count: int = Field(default=1, ge=1)
    dataflow: Literal["output_stationary", "weight_stationary", "input_stationary"]
    format_8: Literal["int8", "e4m3"] = Field(default="int8", description="arithmetic of operands of 5 to 8 bits")
    format_16: Literal["bf16", "fp16", "int16"] = Field(
        default="bf16", description="arithmetic of operands of 9 to 16 bits"
    )


class Vector(Section):
    """Units beside the array: softmax, norm, activation, rotary, quantiser, adders; `lanes` of each that occurs."""

    lanes: int = Field(ge=1)
    score_buffer: Literal["flip_flop", "sram"] = Field(
        description="where a softmax that reduces its row keeps the scores, as many as the longest context"
    )
    score_rows: int = Field(default=2, ge=1, description="rows of scores held; with one, the array waits for each row")


class Sram(Section):
    """Scratch memory of the chip, in banks that all work at once."""

    capacity_bytes: int = Field(ge=512)
    banks: int = Field(default=1, ge=1)
    access_bits: Literal[16, 64, 128] = 64


class Dram(Section):
    bandwidth_bytes_per_s: Figure
    energy_j_per_byte: Figure
    interface_area_m2: Figure = Field(description="controller and PHY on the chip")


class Asic(Strict):
    """An inference chip. `weights` and `kv` say where they live."""

    kind: Literal["asic"]
    title: str
    weights: Literal["on_chip", "off_chip"]
    kv: Literal["on_chip", "off_chip"]
    technology: Technology
    array: Array
    vector: Vector
    sram: Sram
    dram: Dram
    control_share: Figure = Field(description="control, interconnect and clock tree over all other logic, as a share")

    @model_validator(mode="after")
    def _tiles_fit(self) -> "Asic":
        a, held = self.array, self.sram.capacity_bytes
        least = 4 * 4 * (a.rows * a.rows + 2 * a.rows * a.columns)  # bytes: two of each tile, in half the SRAM
        if held < least:
            raise ValueError(f"an SRAM of {held} bytes does not hold the tiles of the array, which take {least}")
        return self


Machine = Asic | Gpu
_adapter: TypeAdapter[Any] = TypeAdapter(Annotated[Machine, Field(discriminator="kind")])


def names() -> list[str]:
    """Every described machine, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@lru_cache
def load_machine(name: str) -> Machine:
    """A machine by its name, or from the path of a YAML file. UserError with every problem and its place."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise UserError(
            f"no hardware {name!r}{nearest(name, names())} (known: {', '.join(names())}; or the path of a YAML file)"
        )
    problems: list[str] = []
    raw = read_mapping(path, str(path), problems)
    if not problems:
        try:
            return _adapter.validate_python(raw)
        except ValidationError as error:
            problems = [_explain(raw, item) for item in error.errors(include_url=False)]
    raise UserError("\n  ".join([f"{len(problems)} problem(s) in the description of a machine:", *problems]))


def _explain(raw: Any, item: Any) -> str:
    """file:line: path: message."""
    mark, node, path = "", raw, [str(step) for step in item["loc"] if step not in ("asic", "gpu")]
    for step in path:
        written = next((key for key in node if key == step), None) if isinstance(node, dict) else None
        mark = getattr(written, "mark", mark)
        node = node.get(step) if isinstance(node, dict) else None
    where = f"{mark}: " if mark else ""
    if item["type"] == "extra_forbidden":
        return f"{where}{'.'.join(path)}: unknown key"
    given = item.get("input")
    shown = "" if isinstance(given, (dict, list)) or item["type"] == "missing" else f", not {given!r}"
    return f"{where}{'.'.join(path)}: {item['msg']}{shown}"
