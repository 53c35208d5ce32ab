"""The benchmark of search strategies: a small space all of which is trained, and strategies compared on it.

    python benchmarks/search_table.py make --scratch DIR [--seeds 8]    trains what is missing (half an hour a core)
    python benchmarks/search_table.py pack --scratch DIR                explorations/search/tabulated.csv from it
    python benchmarks/search_table.py compare [--searches 20] [--kinds greedy random nsga2 beam2] [--page FILE] [K=V]

Every search is judged by what it does not know: the mean loss over all seeds of the table. Searches of the same number
meet the same losses, whatever the strategy: an order of the table's seeds, drawn from that number. Figures, all means
over searches: `excess`, nats of the end point above the best point within the constraint; `front`, the hypervolume of
(area, loss) that the search recommends, of greedy its way, of any other what it measured and nothing it measured beats
(by measured means; counted at the true losses), as a share of that of the true front; `measured`, the same for greedy,
too. The reference point is REFERENCE.
"""

import argparse
import csv
import itertools
import random
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from gptcore.errors import RunError, UserError
from search.cost import costs, violations
from search.ledger import Ledger
from search.moves import Move, apply
from search.point import Point
from search.space import Space, load
from search.study import Search
from search.tabulated import Tabulated, named
from search.trial import Identity, TrialSpec, data_hash

SPACE = Path(__file__).parents[1] / "explorations" / "search" / "tabulated.yaml"
TABLE = SPACE.with_suffix(".csv")
REFERENCE = (2.5e-5, 3.0)  # m2 and nats: the constraint, and a loss above every point of the grid
BITS = ("model.bits.weight", "model.attention.linear.bits", "model.mlp.linear.bits", "model.embedding.bits")
STARTS = {
    "smallest": [],
    "middle": ["model.n_embd=96", *(f"{name}=4" for name in BITS)],
    "poor": ["model.attention.softmax.kind=consmax", "model.mlp.activation.kind=silu", *(f"{name}=2" for name in BITS)],
}
BUDGETS = (40, 60, 100)
MARKS = ("<!-- compared -->", "<!-- end -->")


def grid(space: Space) -> Iterator[tuple[list[str], Point]]:
    """(the choices in words, the point) of every combination of choices."""
    axes: dict[tuple, list[Move]] = {}
    for move in space.moves:
        if move.op != "set" or move.per_layer:
            raise UserError(f"{move.mark}: {move.words}: a table has choices only")
        axes.setdefault(move.paths, []).append(move)
    for moves in itertools.product(*axes.values()):
        point = space.baseline
        for move in moves:
            point, _ = apply(move, point)
        yield [str(move.value) for move in moves], point


def make(space: Space, seeds: int, scratch: Path) -> None:
    """Trains what is not in `scratch` yet, seed by seed, so that few seeds of all points are there first."""
    import torch

    from search.worker import preload, run_trial

    torch.set_num_threads(1)
    preload()
    scratch.mkdir(parents=True, exist_ok=True)
    known = _trained(scratch)
    with open(scratch / "trials.csv", "a", newline="") as file:
        for seed, (_, point) in itertools.product(range(seeds), list(grid(space))):
            name = named(point.config)
            if (name, seed) in known:
                continue
            train = point.config.train.model_copy(update={"seed": seed})
            config = point.config.model_copy(update={"train": train})
            key = Identity.of(config).key
            result = run_trial(TrialSpec(key, config.model_dump(mode="json"), seed, str(scratch / key)))
            if result.state not in ("done", "diverged"):
                raise RunError(f"{key}: {result.state}: {result.reason}")
            loss = f"{result.loss:.5f}" if result.loss is not None else ""
            csv.writer(file).writerow([name, seed, loss, result.seconds])
            file.flush()
            shutil.rmtree(scratch / key)


