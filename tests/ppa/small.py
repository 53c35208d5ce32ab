"""The small model that several report tests count."""

from gptcore.loader import from_dict

STAGES = ("prefill", "decode", "train")
MODEL = {
    "n_layer": 2, "n_embd": 32, "block_size": 16, "vocab_size": 29,
    "attention": {"kind": "causal", "n_head": 4, "n_kv_head": 2, "window": 5},
}  # fmt: skip
CHECKS = {
    "parameters", "weight_names_and_shapes", "prefill_matmul_flops", "decode_matmul_flops", "train_matmul_flops",
    "kv_cache_bytes",
}  # fmt: skip


def config(**sections):
    return from_dict({"model": {**MODEL, **sections.pop("model", {})}, **sections})
