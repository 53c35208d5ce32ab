"""Training: from a configuration to a run folder.

A step is a pure function of the state and its number: batches and random numbers are derived from (seed, step), so a
run that is killed and continued gives the same bits as one that is not. The order within a step is: update, log,
evaluate, checkpoint.
"""

import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .checkpoint import Restored, save
from .config import Config, identity
from .constants import ConstantsLog
from .data import Dataset, Prefetcher, eval_batches, find_dataset, open_dataset, tokens_of, train_batch
from .distill import distilling, load_teacher
from .distributed import Parallel, World, world
from .errors import CheckpointError, RunError, UserError
from .hostmemory import keep_freed_memory
from .interrupt import Interrupt
from .kernel_choice import described, recorded, use_kernels
from .losses import is_plain, make_objective
from .model import GPT
from .optim import make_optimizer, set_rate, settings_of
from .prepare import ensure_prepared
from .quantize import set_strength
from .runfolder import Start, begin, default_folder, open_folder
from .runlog import Board, Metrics, Row, RunFile, SampleLog, Screen
from .sample import continue_text
from .schedules import learning_rate, quant_level
from .table import TABLE, export_table, import_table, prepare_export


@dataclass(frozen=True)
class RunResult:
    """How a run ended. `status`: finished, stopped (early stop or budget), paused, interrupted, diverged."""

    folder: Path
    status: str
    step: int
    best_loss: float | None
    best_step: int | None
    reason: str = ""

    @property
    def exit_code(self) -> int:
        return {"finished": 0, "stopped": 0, "paused": 0, "diverged": 1, "interrupted": 130}[self.status]


@dataclass
class Progress:
    """Everything about the run, besides tensors, that the next step depends on."""

    step: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0
    best_loss: float | None = None
    best_step: int | None = None
    stale_evals: int = 0


def train(
    config: Config, *, name: str = "run", quiet: bool = False, weights: dict[str, torch.Tensor] | None = None
) -> RunResult:
    """Trains until max_iters, a budget, an interrupt or divergence; resumes what the run folder already holds.

    `weights`: the state to begin with instead of random weights, where nothing is resumed.
    UserError for what cannot be trained as asked, DataError and CheckpointError for files that are missing or damaged.
    """
    run_identity = identity(config)
    with world(config.train.device) as where:
        if where.is_main:
            ensure_prepared(config.data.dataset)
        where.barrier()
        dataset = open_dataset(find_dataset(config.data.dataset))
        folder = default_folder(config, name, run_identity)
        try:
            with open_folder(folder, where):
                start = begin(config, folder, run_identity, dataset.vocab_size, where, weights)
                return Trainer(start, dataset, folder, run_identity, name, where, quiet).run()
        except OSError as error:
            raise RunError(
                f"cannot write into {folder}: {error.strerror or error}. Every checkpoint there is complete; "
                "make room and run the same command again"
            ) from error


