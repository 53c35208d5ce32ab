"""Each contract check must be able to fail: one seeded mistake for each turns it red."""

import dataclasses

import pytest
import test_contract as contract
import torch
from configs import config_for

from gptcore import model as model_module
from gptcore.attention.causal import CausalAttention
from gptcore.cache import KVCache
from gptcore.linear.linear import Dense
from gptcore.masking import CausalMask
from gptcore.mlp.mlp import TwoLayer
from gptcore.ops import Matmul
from gptcore.position.learned import LearnedPosition
from gptcore.position.rotary import Rotary
from gptcore.softmax.consmax import ConSmax
from gptcore.softmax.softmax import ExactSoftmax

CONSMAX, PLAIN = config_for("softmax", "consmax"), config_for("mlp", "mlp")
ROTARY, WINDOWED = config_for("position", "rotary"), config_for("attention", "causal")
WINDOWED = WINDOWED.model_copy(update={"attention": WINDOWED.attention.model_copy(update={"window": 3})})


def detached_branch(patch):
    patch.setattr(TwoLayer, "forward", lambda self, x: self.c_proj(self.activation(self.c_fc(x)).detach()))


def mask_off_by_one(patch):
    original = CausalMask.live_TS
    patch.setattr(CausalMask, "is_triangle", property(lambda self: False))
    patch.setattr(CausalMask, "live_TS", lambda self, device: original(self, device).roll(1, 1))


def unseeded_init(patch):
    entropy = torch.Generator()
    entropy.seed()

    def init(self, std):
        torch.nn.init.normal_(self.weight, std=std, generator=entropy)
        torch.nn.init.zeros_(self.bias)

    patch.setattr(Dense, "init_weights", init)


def table_not_saved(patch):
    def init(self, config, dims, heads):
        torch.nn.Module.__init__(self)
        self.has_bias = False
        self.register_buffer("weight", torch.empty(dims.block_size, dims.n_embd), persistent=False)

    patch.setattr(LearnedPosition, "__init__", init)


def rotation_ignores_the_past(patch):
    original = Rotary._turn
    patch.setattr(Rotary, "_turn", lambda self, x, start: original(self, x, 0))


def ring_overwrites_too_early(patch):
    original = KVCache._append
    patch.setattr(KVCache, "_append", lambda self, ring, new, old: original(self, ring, new, old + 1))


def counter_in_forward(patch):
    original = TwoLayer.forward

    def forward(self, x):
        self.calls = getattr(self, "calls", 0) + 1  # the fork's consmax did this: one compilation a step
        return original(self, x) * min(self.calls, 10)

    patch.setattr(TwoLayer, "forward", forward)


def forgotten_product(patch):
    original = contract.declare

    def declare(*args):
        g = original(*args)
        g.ops = [op for op in g.ops if not (isinstance(op, Matmul) and op.name.endswith("h.0.attn.av"))]
        return g

    patch.setattr(contract, "declare", declare)


def wrong_inner_dimension(patch):
    original = contract.declare

    def declare(*args):
        g = original(*args)
        g.ops = [dataclasses.replace(op, k=op.k + 1) if op.name.endswith("c_fc.matmul") else op for op in g.ops]
        return g

    patch.setattr(contract, "declare", declare)


def wrong_scale_in_fused_form(patch):
    original = ExactSoftmax.attend
    patch.setattr(
        ExactSoftmax, "attend", lambda self, *a: original(self, *a[:3], dataclasses.replace(a[3], scale=2 * a[3].scale))
    )


def undeclared_gamma(patch):
    patch.setattr(
        ConSmax,
        "declare",
        staticmethod(lambda config, g, scores, heads: g.pointwise("consmax", scores, g.weight("beta", heads), exp=1)),
    )


def oversized_cache(patch):
    def new_cache(self, batch, length, dtype, device):
        return KVCache(batch, self.K, length + 1, self.D, self.D, dtype, device)

    patch.setattr(CausalAttention, "new_cache", new_cache)


def rounded_numbers(patch):
    original = contract.dump

    def rounded(value):
        if isinstance(value, dict):
            return {k: rounded(v) for k, v in value.items()}
        return float(f"{value:.0e}") if isinstance(value, float) and value == 2.5 else value

    patch.setattr(contract, "dump", lambda value: original(rounded(value)))


def infinite_loss(patch):
    patch.setattr(model_module.F, "cross_entropy", lambda logits, targets, ignore_index: logits.sum() * float("inf"))


FAULTS = [
    (contract.test_forward_and_backward_are_finite, infinite_loss, PLAIN, torch.float32),
    (contract.test_forward_and_backward_are_finite, detached_branch, PLAIN, torch.bfloat16),
    (contract.test_causal, mask_off_by_one, PLAIN),
    (contract.test_deterministic_for_a_seed, unseeded_init, PLAIN),
    (contract.test_state_dict_round_trip, table_not_saved, PLAIN),
    (contract.test_cached_decode_equals_full_forward, rotation_ignores_the_past, ROTARY),
    (contract.test_cached_decode_equals_full_forward, ring_overwrites_too_early, WINDOWED),
    (contract.test_traces_as_one_graph, counter_in_forward, PLAIN),
    (contract.test_flops_equal_flop_counter_on_meta, forgotten_product, PLAIN),
    (contract.test_fvcore_agrees_on_what_it_supports, wrong_inner_dimension, PLAIN),
    (contract.test_fused_attention_equals_its_definition, wrong_scale_in_fused_form, PLAIN),
    (contract.test_declared_parameters_are_those_of_the_module, undeclared_gamma, CONSMAX),
    (contract.test_declared_cache_is_that_of_the_module, oversized_cache, PLAIN, torch.float32),
    (contract.test_config_to_yaml_to_config, rounded_numbers, CONSMAX.model_copy(update={"dropout": 0.25})),
]


@pytest.mark.parametrize(
    "check, fault, config, extra", [(*f[:3], f[3:]) for f in FAULTS], ids=lambda v: getattr(v, "__name__", "")
)
def test_fault_turns_the_check_red(check, fault, config, extra, monkeypatch):
    check(config, *extra)  # green without the fault
    fault(monkeypatch)
    with pytest.raises((AssertionError, torch._dynamo.exc.RecompileError)):
        check(config, *extra)
