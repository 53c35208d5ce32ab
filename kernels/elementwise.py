"""Causal attention whose weights stand alone, in plain torch with its backward in closed form: the path of the CPU.

    x = scale q_t k_s + bias,   weight(t, s) = base ** min(x - beta_h, clamp) / gamma_h     (ConSmax, arXiv 2402.10930)
                             or curve(x + shift) / divisor, and what else a `Weighting` says

Without a row statistic a weight needs nothing but its own score, so rows and keys come in any order, and with O = P V,
dP = dO V^T the gradients are

    ConSmax    dX = ln(base) P dP,   dbeta_h = -ln(base) sum(dO O),   dgamma_h = -sum(dO O) / gamma_h
    curves     dX = curve'(x) dP,    curve' from the weight itself, where that says it: p (1 - p), [p > 0], 1 - e^-p

With a clamp, clamped scores pass no gradient to X and beta; gamma keeps its closed form.

Tiles of `ROWS` queries meet only the keys that one of them sees, half of all, and stay in the cache; the weights of
these are all that is kept for the backward pass. Elsewhere than on a CPU, and under torch.compile, there is one tile.
Not covered: rows with a sum (softmax), dropout, soft caps, second derivatives.

Legend: B batch, H query heads, K key/value heads, G = H / K, N = B K, T queries, the last of S keys, D head width,
E value width; of a tile n rows of N, R queries, C keys.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .attention_reference import ROW_SUMS, Weighting

ROWS = 128
TILE_BYTES = 4 << 20
aten = torch.ops.aten


class _Tile(NamedTuple):
    """N = B K sequences and key heads: n of them from `n0`, the query rows [t, u), the keys [lo, hi) that they see."""

    n0: int
    n: int
    t: int
    u: int
    lo: int
    hi: int
    first: int  # column of the last key that row t sees
    window: int | None

    def of(self, x_N: Tensor) -> Tensor:
        return x_N if self.n == x_N.shape[0] else x_N[self.n0 : self.n0 + self.n]

    def rows(self, x_NGTD: Tensor) -> Tensor:
        """(n, G R, D), a view where the rows of a group adjoin."""
        x, T = self.of(x_NGTD), x_NGTD.shape[2]
        return (x if self.u - self.t == T else x[:, :, self.t : self.u]).reshape(self.n, -1, x.shape[-1])

    def keys(self, x_NSD: Tensor) -> Tensor:
        """(n, C, D), a view."""
        x = self.of(x_NSD)
        return x if self.hi - self.lo == x.shape[1] else x[:, self.lo : self.hi]

    def by_head(self, x_nGRC: Tensor, bias_HTS: Tensor) -> tuple[Tensor, Tensor]:
        """(scores by sequence and head, what the bias holds for them), views. Whole sequences or parts of one."""
        G, K = x_nGRC.shape[1], bias_HTS.shape[0] // x_nGRC.shape[1]
        bias = bias_HTS.unflatten(0, (K, G))[..., self.t : self.u, self.lo : self.hi]
        k0, heads = self.n0 % K, min(self.n, K)
        return x_nGRC.unflatten(0, (-1, heads)), bias[k0 : k0 + heads]

    def clear(self, x_nGRC: Tensor) -> Tensor:
        """Zeros, in place, wherever a query does not see a key; whatever was there."""
        R = self.u - self.t
        if R > 1:
            x_nGRC[..., self.first :].tril_()
        if self.window is not None and R + self.first > self.window:
            x_nGRC[..., : R + self.first - self.window].triu_(self.first - self.window + 1)
        return x_nGRC


def _tiles(q_NGTD: Tensor, K: int, S: int, window: int | None) -> Iterator[_Tile]:
    """The last rows first: without a window they see all keys, so that sums over rows begin with them."""
    N, G, T, _ = q_NGTD.shape
    rows, n = T, N
    if q_NGTD.device.type == "cpu" and not torch.compiler.is_compiling():  # a graph would hold every tile
        rows = min(T, ROWS)
        fit = max(1, TILE_BYTES // (G * rows * S * max(q_NGTD.element_size(), 4)))
        n = fit // K * K if fit >= K else max(i for i in range(1, fit + 1) if K % i == 0)
    for n0 in range(0, N, n):
        for t in reversed(range(0, T, rows)):
            u = min(t + rows, T)
            lo = 0 if window is None else max(0, t + S - T - window + 1)
            yield _Tile(n0, min(n, N - n0), t, u, lo, u + S - T, t + S - T - lo, window)


def _product(a: Tensor, b: Tensor, factor: float) -> Tensor:
    """factor * a @ b, the factor applied inside the product."""
    return torch.baddbmm(a.new_zeros(1, 1, 1), a, b, beta=0, alpha=factor)


def _add_product(total: Tensor, a: Tensor, b: Tensor, factor: float, first: bool) -> None:
    """total = factor * a @ b, or increased by it; sums of narrow types are in fp32."""
    if total.dtype == a.dtype and a.device.type == "cpu":  # torch counts the FLOPs of no product in place
        total.baddbmm_(a, b, beta=0 if first else 1, alpha=factor)
    elif first:
        total.copy_(_product(a, b, factor))
    else:
        total.add_(_product(a, b, factor))


def _weigh(w: Weighting, x: Tensor) -> Tensor:
    """What is kept of the scores of a curve (shifted, and consumed): weights, or what they follow from."""
    if w.kind == "sigmoid":
        return x.sigmoid_()
    if w.kind in ("relu", "relu2"):
        return x.relu_()
    return torch.nn.functional.softplus(x) if w.kind == "softplus" else x


def _weights(w: Weighting, kept: Tensor) -> Tensor:
    if w.kind == "relu2":
        return kept * kept
    if w.kind != "polymax":
        return kept
    y = kept.new_full((1,), w.y_intercept)
    line = torch.add(y, kept.clamp(w.x_intercept, 0.0), alpha=w.y_intercept / -w.x_intercept)
    right = kept.clamp(min=0.0)
    return line.add_(right) if w.power == 1 else line.addcmul_(right, right if w.power == 2 else right ** (w.power - 1))


def _through(w: Weighting, kept: Tensor, d: Tensor) -> Tensor:
    """Gradient of the weights -> that of the scores, in place where it can be."""
    if w.kind == "sigmoid":
        return aten.sigmoid_backward(d, kept)
    if w.kind == "relu":
        return aten.threshold_backward(d, kept, 0.0)
    if w.kind == "relu2":
        return d.mul_(kept).mul_(2.0)
    if w.kind == "softplus":
        # 1 - e^-p to half a unit of 1, in half the time of expm1, which would be exact to half a unit of itself.
        return d.addcmul_(d, (kept * -math.log2(math.e)).exp2_(), value=-1.0)
    right = kept.clamp(min=0.0)
    right = (
        right.sign_() if w.power == 1 else right.mul_(2.0) if w.power == 2 else right.pow_(w.power - 1).mul_(w.power)
    )
    # 0 itself belongs to the line.
    line = aten.hardtanh_backward(d, kept, w.x_intercept, torch.finfo(kept.dtype).tiny)
    return line.mul_(w.y_intercept / -w.x_intercept).addcmul_(d, right)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q_BHTD, k_BKSD, v_BKSE, beta_H, gamma_H, bias_HTS, w, scale, window):
        (B, H, T, D), (_, K, S, E) = q_BHTD.shape, v_BKSE.shape
        N, G, consmax = B * K, H // K, w.kind == "consmax"
        # exp2 takes a third of the time of exp on a CPU, and is what a GPU has; the base folds into the scale.
        rate = math.log2(w.base) if consmax else 1.0
        q, k, v = q_BHTD.contiguous().view(N, G, T, D), k_BKSD.contiguous().view(N, S, D), v_BKSE.contiguous()
        v = v.view(N, S, E)
        wide = torch.promote_types(q.dtype, torch.float32)
        if consmax:
            beta, gamma = (c.to(wide).view(K, G, 1, 1).repeat(B, 1, 1, 1) for c in (beta_H * rate, gamma_H))
        share, shift = _rows(w, T, S, window, q.device, wide)
        out = q.new_empty(B, T, K, G, E).permute(0, 2, 3, 1, 4)  # as the projection behind wants it
        kept, parts, bounded = [], [], []
        for tile in _tiles(q, K, S, window):
            t, u = tile.t, tile.u
            x = _product(tile.rows(q), tile.keys(k).mT, scale * rate).to(wide).view(tile.n, G, u - t, -1)
            if bias_HTS is not None:
                by_head, bias = tile.by_head(x, bias_HTS)
                by_head.add_(bias, alpha=rate)
            if consmax:
                x.sub_(tile.of(beta))
                bounded.append(w.clamp is not None and _may_exceed(x, w.clamp * rate))
                if bounded[-1]:
                    x.clamp_(max=w.clamp * rate)
                # gamma before the narrow type: a weight fits where its power does not.
                x = tile.clear(x.exp2_()).div_(tile.of(gamma))
            else:
                if shift is not None:
                    x.add_(shift[t:u])
                elif w.shift:
                    x.add_(w.shift)
                x = _weigh(w, x)
                x = x if w.kind == "polymax" else tile.clear(x)
            x = x.to(v.dtype)
            kept.append(x)
            p = _weights(w, x)
            p = tile.clear(p) if w.kind == "polymax" else p
            o = torch.bmm(p.view(tile.n, -1, x.shape[-1]), tile.keys(v)).view(tile.n, G, u - t, E)
            o = o if share is None else o.mul_(share[t:u])
            if consmax:
                parts.append(o)
            heads = min(tile.n, K)
            b, k0 = tile.n0 // K, tile.n0 % K
            out[b : b + tile.n // heads, k0 : k0 + heads, :, t:u] = o.view(-1, heads, G, u - t, E)
        ctx.save_for_backward(q, k, v, gamma_H, bias_HTS, share, *kept, *parts)
        ctx.w, ctx.scale, ctx.rate, ctx.window, ctx.bounded = w, scale, rate, window, bounded
        return out.flatten(1, 2)

    @staticmethod
    def backward(ctx, d_out):
        q, k, v, gamma_H, bias_HTS, share, *tiles = ctx.saved_tensors
        (N, G, T, D), (S, E), w = q.shape, v.shape[1:], ctx.w
        B, consmax = d_out.shape[0], w.kind == "consmax"
        K = N // B
        kept, parts = tiles[: len(tiles) // (1 + consmax)], tiles[len(tiles) // 2 :]
        d_out = d_out.contiguous().view(N, G, T, E)
        wide = torch.promote_types(q.dtype, torch.float32)
        # Without a window the first tile of a head fills its gradients.
        new = torch.empty_like if ctx.window is None else torch.zeros_like
        dq, dk, dv = torch.empty_like(q), new(k, dtype=wide), new(v, dtype=wide)
        d_bias = torch.zeros_like(bias_HTS) if ctx.needs_input_grad[5] else None
        dots = (gamma_H if consmax else q).new_zeros((N, G) if consmax else 0)
        free = torch.zeros_like(dots) if any(ctx.bounded) else dots
        ln_base = ctx.rate * math.log(2) if consmax else 1.0
        factor = ctx.scale * ln_base
        for i, (tile, x) in enumerate(zip(_tiles(q, K, S, ctx.window), kept, strict=True)):
            t, u, C = tile.t, tile.u, x.shape[-1]
            first = u == T and ctx.window is None
            d = tile.rows(d_out if share is None else tile.of(d_out)[:, :, t:u] * share[t:u].to(d_out.dtype))
            p = _weights(w, x)
            p = tile.clear(p) if w.kind == "polymax" else p
            _add_product(tile.keys(dv), p.view(tile.n, -1, C).mT, d, 1.0, first)
            ds = torch.bmm(d, tile.keys(v).mT).view(x.shape)
            if consmax:
                ds.mul_(x)
                dot = torch.linalg.vecdot(d.view(tile.n, G, -1), parts[i].view(tile.n, G, -1))
                tile.of(dots).add_(dot)
                if ctx.bounded[i]:
                    # The weight of a clamped score, less its roundings: no mask is kept.
                    highest = math.exp(min(w.clamp * ln_base, 700.0)) * (1 - 8 * torch.finfo(wide).eps)
                    bound = (highest / gamma_H.to(wide).abs()).to(x.dtype).view(-1, 1, 1).expand(-1, T, S)
                    by_head, bound = tile.by_head(x, bound)
                    ds.masked_fill_((by_head.abs() >= bound).view(x.shape), 0.0)
                    dot = ds.sum(dim=(2, 3), dtype=free.dtype)
                if free is not dots:
                    tile.of(free).add_(dot)
            else:
                ds = _through(w, x, ds)
                ds = tile.clear(ds) if w.kind == "polymax" else ds
            if d_bias is not None:
                by_head, part = tile.by_head(ds, d_bias)
                part += by_head.sum(0, dtype=part.dtype)
            ds, rows, keys = ds.view(tile.n, -1, C), tile.rows(q), tile.keys(k)
            if G == 1 or u - t == T:
                _add_product(tile.rows(dq), ds, keys, factor, True)
            else:
                tile.of(dq)[:, :, t:u] = _product(ds, keys, factor).view(tile.n, G, u - t, D)
            _add_product(tile.keys(dk), ds.mT, rows, factor, first)
        d_beta = d_gamma = None
        if consmax:
            d_beta, d_gamma = (total.view(B, -1).sum(0) for total in (free, dots))
            d_beta, d_gamma = d_beta * -ln_base, d_gamma / -gamma_H
        d_bias = None if d_bias is None else d_bias * ln_base
        dq, dk, dv = dq.view(B, K * G, T, D), dk.to(k.dtype).view(B, K, S, D), dv.to(v.dtype).view(B, K, S, E)
        return dq, dk, dv, d_beta, d_gamma, d_bias, None, None, None


def _may_exceed(x: Tensor, bound: float) -> bool:
    """A look is cheaper than a bound that nothing exceeds; only a CPU can look for free, and no tracer can."""
    return x.device.type != "cpu" or torch.compiler.is_compiling() or bool(x.amax() > bound)


def _rows(w: Weighting, T: int, S: int, window: int | None, device, dtype) -> tuple[Tensor | None, Tensor | None]:
    """(factor of the outputs, shift of the scores) by row, (T, 1), where the weighting has such."""
    if w.kind == "consmax" or not (w.by_keys or w.log_keys or w.divisor != 1):
        return None, None
    keys = torch.arange(S - T + 1, S + 1, device=device, dtype=dtype).unsqueeze(1)
    if window is not None:
        keys.clamp_(max=window)
    share = torch.full_like(keys, 1 / w.divisor)
    return share / keys if w.by_keys else share, (w.shift - keys.log() if w.log_keys else None)


def elementwise_attention(
    q_BHTD: Tensor, k_BKSD: Tensor, v_BKSE: Tensor, weighting: Weighting, scale: float, *, window: int | None = None,
    beta_H: Tensor | None = None, gamma_H: Tensor | None = None, bias_HTS: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Weighted values (B, H, T, E). Weights are computed in fp32, or fp64, and multiplied in the type of the values."""
    if weighting.kind in ROW_SUMS:
        raise ValueError(f"{weighting.kind} has a sum over the row")
    if window is not None and window >= k_BKSD.shape[2]:
        window = None
    device, dtype = q_BHTD.device.type, torch.promote_types(q_BHTD.dtype, v_BKSE.dtype)
    if device != "meta" and torch.is_autocast_enabled(device) and dtype != torch.float64:  # meta knows no autocast
        dtype = torch.get_autocast_dtype(device)
    q, k, v = (x.to(dtype) for x in (q_BHTD, k_BKSD, v_BKSE))
    return _Attention.apply(q, k, v, beta_H, gamma_H, bias_HTS, weighting, scale, window)