def _trained(scratch: Path) -> dict[tuple[str, int], str]:
    log = scratch / "trials.csv"
    if not log.exists():
        return {}
    with open(log, newline="") as file:
        return {(name, int(seed)): loss for name, seed, loss, _ in csv.reader(file)}


def pack(space: Space, scratch: Path, table: Path = TABLE) -> int:
    """Writes the seeds of which every point is there; their number."""
    trained, points = _trained(scratch), list(grid(space))
    seeds = next(s for s in itertools.count() if any((named(p.config), s) not in trained for _, p in points))
    dataset = space.baseline.config.data.dataset
    labels = [paths[0][-1] for paths in dict.fromkeys(move.paths for move in space.moves)]
    with open(table, "w", newline="") as file:
        file.write(f"# {dataset} {data_hash(dataset)}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["identity", *labels, *range(seeds)])
        for words, point in points:
            name = named(point.config)
            writer.writerow([name, *words, *(trained[name, s] for s in range(seeds))])
    return seeds


@dataclass(frozen=True)
class Truth:
    """Of every point of the grid that holds the constraint, by name: its area, and its mean loss over all seeds."""

    area_m2: dict[str, float]
    loss: dict[str, float]

    @classmethod
    def of(cls, space: Space, table: Tabulated) -> "Truth":
        area, loss = {}, {}
        for _, point in grid(space):
            found, name = costs(point, space), named(point.config)
            losses = [x for x in table.of(name) if x is not None]
            if not violations(found, space.constraints) and len(losses) == table.seeds:
                area[name], loss[name] = found.area_m2, fmean(losses)
        return cls(area, loss)

    def share(self, names: Iterable[str]) -> float:
        """Hypervolume of some points as a share of that of all."""
        return self._volume(names) / self._volume(self.loss)

    def _volume(self, names: Iterable[str]) -> float:
        return hypervolume([(self.area_m2[n], self.loss[n]) for n in names if n in self.loss], REFERENCE)


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """The area that points dominate, both coordinates to be low, up to the reference point."""
    volume, low = 0.0, reference[1]
    for x, y in sorted(points):
        if x < reference[0] and y < low:
            volume += (reference[0] - x) * (low - y)
            low = y
    return volume


class Recorder(Tabulated):
    """Also remembers which losses a search has seen."""

    def __init__(self, *args):
        super().__init__(*args)
        self.seen: dict[str, list[float]] = {}

    def of(self, name):
        self.last = name
        return super().of(name)

    def start(self, spec):
        super().start(spec)
        if self._results[-1].loss is not None:
            self.seen.setdefault(self.last, []).append(self._results[-1].loss)


@dataclass(frozen=True)
class Score:
    excess: float
    front: float
    measured: float
    trials: int


def search(space: Space, table: Path, truth: Truth, number: int) -> Score:
    """One search on losses in the order of its number."""
    seeds = Tabulated(table).seeds
    order = list(range(seeds))
    random.Random(number).shuffle(order)
    executor = Recorder(table, order)
    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder) / "ledger.sqlite") as ledger:
        ledger.lead(space.name, space.identity, "", settings=space.settings())
        one = Search(space, ledger, executor, Path(folder))
        outcome = one.run()
        trials = one.lab.trials
    way = [space.baseline, *(step.point for step in outcome.steps)]
    means = {name: fmean(losses) for name, losses in executor.seen.items() if name in truth.loss}
    best = [
        name
        for name, loss in means.items()
        if not any(truth.area_m2[o] <= truth.area_m2[name] and means[o] < loss for o in means)
    ]
    measured = truth.share(best)
    front = truth.share(named(p.config) for p in way) if space.strategy.kind == "greedy" else measured
    return Score(truth.loss[named(outcome.point.config)] - min(truth.loss.values()), front, measured, trials)


