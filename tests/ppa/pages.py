"""Reports to make pages of, and what may stand on a page: the numbers of its documents and what follows from them."""

import json
import math
import re
import xml.etree.ElementTree as ET
from bisect import bisect
from functools import lru_cache

from small import STAGES, config

from ppa.report import make_report, to_json


@lru_cache
def make(hardware="edge-sky130", softmax="softmax", n_layer=2):
    small = config(model={"n_layer": n_layer, "attention": {"n_head": 4, "n_kv_head": 2, "softmax": {"kind": softmax}}})
    return json.loads(to_json(make_report(small, hardware=hardware, name="small")))


def tree(page):
    """The page as XML; style and script are no XML."""
    page = re.sub(r"<(style|script)>.*?</\1>", "", page.removeprefix("<!DOCTYPE html>\n"), flags=re.S)
    return ET.fromstring(page)


def words(element):
    return "".join(element.itertext())


def numbers_of(node):
    """Every number of a document."""
    if isinstance(node, dict):
        return [n for value in node.values() for n in numbers_of(value)]
    if isinstance(node, list):
        return [n for value in node for n in numbers_of(value)]
    return [node] if isinstance(node, (int, float)) and not isinstance(node, bool) else []


def derived(report):
    """What the page may work out: tokens over seconds, FLOPs over bytes or seconds, sums by slot and layer."""
    totals, estimate = report["totals"], report["estimate"]
    found = [sum(totals[s]["op_counts"].values()) for s in STAGES]
    groups = {}

    def add(measure, row, slot, amount):
        for key in (slot, ("layer", row["layer"]), ("cell", slot, row["layer"]), None):
            groups[measure, row["stage"], key] = groups.get((measure, row["stage"], key), 0) + amount

    slots = {row["slot"] for row in report["ops"]}
    for row in report["ops"]:
        for key, amount in (
            ("flops", row["flops"]),
            ("bytes", row["bytes"]["fused"]),
            ("ops", sum(row["op_counts"].values())),
        ):
            add(key, row, row["slot"], amount)
    if estimate:
        for row in estimate["kernels"]:
            add("s", row, row["slot"], row["seconds"])
            add("dram", row, row["slot"], row["dram_bytes"])
            for component, joules in row["energy_by_component"].items():
                first = "softmax" if component == "score buffer" else component.split(" ")[0]
                add("J", row, first if first in slots else row["slot"], joules)
        for s in STAGES:
            parts = estimate["stages"][s]["energy_by_component"]
            found += [sum(parts[c]["value"] for c in ("control", "leakage") if c in parts)]
            found += [q["value"] for q in parts.values()] + [sum(q["value"] for q in parts.values())]
            seconds = totals["latency_s"][s]["value"]
            found += [estimate["stages"][s]["tokens"] / x for x in numbers_of(totals["latency_s"][s])]
            found += [busy / seconds for busy in estimate["stages"][s]["busy_s"].values()]
        areas = [q["value"] for q in estimate["area_by_component"].values()]
        found += [sum(areas), *(a / totals["area_m2"]["value"] for a in areas)]
        peaks = estimate["peaks"]
        for entry in estimate["sweep"]:
            for s in ("prefill", "decode"):
                at, tokens = entry[s], entry["batch"] * (entry["context"] if s == "prefill" else 1)
                found += [tokens / x for x in numbers_of(at["latency_s"])]
                intensity = at["flops"] / at["dram_bytes"] if at["dram_bytes"] else math.inf
                roof = min(peaks["flop_per_s"], peaks["bytes_per_s"] * intensity)
                found += [intensity, at["flops"] / at["latency_s"]["value"] / roof]
    found += [sum(totals[s]["bytes"][c] for c in totals[s]["bytes"] if c not in ("fused", "unfused")) for s in STAGES]
    batch = report["point"]["batch"]
    return [
        *found,
        *groups.values(),
        totals["decode"]["matmul_flops"] / batch,
        totals["decode"]["bytes"]["fused"] / batch,
    ]


def strangers(page, *documents, more=()):
    """Numbers of a page that are in no document and follow from none, or whose text is another number."""
    known = sorted({float(n) for d in documents for n in (*numbers_of(d), *derived(d))} | {float(n) for n in more})

    def is_known(value):
        at = bisect(known, value)
        return any(math.isclose(value, other, rel_tol=1e-9, abs_tol=0) for other in known[max(0, at - 1) : at + 1])

    wrong = []
    for element in tree(page).iter("data"):
        value, shown = float(element.get("value")), words(element)
        if not is_known(value):
            wrong.append((value, shown))
        elif shown.endswith("%"):
            if abs(float(shown.strip("<%\u202f")) / 100 - value) > (0.001 if "<" in shown else 0.000501):
                wrong.append((value, shown))
        elif value:
            read = float(re.search(r"[\d.,]+(e[-+]\d+)?", shown)[0].replace(",", ""))
            off = math.log10(read / value) if read else 0.0  # a prefix shifts by whole powers of ten
            if abs(off - round(off)) > math.log10(1.0051):
                wrong.append((value, shown))
    return wrong


_PREFIXES = {
    "E": 18,
    "P": 15,
    "T": 12,
    "G": 9,
    "M": 6,
    "k": 3,
    "": 0,
    "m": -3,
    "\u00b5": -6,
    "n": -9,
    "p": -12,
    "f": -15,
}


def parsed(shown, unit):
    """What a person reads from a number with its unit."""
    told, _, name = shown.partition("\u202f")
    square = unit == "m2"
    prefix = name.removesuffix("m\u00b2" if square else unit)
    return float(told.replace(",", "")) * 10.0 ** (_PREFIXES[prefix] * (2 if square else 1))