class Trainer:
    """One run from its start or its checkpoint to its end. `train` makes one; a benchmark may drive it step by step."""

    def __init__(self, start: Start, dataset: Dataset, folder: Path, run_id: str, name: str, where: World, quiet: bool):
        self.config = start.config
        self.dataset, self.folder, self.where, self.identity = dataset, folder, where, run_id
        t, m = self.config.train, self.config.model
        assert m.vocab_size is not None
        dataset.check(m.vocab_size, m.block_size)
        self.tokenizer = dataset.tokenizer() if t.sample_tokens else None
        if self.tokenizer is not None:
            self.tokenizer.encode(t.sample_start)  # a prompt that the vocabulary lacks is found now, not at step 250
        self.sequences = t.batch_size * t.gradient_accumulation_steps
        if self.sequences % where.size:
            raise UserError(f"{self.sequences} sequences a step cannot be shared equally by {where.size} processes")
        local = self.sequences // where.size
        self.micro_size = min(t.batch_size, local)
        if local % self.micro_size:
            raise UserError(f"{local} sequences a process are not a multiple of batch_size {t.batch_size}")
        if where.device.type == "cpu":
            keep_freed_memory()
        torch.manual_seed(t.seed)
        model = GPT(m)
        if start.weights is not None:
            model.load_state_dict(start.weights)
        import_table(model, t, fresh=start.restored is None)
        if t.export_wte_npy is not None:
            prepare_export(Path(t.export_wte_npy))
        if t.quant_scheduler != "static" and not any(name.endswith("strength") for name, _ in model.named_buffers()):
            raise UserError(f"train.quant_scheduler {t.quant_scheduler}: nothing in this model rounds")
        self.teacher = load_teacher(t.distill_from, m, dataset.meta, where.device) if t.distill_from else None
        model.objective = distilling(t, self.teacher) if self.teacher is not None else make_objective(t)
        self.kernels = use_kernels(model, t.kernel_of, where.device, getattr(torch, t.dtype))
        blocks: Any = model.transformer.h
        for block in blocks:
            block.mlp.recompute = t.kernels.recompute_mlp
        self.parallel = Parallel(model, where, t.parallel, t.compile)
        self.model = self.parallel.model
        self.optimizer = make_optimizer(self.model, t)
        self.scaler = torch.amp.GradScaler(where.device.type, enabled=t.dtype == "float16")
        self.progress = Progress()
        self.screen = Screen(t.max_iters, quiet or not where.is_main)
        for message in start.messages:
            self.screen.say(message)
        self.screen.say("kernels: " + described(self.kernels))
        tokenizer = "tiktoken:gpt2" if dataset.meta is None else dataset.meta.get("tokenizer")
        if start.weights is not None and tokenizer != "tiktoken:gpt2":
            self.screen.say(
                f"warning: the weights know GPT-2's tokens, but {dataset.folder} holds those of {tokenizer}"
            )
        if start.restored is not None:
            self._restore(start.restored)
        self.diverged_above = t.diverge_factor * math.log(m.vocab_size)
        # Another objective is on another scale: there the validation loss has to tell, unless nothing finite is left.
        self.train_loss_limit = self.diverged_above if is_plain(t) else sys.float_info.max
        self.run_file = RunFile(
            folder,
            {
                "status": "running", "identity": run_id, "name": name, "dataset": self.config.data.dataset,
                "vocab_size": m.vocab_size, "parameters": self.model.parameter_count(), "max_iters": t.max_iters,
                "world_size": where.size, "device": str(where.device), "torch": torch.__version__,
                "kernels": recorded(self.kernels),
                "data_files": tokens_of(dataset.meta)["files"],
                "resumed_at": self.progress.step if start.restored else None, "folder": str(folder),
            },
        )  # fmt: skip

    # -- state ---------------------------------------------------------------------------------------------------

    def _restore(self, restored: Restored) -> None:
        payload = restored.payload
        if "optimizer" not in payload:
            raise CheckpointError(f"{restored.path} holds weights only (a best.pt?): it can be sampled, not resumed")
        if tokens_of(payload["tokenizer"]) != tokens_of(self.dataset.meta):
            raise UserError(
                f"{self.dataset.folder} does not hold the tokens that {self.folder} was trained on: it was prepared "
                "anew from another text or tokenizer. Bring them back, or choose another --out_dir"
            )
        self._check_continuity(payload)
        settings = settings_of(self.optimizer)
        self.parallel.load(self.optimizer, payload["model"], payload["optimizer"])
        for group, asked in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(asked)  # what was changed for this run holds, not what the checkpoint ran with
        self.scaler.load_state_dict(payload["scaler"])
        self.progress = Progress(**payload["progress"])
        self.screen.say(f"resuming {self.folder} at step {self.progress.step}")

    def _check_continuity(self, payload: dict[str, Any]) -> None:
        """What the state of an optimizer cannot survive, and what makes another run of this one."""
        t = self.config.train
        before = payload.get("optimizer_kind", "adamw")
        if before != t.optimizer:
            raise UserError(f"{self.folder} was trained with {before}: its state is of no use to {t.optimizer}")
        trained = {name for group in payload["optimizer"]["param_groups"] for name in group["params"]}
        if (TABLE in trained) == t.import_wte_freeze:
            raise UserError(f"{self.folder}: train.import_wte_freeze cannot change within a run")
        if self.teacher is not None and payload.get("teacher_step", self.teacher.step) != self.teacher.step:
            self.screen.say(f"warning: the teacher is now that of step {self.teacher.step}, another than before")

    def _checkpoint(self, *, best: bool) -> None:
        model_state, optimizer_state = self.parallel.state(self.optimizer)
        if not self.where.is_main:
            return
        payload = {
            "model_config": self.config.model.model_dump(mode="json"), "model": model_state,
            "optimizer": optimizer_state, "scaler": self.scaler.state_dict(), "progress": vars(self.progress),
            "step": self.progress.step, "tokenizer": self.dataset.meta, "identity": self.identity,
            "optimizer_kind": self.config.train.optimizer,
        }  # fmt: skip
        if self.teacher is not None:
            payload["teacher_step"] = self.teacher.step
        save(self.folder, payload, best=best)
        if self.config.train.export_wte_npy is not None:
            export_table(Path(self.config.train.export_wte_npy), model_state[TABLE])

    def _describe(self, **changes: Any) -> None:
        if self.where.is_main:
            p = self.progress
            self.run_file.update(
                step=p.step, tokens=p.tokens, best_loss=p.best_loss, best_step=p.best_step,
                elapsed_s=round(p.elapsed_s, 3), **changes,
            )  # fmt: skip

    def _show_sample(self) -> None:
        """Prints a sample and keeps it in samples.txt; sharded weights need every process to take part."""
        t = self.config.train
        if self.tokenizer is None or not self.progress.step or not (self.where.is_main or self.parallel.mode == "fsdp"):
            return
        drawn = continue_text(
            self.model, self.tokenizer, t.sample_start, max_new_tokens=t.sample_tokens, seed=t.seed, temperature=0.8
        )
        if self.where.is_main:
            self.screen.say(self.samples.write(self.progress.step, drawn.texts[0]))

    # -- one step ------------------------------------------------------------------------------------------------

    def _batch(self, step: int):
        t = self.config.train
        return train_batch(
            self.dataset.train, seed=t.seed, step=step, sequences=self.sequences,
            block_size=self.config.model.block_size, rank=self.where.rank, world=self.where.size,
        )  # fmt: skip

    def _autocast(self):
        dtype = getattr(torch, self.config.train.dtype)
        return torch.autocast(self.where.device.type, dtype=dtype, enabled=dtype != torch.float32)

    def _round(self, level: float) -> None:
        """How strongly the model rounds from now on; each update and each evaluation say it for themselves."""
        if self.config.train.quant_scheduler != "static":
            set_strength(self.model, level)

    def _update(self, x: torch.Tensor, y: torch.Tensor, rate: float) -> tuple[torch.Tensor, torch.Tensor]:
        """One optimizer step on this process's sequences; returns (their mean loss, gradient norm of all)."""
        t = self.config.train
        set_rate(self.optimizer, rate)
        self._round(quant_level(t, self.progress.step))
        # Dropout depends on the step, not on what ran before it: nothing to save, nothing to restore.
        seed = ((t.seed * 1_000_003 + self.progress.step) * 1009 + self.where.rank) % 2**63
        torch.default_generator.manual_seed(seed)  # 1 us; torch.manual_seed takes 96 us
        if self.where.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        xs, ys = x.split(self.micro_size), y.split(self.micro_size)
        total = torch.zeros((), device=self.where.device)
        for i, (xi, yi) in enumerate(zip(xs, ys, strict=True)):
            with self.parallel.accumulate(i < len(xs) - 1):
                with self._autocast():
                    _, loss = self.parallel.forward(xi, yi)
                self.scaler.scale(loss / len(xs)).backward()
            total += loss.detach() / len(xs)
        self.scaler.unscale_(self.optimizer)
        limit = t.grad_clip if t.grad_clip > 0 else math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return total, norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    @torch.no_grad()
    def evaluate(self) -> float:
        """Mean cross entropy in nats over the fixed validation batches, each shared by the processes."""
        t, w = self.config.train, self.where
        self._round(1.0)
        self.model.eval()
        total, count = torch.zeros((), dtype=torch.float64), 0
        batches = eval_batches(
            self.dataset.val, batches=t.eval_iters, batch_size=t.batch_size, block_size=self.config.model.block_size
        )
        for x, y in batches:
            if len(x) % w.size == 0:
                x, y = x.chunk(w.size)[w.rank], y.chunk(w.size)[w.rank]
            with self._autocast():
                _, loss = self.parallel.forward(x.to(w.device), y.to(w.device))
            total += w.mean(loss).double().cpu()
            count += 1
        self.model.train()
        return (total / count).item()

    # -- the loop ------------------------------------------------------------------------------------------------

    def run(self) -> RunResult:
        t, p = self.config.train, self.progress
        resume_step = p.step if self.run_file.content["resumed_at"] is not None else None
        metrics = Metrics(self.folder, resume_step) if self.where.is_main else None
        board = Board(self.folder, t.tensorboard and self.where.is_main, resume_step)
        if self.where.is_main:
            self.samples = SampleLog(self.folder, resume_step)
        self.constants = ConstantsLog(self.model, self.folder, resume_step, is_main=self.where.is_main)
        self._describe()
        self.model.train()
        began = time.perf_counter() - p.elapsed_s
        ended: tuple[str, str] | None = None
        try:
            with Interrupt() as interrupt, Prefetcher(self._batch, p.step, self.where.device) as batches:
                if resume_step is None:
                    ended = self._close_step(None, None, t.learning_rate, 0.0, metrics, board)
                else:  # killed after its last checkpoint, it must not go on
                    ended = self._ended() or self._paused(None)
                while ended is None and p.step < t.max_iters:
                    step_began = time.perf_counter()
                    rate = learning_rate(t, p.step)
                    loss, norm = self._update(*next(batches), rate)
                    p.step += 1
                    p.tokens += self.sequences * self.config.model.block_size
                    seconds = time.perf_counter() - step_began
                    p.elapsed_s = time.perf_counter() - began
                    ended = self._close_step(loss, norm, rate, seconds, metrics, board)
                    if ended is None and self._must_stop(interrupt.requested):
                        ended = self._interrupt(loss)
                    ended = ended or self._paused(loss)
        except KeyboardInterrupt:
            self._describe(status="interrupted", reason="stopped at once; resumes from the last checkpoint")
            raise
        except OSError:  # a full disk, say: no use writing that onto it
            raise
        except Exception as error:
            self._describe(status="failed", reason=f"{type(error).__name__}: {error}".splitlines()[0])
            raise
        finally:
            self.screen.close()
            board.close()
            if metrics is not None:
                metrics.close()
            self.constants.close()
        status, reason = ended or ("finished", "")
        self._describe(status=status, reason=reason)
        return RunResult(self.folder, status, p.step, p.best_loss, p.best_step, reason)

    def _interrupt(self, loss: torch.Tensor) -> tuple[str, str]:
        """Saves the state, unless it is not worth keeping."""
        value = self.where.mean(loss).item()
        if not value <= self.train_loss_limit:
            return self._diverged(f"training loss {value:.4g} at step {self.progress.step}", self.train_loss_limit)
        self._checkpoint(best=False)
        return "interrupted", "asked to stop"

    def _paused(self, loss: torch.Tensor | None) -> tuple[str, str] | None:
        """Where the run is to pause, with its state saved: nothing is evaluated that would not be anyway."""
        t, p = self.config.train, self.progress
        if t.pause_at is None or p.step < t.pause_at or p.step >= t.max_iters:
            return None
        status, reason = self._interrupt(loss) if loss is not None else ("interrupted", "")
        return ("paused", f"at step {p.step}, as train.pause_at says") if status == "interrupted" else (status, reason)

    def _must_stop(self, requested: bool) -> bool:
        """All processes agree, at the cost of one small exchange every few steps when there are several."""
        if self.where.size > 1 and self.progress.step % self.config.train.log_interval:
            return False
        return self.where.largest(float(requested)) > 0

    def _close_step(
        self, loss: torch.Tensor | None, norm: torch.Tensor | None, rate: float, seconds: float,
        metrics: Metrics | None, board: Board,
    ) -> tuple[str, str] | None:  # fmt: skip
        """Logs, evaluates and saves as due; (status, reason) when the run ends here."""
        t, p = self.config.train, self.progress
        evaluate = p.step % t.eval_interval == 0 or p.step == t.max_iters or self._over_budget() is not None
        log = evaluate or p.step % t.log_interval == 0
        # Alone on a CPU a look at the loss is free; elsewhere it waits for the device or for the others.
        look = log or (self.where.size == 1 and self.where.device.type == "cpu")
        train_loss = self.where.mean(loss).item() if loss is not None and look else None
        if train_loss is not None and not train_loss <= self.train_loss_limit:
            return self._diverged(f"training loss {train_loss:.4g} at step {p.step}", self.train_loss_limit)
        if not log:
            return None
        val_loss = self.evaluate() if evaluate else None
        if val_loss is not None and not val_loss <= self.diverged_above:
            return self._diverged(f"validation loss {val_loss:.4g} at step {p.step}", self.diverged_above)
        row = Row(
            p.step, p.tokens, train_loss, val_loss, rate, norm.item() if norm is not None else None,
            round(seconds, 6), round(p.elapsed_s, 3),
        )  # fmt: skip
        if metrics is not None:
            metrics.write(row)
            board.write(row)
        self.screen.step(p.step, p.tokens, train_loss if train_loss is not None else val_loss or 0.0, val_loss)
        if val_loss is None:
            return None
        self.constants.write(p.step)
        improved = p.best_loss is None or val_loss < p.best_loss
        if improved:
            p.best_loss, p.best_step, p.stale_evals = val_loss, p.step, 0
        else:
            p.stale_evals += 1
        self._checkpoint(best=improved)
        self._show_sample()
        self._describe(last_val_loss=val_loss, last_train_loss=train_loss)
        return self._ended()

    def _ended(self) -> tuple[str, str] | None:
        """(status, reason) when a budget or the patience is used up."""
        t, p = self.config.train, self.progress
        over_budget = self._over_budget()
        if over_budget is not None:
            return "stopped", over_budget
        if t.patience and p.stale_evals >= t.patience and p.step < t.max_iters:
            return "stopped", f"no better loss in {t.patience} evaluations"
        return None

    def _over_budget(self) -> str | None:
        t, p = self.config.train, self.progress
        if t.max_tokens is not None and p.tokens >= t.max_tokens:
            return f"{p.tokens:,} tokens reach max_tokens"
        if t.max_seconds is not None and self.where.largest(p.elapsed_s) >= t.max_seconds:
            return f"{p.elapsed_s:.0f} s reach max_seconds"
        return None

    def _diverged(self, what: str, above: float) -> tuple[str, str]:
        limit = f"limit {above:.3g}" + (" = diverge_factor x ln(vocabulary)" if above == self.diverged_above else "")
        kept = "the last good checkpoint is kept" if self.progress.best_step is not None else "there is no checkpoint"
        return "diverged", f"{what} ({limit}); {kept}, try a smaller learning_rate"