def compare(kinds: Sequence[str], searches: int, overrides: Sequence[str], table: Path = TABLE) -> Iterator[str]:
    """Markdown: a row for every start, budget and kind of strategy, those after the first beside it; then the verdict
    on the first against each of the others."""
    known = Tabulated(table)
    truth = Truth.of(load(SPACE), known)
    spread = fmean(truth.loss.values()) - min(truth.loss.values())
    yield f"{len(truth.loss)} points of {len(known.losses)} hold the constraint; one of them drawn at random has an "
    yield f"excess of {spread:.4f} nats. {known.seeds} seeds a point, {searches} searches a row.\n"
    heads = ("start", "trials", "strategy", "used", "excess, nats", "front", "measured", "first ends lower")
    yield "| " + " | ".join([*heads, "front larger", "measured larger"]) + " |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    wins: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in kinds[1:]}
    for (start, changes), budget in itertools.product(STARTS.items(), BUDGETS):
        first: list[Score] = []
        for kind in kinds:
            scores = []
            for number in range(searches):
                given = [*_strategy(kind, number), f"budget.trials={budget}", *changes, *overrides]
                scores.append(search(load(SPACE, given), table, truth, number))
            means = [f"{fmean(getattr(s, name) for s in scores):.4f}" for name in ("excess", "front", "measured")]
            against = ["", "", ""]
            if first:
                lower = sum(a.excess < b.excess for a, b in zip(first, scores, strict=True))
                higher = sum(a.excess > b.excess for a, b in zip(first, scores, strict=True))
                larger = sum(a.front > b.front for a, b in zip(first, scores, strict=True))
                seen = sum(a.measured > b.measured for a, b in zip(first, scores, strict=True))
                wins[kind].append((lower / searches, larger / searches, seen / searches))
                against = [
                    f"{lower} of {searches} ({higher} higher)",
                    f"{larger} of {searches}",
                    f"{seen} of {searches}",
                ]
            first = first or scores
            used = f"{fmean(s.trials for s in scores):.0f}"
            yield "| " + " | ".join([start, str(budget), kind, used, *means, *against]) + " |"
    for kind, found in wins.items():
        said = [
            f"{what} in {fmean(shares):.0%} of all searches, in at least four of five in "
            f"{sum(x >= 0.8 for x in shares)} of {len(shares)} rows"
            for what, shares in zip(
                ("it ends lower", "what it recommends is the larger front", "what it measured is"),
                zip(*found, strict=True), strict=True,
            )
        ]  # fmt: skip
        yield f"\n{kinds[0]} against {kind}: {'; '.join(said)}."


def _strategy(kind: str, number: int) -> list[str]:
    """Overrides for a kind of strategy; `beam3` is greedy with a beam of three."""
    if kind.startswith("beam"):
        return ["strategy.kind=greedy", f"strategy.beam={kind.removeprefix('beam')}"]
    return [f"strategy.kind={kind}", *([f"strategy.seed={number}"] if kind in ("random", "nsga2") else [])]


def write(lines: Iterable[str], page: Path) -> None:
    """Puts lines between the marks of a page."""
    before, mark, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not mark or not end:
        raise UserError(f"{page} has no place for the table: {' ... '.join(MARKS)}")
    page.write_text(before + mark + "\n\n" + "\n".join(lines) + "\n\n" + end + after, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["make", "pack", "compare"])
    parser.add_argument("overrides", nargs="*", help="of the space file, for compare")
    parser.add_argument("--scratch", type=Path, default=Path("out/search_table"))
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--searches", type=int, default=20)
    parser.add_argument("--page", type=Path, help="write the result between the marks of this page, too")
    parser.add_argument("--kinds", nargs="+", default=["greedy", "random"])
    args = parser.parse_args()
    if args.command == "make":
        make(load(SPACE), args.seeds, args.scratch)
    elif args.command == "pack":
        print(f"{pack(load(SPACE), args.scratch)} seeds")
    else:
        lines = []
        for line in compare(args.kinds, args.searches, args.overrides):
            print(line, flush=True)
            lines.append(line)
        if args.page:
            write(lines, args.page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
