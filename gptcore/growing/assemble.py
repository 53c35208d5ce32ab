"""A child model filled from its parent, by one strategy for the width of the stream."""

import math
import re
from typing import Any

import torch
from torch import Tensor, nn

from ..linear import Linear
from ..model import GPT
from ..norm import Norm
from .axes import FRESH, ZERO, Axis, axis, padded, transfer
from .layers import PARTS, Get, align, joins, silence, sources
from .parts import Part, fit, put_norm
from .probe import fit_norm, measured, stream_order, weights_of
from .strategy import Strategy

UNEVEN = 0.3  # how far the shares of two copies of a coordinate lie from equal ones, so that they learn differently


class Assembly:
    """Fills `new`, a model as initialised, from `old`. `used` of the parent's elements live on in it."""

    def __init__(self, old: GPT, new: GPT, strategy: Strategy):
        self.old, self.new, self.strategy = old, new, strategy
        self.notes: list[str] = []
        self.done: set[int] = set()  # parameters of the child that have their values
        self.taken: dict[int, int] = {}  # parameter of the parent -> elements of it that live on
        self.aligned = align(old.config.layer_configs(), new.config.layer_configs())
        self.source = sources(self.aligned)
        self.blocks: list[Any] = list(new.transformer.h)  # type: ignore[arg-type]
        self.parents: list[Any] = list(old.transformer.h)  # type: ignore[arg-type]
        if len(self.blocks) < len(self.parents):
            self.notes.append("a layer is gone")
        self._stream()
        with torch.no_grad():
            self._ends()
            for j in range(len(self.blocks)):
                self._layer(j)
            self._rest()
            for j, i in enumerate(self.aligned):
                if i is None:
                    self._silence(j)

    @property
    def used(self) -> int:
        return sum(self.taken.values())

    def why(self) -> list[str]:
        """What stands against the same function, as far as it is known."""
        shapes, others = ([p.shape for p in m.parameters()] for m in (self.old, self.new))
        if self.notes or shapes == others:
            return list(dict.fromkeys(self.notes))
        kinds = {m.config: weights_of(m) for m in self.new.modules() if isinstance(m, Linear) and m.config is not None}
        return [f"weights of kind {config.kind} {words}" for config, words in kinds.items() if words]  # type: ignore[attr-defined]

    def how(self) -> list[str]:
        words = []
        if self.old.config.n_embd != self.new.config.n_embd:
            scale = f", the stream times {self.scale:.4g}" if self.scale != 1 else ""
            words.append(self.strategy.words + scale)
        added = sum(i is None for i in self.aligned)
        if added:
            words.append(f"{added} new layer{'s' * (added > 1)} that add{'s' * (added == 1)} nothing at first")
        return words

    def put(self, parameter: Tensor, source: Tensor, axes: list[Axis]) -> None:
        value, used = transfer(parameter.detach(), source.detach(), axes)
        parameter.copy_(value)
        self.done.add(id(parameter))
        self.taken[id(source)] = max(used, self.taken.get(id(source), 0))

    def _stream(self) -> None:
        """Which coordinate is which. `carried`: as the stream holds them; `read`: as a reader's columns; `write`."""
        before, after = self.old.config.n_embd, self.new.config.n_embd
        self.scale = 1.0
        source, factor = torch.arange(after).where(torch.arange(after) < before, -1), 1.0
        shares = torch.ones(after, dtype=torch.float64)
        if self.strategy.copies:
            source = torch.arange(after) % before
            shares = 1 + UNEVEN * (2 * torch.rand(after, dtype=torch.float64) - 1)
            shares = shares / shares.view(-1, before).sum(0).repeat(after // before)
        elif before != after:
            source, factor = stream_order(*self._first_norms(), before, after)
        if self.strategy.scaled:
            self.scale = factor
        self.copies = after // before if self.strategy.copies else 1
        self.carried = axis(source, before, self.strategy.start, self.scale)
        self.write = self.carried
        ones = axis(source, before, FRESH)
        self.read = Axis(ones.source, ones.start, ones.factor * shares, before)

    def _first_norms(self) -> tuple[nn.Module | None, nn.Module | None]:
        """The first norm of the stream that has statistics, in parent and child."""
        news = dict(self.new.named_modules())
        for name, norm in self.old.named_modules():
            other: Any = news.get(name)
            if isinstance(norm, Norm) and norm.width == self.old.config.n_embd and type(other) is type(norm):
                if len(measured(norm, norm.width)):
                    return norm, other
        return None, None

    def _norm(self, old: Any, new: Any, want: float, *, writes: bool = False) -> float:
        """A norm that is to put out `want` times what it did; returns the factor that is left to its readers."""
        found = fit_norm(old, new, self.carried, want, writes=writes)
        put_norm(old, new, self.carried, found.gain, want, self.put)
        if found.error > 1e-3 or (writes and found.left != 1):
            what = "what the new coordinates of the stream must carry" if writes else "what it did"
            self.notes.append(f"a norm of kind {new.config.kind} cannot put out {what}")
        return 1.0 if writes else found.left

    def _ends(self) -> None:
        """Table, norms at both ends, head."""
        old, new = self.old, self.new
        table, other = new.transformer.wte, old.transformer.wte
        natural = table.root / other.root if hasattr(table, "root") and hasattr(other, "root") else 1.0
        final, first = new.transformer.ln_f, old.transformer.ln_f
        tied, narrow = new.config.tie_embeddings, new.config.embedding.width is not None
        tied = tied and not narrow
        if new.config.tie_embeddings and not old.config.tie_embeddings:
            self.notes.append("the table and the head were two matrices")
        has_gain = getattr(final, "weight", None) is not None
        rows = padded(table.num_embeddings, table.num_embeddings, ZERO)
        written = self.scale / natural
        if tied and has_gain:
            self._norm(first, final, 1 / (written * self.copies))
        else:
            left = self._norm(first, final, 1.0)
            if tied and hasattr(table, "factor") and hasattr(other, "factor"):
                table.factor.copy_(other.factor * (written * left * self.copies))
                self.done.add(id(table.factor))
                self.taken[id(other.factor)] = 1
                written = 1 / (left * self.copies)
            elif tied and left * written * self.copies != 1:
                self.notes.append("the table is head and embedding at once, and no gain stands between them")
            columns = self.read.times(1 / left)
            if narrow and hasattr(old.lm_head, "down"):
                inner = padded(old.config.embedding.width or 0, new.config.embedding.width or 0, FRESH)
                self.put(new.lm_head.down.weight, old.lm_head.down.weight, [inner, columns])
            elif not narrow and not tied and not hasattr(old.lm_head, "down"):
                self.put(new.lm_head.weight, old.lm_head.weight, [rows, columns])
        if narrow and hasattr(other, "up"):
            inner = padded(old.config.embedding.width or 0, new.config.embedding.width or 0, ZERO)
            self.put(table.weight, other.weight, [rows, inner])
            self.put(table.up.weight, other.up.weight, [self.write.times(written / self.scale), inner.starting(FRESH)])
            if new.lm_head.weight is not table.weight:
                self.put(new.lm_head.weight, old.lm_head.weight, [rows, inner])
        elif not narrow and not hasattr(other, "up"):
            self.put(table.weight, other.weight, [rows, self.write.times(written / self.scale)])
        if new.norm_embedding is not None and old.norm_embedding is not None:
            self._norm(old.norm_embedding, new.norm_embedding, self.scale, writes=True)

    def _layer(self, j: int) -> None:
        i = self.source[j]
        new, old = self.blocks[j], self.parents[i]
        if len(joins(new)) != len(joins(old)):
            return
        for (name, placement, parts, residual), (_, before, _, residual_old) in zip(
            joins(new), joins(old), strict=True
        ):
            columns, writes = self._block_norms(new, old, name, placement, before, parts)
            branch = self._residual(residual, residual_old)
            if placement in ("peri", "output"):
                norm = getattr(new, name + "_out" if placement == "peri" else name)
                if branch != 1.0 and getattr(norm, "weight", None) is not None:
                    norm.weight.mul_(branch)
                    if getattr(norm, "bias", None) is not None:
                        norm.bias.mul_(branch)
            elif branch != 1.0:
                writes = writes.times(branch)
            average = getattr(residual, "alpha", None)
            if (
                average is not None
                and len(average) > 1
                and len(getattr(residual_old, "alpha", ())) == self.carried.size
            ):
                writes = Axis(writes.source, writes.start, writes.factor, writes.size, residual_old.alpha.double())
            for part, read in zip(parts, columns, strict=True):
                self._part(j, part, read, writes)

    def _block_norms(self, new: Any, old: Any, name: str, placement: str, before: str, parts: Any) -> tuple[Any, Axis]:
        """Norms of one join: (columns of each part, rows that write)."""
        passing = [not any(True for _ in get(new).parameters()) for get in parts]
        columns = [self.read.times(1 / self.scale)] * len(parts)
        names = {"pre": [name], "post": [name], "output": [name], "peri": [name, name + "_out"]}[placement]
        if placement != before:
            return columns, self.write
        for norm in names:
            reads = placement in ("pre", "peri") and norm == name
            want = 1.0 if reads and not any(passing) else self.scale
            left = self._norm(getattr(old, norm), getattr(new, norm), want, writes=not reads or any(passing))
            if reads:
                columns = [self.read.times(1 / (left * want))] * len(parts)
        if getattr(new, "two", False) and getattr(old, "two", False):
            left = self._norm(old.ln_2, new.ln_2, 1.0)
            columns[1:] = [self.read.times(1 / left)]
        return columns, self.write

    def _residual(self, new: Any, old: Any) -> float:
        """The factor of a branch; returns what its writer has to make up for."""
        if hasattr(new, "alpha"):
            if not hasattr(old, "alpha"):
                new.alpha.fill_(getattr(old, "initial", 1.0))
            elif len(new.alpha) == len(old.alpha) == 1:
                self.put(new.alpha, old.alpha, [padded(1, 1, ZERO)])
            elif len(old.alpha) == 1:
                new.alpha.fill_(float(old.alpha))
            elif len(old.alpha) == self.carried.size and len(new.alpha) == len(self.carried.source):
                new.alpha.fill_(1.0)
                self.put(new.alpha, old.alpha, [axis(self.carried.source, self.carried.size, FRESH)])
                new.alpha[~self.carried.kept] = 1.0
            self.done.add(id(new.alpha))
            return 1.0
        if type(new) is type(old) and not hasattr(old, "alpha") and new.initial and old.initial != new.initial:
            return old.initial / new.initial
        return 1.0

    def _part(self, j: int, get: Get, read: Axis, write: Axis) -> None:
        """Attention or mlp of a layer, once for all layers that share it."""
        new = get(self.blocks[j])
        members = [k for k, b in enumerate(self.blocks) if get(b) is new]
        kept = [k for k in members if self.aligned[k] is not None]
        i = self.source[kept[0] if kept else members[0]]
        if j != members[0]:
            return
        old = get(self.parents[i])
        length = min(self.old.config.block_size, self.new.config.block_size, 512)
        part = Part(read, write, self.put, self.old.position.at(i), self.new.position.at(j), length, self.notes)
        heads = fit(old, new, part)
        if heads is not None and len(heads.source) != heads.size:
            self._biases(i, j, heads)

    def _biases(self, i: int, j: int, heads: Axis) -> None:
        """What a position kind has learned for every head."""
        olds = (
            dict(self.old.position.at(i).named_parameters()) if isinstance(self.old.position.at(i), nn.Module) else {}
        )
        place = self.new.position.at(j)
        if not isinstance(place, nn.Module):
            olds, place = dict(self.old.position.named_parameters()), self.new.position
        by_role = {_without_numbers(name, heads.size): p for name, p in olds.items()}
        for name, parameter in place.named_parameters():
            source = by_role.get(_without_numbers(name, len(heads.source)))
            if source is None or source.dim() != parameter.dim():
                continue
            if source.shape == parameter.shape:
                self.put(parameter, source, [padded(n, n, ZERO) for n in parameter.shape])
            elif (len(source), len(parameter)) == (heads.size, len(heads.source)):
                self.put(parameter, source, [heads, *(padded(n, n, ZERO) for n in parameter.shape[1:])])

    def _rest(self) -> None:
        """Whatever has no axes of its own: equal shapes are copied, others cut or padded; tables follow the stream."""
        olds = dict(self.old.named_parameters())
        for name, parameter in self.new.named_parameters():
            if id(parameter) in self.done:
                continue
            source = olds.get(self._name_in_parent(name))
            table = (
                name.startswith("position.") and parameter.dim() == 2 and parameter.shape[1] == self.new.config.n_embd
            )
            if source is None:
                if table and not any(n.startswith("position.") for n in olds):
                    parameter.zero_()  # a place that is not known yet
                continue
            if source.dim() != parameter.dim():
                continue
            axes = [padded(a, b, FRESH) for a, b in zip(source.shape, parameter.shape, strict=True)]
            if table and source.shape[1] == self.old.config.n_embd:
                axes[1] = self.write
            self.put(parameter, source, axes)

    def _name_in_parent(self, name: str) -> str:
        def layer(match: re.Match[str]) -> str:
            return f"{match[1]}{self.source[int(match[2])]}."

        name = re.sub(r"^(transformer\.h\.)(\d+)\.", layer, name)
        return re.sub(r"^(position\.(?:parts\.\w+\.)?layers\.)(\d+)\.", layer, name)

    def _silence(self, j: int) -> None:
        block = self.blocks[j]
        old = [b for b, i in zip(self.blocks, self.aligned, strict=True) if i is not None]
        alone = [get for get in PARTS if all(get(b) is not get(block) for b in old)]
        silence(block, alone)
        probe = torch.randn(2, 4, self.new.config.n_embd, dtype=next(self.new.parameters()).dtype)
        moved = float((block(probe, self.new.position.at(j), 0) - probe).abs().max())
        if not moved <= 1e-5 * math.sqrt(self.new.config.n_embd):
            self.notes.append("a new layer of this kind changes the stream however it starts")


def _without_numbers(name: str, heads: int) -> str:
    return re.sub(rf"curves\.{heads}\.", "curves.", name)
