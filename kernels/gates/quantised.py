"""Points of the quantised kernels: every row of the launch table, and of each kernel the types and ways it is used."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

from .. import fake_quantise, fixed_point, quantised_numbers, quantised_products
from ..gate import COUNTED, Family, Figures, Point, common_rules, fma_loop, longest_loop, products_loop, whole
from ..quantised_launch import BLOCKS, ROWS, Block, Product, row_block

NUMBERS = ("step", "factor", "per_unit", "unit", "unit_in", "unit_out")
LENGTHS = ("x_s", "x_p", "w_s", "N", "J", "K", "size")  # multiples of 16 in every model
COUNTS = COUNTED | {"LOP3": "LOP3", "LDGSTS": "LDGSTS", "LDGSTS128": r"LDGSTS\.(.*\.)?128", "FFMA": "FFMA"}


def _point(
    name: str, arch: int, kernel: Any, row: Product | Block, types: Mapping[str, str], constants: Mapping[str, Any],
    rules, hot,
) -> Point:  # fmt: skip
    """`types` of pointers, `constants` also of absent ones."""
    held, kinds, multiples = dict(constants), {}, set()
    tile = asdict(row)
    for argument in kernel.arg_names:
        if argument in held:
            continue
        if argument in types:
            kinds[argument] = types[argument]
            multiples.add(argument)
        elif argument in tile:
            held[argument] = tile[argument]
        elif argument in NUMBERS:
            kinds[argument] = "fp32"
        else:
            kinds[argument] = "i32"
            multiples |= {argument} & {*LENGTHS}
    every = f"sm_{arch} {kernel.fn.__name__} {name}".rstrip()
    return Point(every, kernel, arch, kinds, held, frozenset(multiples), tile, partial(rules, arch, row), hot, COUNTS)


SCALES = {"token_ptr": "*fp32", "scale_ptr": "*fp32"}
EPILOGUES: dict[str, tuple[dict[str, str], dict[str, Any]]] = {  # mode -> (types, constants)
    "real": (SCALES | {"bias_ptr": "*bf16", "out_ptr": "*bf16"}, {"shift_ptr": None}),
    "steps": (SCALES | {"bias_ptr": "*bf16", "out_ptr": "*i8"}, {"shift_ptr": None}),
    "fixed": (
        {"scale_ptr": "*i32", "bias_ptr": "*i32", "shift_ptr": "*i32", "out_ptr": "*i8"},
        {"token_ptr": None, "token_s": 0},
    ),
    "sums": ({"out_ptr": "*i32"}, dict.fromkeys(("token_ptr", "scale_ptr", "bias_ptr", "shift_ptr"))
             | {"token_s": 0, "scale_s": 0}),
}  # fmt: skip


def _product(arch: int, kernel: Any, op: str, mode: str, tokens: str = "i8", **constants: Any) -> Point:
    types, absent = EPILOGUES[mode]
    packed = kernel is not quantised_products.int8_product
    types = types | {"x_ptr": f"*{tokens}", "w_ptr": "*u8" if packed else "*i8"}
    if "added_ptr" in kernel.arg_names:
        types["added_ptr"] = "*i32"
    held = {"token_s": 1, "scale_s": 1, "MODE": mode} | absent | constants
    hot = fma_loop if tokens == "fp32" else products_loop
    rules = partial(_product_rules, op, tokens)
    return _point(f"{op}, {mode} {tokens}", arch, kernel, ROWS[arch, op], types, held, rules, hot)


def _product_rules(op: str, tokens: str, arch: int, row: Product, figures: Figures) -> dict[str, bool]:
    loop = figures.loop
    product = {"i8": ("IMMA", "IGMMA"), "fp32": ("FFMA", "FFMA")}.get(tokens, ("HMMA", "HGMMA"))[arch == 90]
    others = {"IMMA", "IGMMA", "HMMA", "HGMMA"} - {product}
    rules = common_rules(arch, asdict(row), figures) | {
        f"products are {product}": loop[product] > 0 and not any(loop[name] for name in others),
        "tile loads through descriptors": arch < 90 or loop["UTMALDG"] >= 2,
    }
    if tokens == "i8":
        rules["128-bit tile loads"] = arch == 90 or loop["LDGSTS"] == loop["LDGSTS128"] > 0
    if op.startswith("ternary int8"):
        planes = 4 if op.endswith("decode") else 1
        words = max(1, 16 * row.num_warps // row.BN) * planes * row.BN * row.BK // (32 * row.num_warps) // 4
        # masked, and but for the last plane inverted; four weights an instruction
        rules["two instructions for four weights"] = words <= loop["LOP3"] <= 2 * words + 32
    return rules


def _products(arch: int) -> list[Point]:
    k, found = quantised_products, []
    for op, mode in (("int8", "real"), ("int8", "sums"), ("int8 rounded", "steps"), ("int8 rounded", "fixed")):
        found.append(_product(arch, k.int8_product, op, mode, TURNED=False))
    found += [_product(arch, k.int8_product, "int8 decode", mode, TURNED=True) for mode in EPILOGUES]
    found += [_product(arch, k.ternary_decode, "ternary int8 decode", mode) for mode in EPILOGUES]
    found += [_product(arch, k.ternary_product, "ternary int8", mode) for mode in EPILOGUES]
    found += [_product(arch, k.ternary_wide, "ternary 2-byte", "real", kind) for kind in ("bf16", "fp16")]
    found += [_product(arch, k.ternary_wide, "ternary 4-byte", "real", "fp32")]
    for mode in ("real", "steps", "fixed"):
        types, absent = EPILOGUES[mode]
        held = {"token_s": 1, "scale_s": 1, "MODE": mode} | absent
        types = types | {"part_ptr": "*i32"}
        found.append(_point(mode, arch, k.combine, BLOCKS["combine"], types, held, _plain_rules, longest_loop))
    types = {"x_ptr": "*i8", "added_ptr": "*i32"}
    return [*found, _point("", arch, k.twice_sums, BLOCKS["row sums"], types, {}, _plain_rules, longest_loop)]


def _plain_rules(arch: int, row: Block, figures: Figures) -> dict[str, bool]:
    return common_rules(arch, asdict(row), figures)


def _wide_rules(narrow: int, stores: bool, arch: int, row: Block, figures: Figures) -> dict[str, bool]:
    """`narrow`: loads of a thread that are no part of a vector, from tables and of scalars."""
    loop = figures.loop
    return common_rules(arch, asdict(row), figures) | {
        "128-bit loads": loop["LDG"] - narrow == loop["LDG128"] > 0,
        "128-bit stores": not stores or loop["STG128"] == loop["STG"] > 0,
    }  # fmt: skip


def _elements(arch: int) -> list[Point]:
    row, found, k = BLOCKS["element"], [], fixed_point
    each = row.BLOCK // (32 * row.num_warps)  # elements of a thread
    for kind, entries in (("bf16", "i8"), ("bf16", "i32"), ("fp32", "i32"), ("bf16", "bf16")):
        types = {"x_ptr": f"*{kind}", "out_ptr": f"*{kind}", "table_ptr": f"*{entries}"}
        name = f"{kind} of {entries}"
        found.append(_point(name, arch, k.by_table, row, types, {"BITS": 8}, partial(_wide_rules, each, True), whole))
    for kind, entries in (("bf16", "i32"), ("bf16", "i64"), ("fp32", "i64")):
        types = {"x_ptr": f"*{kind}", "out_ptr": f"*{kind}", "start_ptr": f"*{entries}", "rise_ptr": f"*{entries}"}
        name = f"{kind} of {entries}"
        found.append(
            _point(name, arch, k.by_lines, row, types, {"RISES": True}, partial(_wide_rules, 2 * each, True), whole)
        )
    for function in k.FUNCTIONS:
        types = dict.fromkeys(("x_ptr", "d_out_ptr", "d_x_ptr"), "*bf16")
        held = {"BITS": 8, "FUNCTION": function}
        found.append(
            _point(f"bf16 {function}", arch, k.d_input, row, types, held, partial(_wide_rules, 0, True), whole)
        )
    return found


def _rounding(arch: int) -> list[Point]:
    k = fake_quantise
    found: list[Point] = []
    types: dict[str, str]
    held: dict[str, Any]
    cases = [
        (64, "bf16", "symmetric", "none"), (1024, "bf16", "symmetric", "none"), (1024, "bf16", "symmetric", "tensor"),
        (1024, "bf16", "affine", "none"), (4096, "bf16", "symmetric", "none"),
        (4096, "bf16", "affine", "tensor"), (16384, "bf16", "symmetric", "none"), (16384, "fp32", "affine", "tensor"),
        (32768, "bf16", "symmetric", "none"),
    ]  # fmt: skip
    for N, kind, method, fade in cases:
        row = row_block(N, 4 if kind == "fp32" else 2)
        types = {"x_ptr": f"*{kind}", "out_ptr": f"*{kind}", "strength_ptr": f"*{kind}"}
        held = {"ROWS": k.held_rows(row), "WHOLE": row.BLOCK >= N, "TOP": k.top_of(8, method)}
        held |= {"METHOD": method, "FADE": fade}
        if fade != "tensor":
            del types["strength_ptr"]
            held["strength_ptr"] = None
        name = f"N{N} {kind} {method} {fade}"
        rules = partial(_wide_rules, int(fade == "tensor"), True)
        found.append(_point(name, arch, k.by_row, row, types, held, rules, whole))
    row, types = row_block(4096, 2), {"x_ptr": "*bf16", "code_ptr": "*i8", "scale_ptr": "*fp32"}
    held = {"ROWS": k.held_rows(row), "WHOLE": True, "TOP": k.top_of(8, "symmetric")}
    found.append(_point("N4096 bf16", arch, k.codes_by_row, row, types, held, partial(_wide_rules, 0, False), whole))
    block = BLOCKS["range"]
    for kind, method in (("bf16", "symmetric"), ("bf16", "affine"), ("fp32", "symmetric")):
        types, held = {"x_ptr": f"*{kind}", "part_ptr": "*i32"}, {"METHOD": method}
        name = f"{kind} {method}"
        rules = partial(_wide_rules, 0, False)
        found.append(_point(name, arch, k.find_range, block, types, held, rules, longest_loop))
        types |= {"out_ptr": f"*{kind}"}
        held |= {"strength_ptr": None, "PARTS": k.PARTS, "TOP": k.top_of(8, method), "FADE": "none"}
        rules = partial(_wide_rules, 1 if method == "symmetric" else 2, True)  # the parts of the range
        found.append(_point(name, arch, k.by_tensor, block, types, held, rules, whole))
    return found


def points() -> list[Point]:
    return [p for arch in (90, 80) for p in (*_products(arch), *_elements(arch), *_rounding(arch))]


FAMILY = Family("quantised", (quantised_numbers, quantised_products, fixed_point, fake_quantise), points)
