"""The model interface of the lm-evaluation-harness over a model of ours.

`Requests` answers the three kinds of request, as the harness's own backend for Hugging Face models does: contexts are
cut on the left; the white space at the end of a context counts to the continuation; text is scored in windows of which
each predicts all its tokens. It differs where that backend stops with an assertion: a continuation may be longer than
block_size (it is scored in windows), an empty one has probability 1 (0 if dropped characters emptied it), and so may be
a generation (the context then moves on, as in sampling). Text never encodes to the end-of-text token.

Only `harness_model` imports the harness.
"""

import math
import os
from collections.abc import Sequence
from typing import Any

from .batch_decode import generate_together
from .errors import UserError
from .evaluate import Coverage, check_vocabulary, start_token
from .model import GPT
from .sample import Sampling, StopStrings
from .scoring import Progress, score, windows
from .tokenizer import Tokenizer

SEED = 1234  # of sampled generations and few-shot examples; the harness's own default
MAX_NEW_TOKENS = 256  # as the harness's backend, where a task does not say
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "DISABLE_MULTIPROC": "1",
}  # fmt: skip


def prepare_environment() -> None:
    """Settings that the harness and its libraries read when they are imported; those that are already made stay.

    No network, and no pool of processes to resample a few numbers. HF_HUB_OFFLINE=0 allows the
    network to all of them.
    """
    online = os.environ.get("HF_HUB_OFFLINE") == "0"
    for name, value in _ENVIRONMENT.items():
        if not (online and name.startswith("HF_")):
            os.environ.setdefault(name, value)


class Requests:
    """The requests of the harness, answered by a model of ours."""

    def __init__(
        self, model: GPT, tokenizer: Tokenizer, *, batch_size: int = 32, drop_unknown: bool = False,
        name: str = "the task", progress: Progress | None = None,
    ):  # fmt: skip
        check_vocabulary(model, tokenizer)
        self.model, self.tokenizer, self.batch_size, self.progress = model, tokenizer, batch_size, progress
        self.start = start_token(tokenizer)[0]
        self.coverage = Coverage(tokenizer, name, drop=drop_unknown)

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Log-probability in nats of each (context, continuation), and whether greedy decoding gives it."""
        self.coverage.look_at(text for pair in pairs for text in pair)
        encoded: dict[str, list[int]] = {}  # contexts come once per choice
        texts = [self._split(*map(self.coverage.clean, pair)) for pair in pairs]
        tokens = []
        for context, continuation in texts:
            if context not in encoded:
                encoded[context] = self.tokenizer.encode(context)
            whole = self.tokenizer.encode(context + continuation)
            tokens.append((encoded[context] or [self.start], whole[len(encoded[context]) :]))
        found = score(self.model, tokens, batch_size=self.batch_size, progress=self.progress)
        # What had text and lost all of it is nothing that the model could ever say.
        return [
            (-math.inf, False) if pair[1] and not kept[1] else (likelihood.nats, likelihood.greedy)
            for pair, kept, likelihood in zip(pairs, texts, found, strict=True)
        ]

    @staticmethod
    def _split(context: str, continuation: str) -> tuple[str, str]:
        bare = context.rstrip()
        return bare, context[len(bare) :] + continuation

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[float]:
        """Log-probability in nats of each text as a whole, beginning from the start token."""
        self.coverage.look_at(texts)
        pairs, owners = [], []
        for i, text in enumerate(texts):
            for pair in windows(self.tokenizer.encode(self.coverage.clean(text)), self.start, self._block_size):
                pairs.append(pair)
                owners.append(i)
        totals = [0.0] * len(texts)
        found = score(self.model, pairs, batch_size=self.batch_size, share=False, progress=self.progress)
        for owner, likelihood in zip(owners, found, strict=True):
            totals[owner] += likelihood.nats
        return totals

    def generate_until(self, requests: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        """What the model writes after each context until a stop string, which is cut off."""
        self.coverage.look_at(context for context, _ in requests)
        texts = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for i, (_, options) in enumerate(requests):
            groups.setdefault(repr(sorted(options.items())), []).append(i)
        done = 0
        for members in groups.values():
            stop, length, sampling = self._options(requests[members[0]][1])
            room = self._block_size - length
            prompts = {}
            for i in members:
                tokens = self.tokenizer.encode(self.coverage.clean(requests[i][0])) or [self.start]
                prompts[i] = tokens[-room:] if room > 0 else tokens
            new = generate_together(
                self.model, [prompts[i] for i in members], sampling=sampling, max_new_tokens=length, stop=stop,
                seed=SEED, eot=self.tokenizer.eot, vocab_size=self.tokenizer.vocab_size, batch_size=self.batch_size,
            )  # fmt: skip
            for i, found in zip(members, new, strict=True):
                texts[i] = stop.cut(self.tokenizer.decode(found))
            done += len(members)
            if self.progress is not None:
                self.progress(done, len(requests))
        return texts

    @property
    def _block_size(self) -> int:
        return self.model.config.block_size

    def _options(self, options: dict[str, Any]) -> tuple[StopStrings, int, Sampling]:
        """What generation_kwargs of a task stand for: stop strings, new tokens at most, how they are drawn."""
        left = dict(options)
        until = left.pop("until", None) or []
        until = [until] if isinstance(until, str) else until
        lengths = [left.pop(name, None) for name in _LENGTHS]
        length = int(next((n for n in lengths if n is not None), MAX_NEW_TOKENS))
        temperature, do_sample = float(left.pop("temperature", None) or 0.0), left.pop("do_sample", None)
        sampled = do_sample if do_sample is not None else temperature > 0
        cuts = {name: left.pop(name) for name in ("top_k", "top_p") if name in left}
        if left:
            known = ", ".join(("until", "do_sample", "temperature", "top_k", "top_p", *_LENGTHS))
            raise UserError(f"{self.coverage.name}: generation_kwargs has {', '.join(left)} (possible: {known})")
        sampling = Sampling(temperature=(temperature or 1.0) if sampled else 0.0, **cuts)
        return StopStrings(self.tokenizer, [text for text in until if text]), length, sampling


def harness_model(requests: Requests) -> Any:
    """`requests` as an `lm_eval.api.model.LM`."""
    prepare_environment()
    from lm_eval.api.model import LM

    class GPTCoreLM(LM):
        def loglikelihood(self, requests_: list) -> list[tuple[float, bool]]:
            return requests.loglikelihood([request.args for request in requests_])

        def loglikelihood_rolling(self, requests_: list) -> list[float]:
            return requests.loglikelihood_rolling([request.args[0] for request in requests_])

        def generate_until(self, requests_: list) -> list[str]:
            return requests.generate_until([request.args for request in requests_])

    return GPTCoreLM()
