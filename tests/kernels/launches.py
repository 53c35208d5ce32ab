"""What launchers hand to Triton, without a GPU: kernels do not run, Triton's own binder specialises their arguments.

Results of launches are what memory held, so only calls that read no number on the host can be recorded.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from kernels import devices
from kernels.gate import Point


@dataclass(frozen=True)
class Launch:
    kernel: Any
    arch: int
    types: dict[str, str]  # of arguments that the compiled code takes
    constants: dict[str, Any]
    multiples: frozenset[str]  # arguments found to be multiples of 16
    options: Any  # of Triton's backend
    asked: dict[str, int]  # num_warps, num_stages
    guarded: tuple[torch.Tensor, ...]  # whose devices were made current, the last one inside

    @property
    def name(self) -> str:
        return f"{self.kernel.fn.__module__}.{self.kernel.fn.__name__}"

    @property
    def program(self) -> tuple:
        """Equal for launches of the same compiled code."""
        return self.name, str(self.types), str(self.constants), self.multiples, str(self.asked)

    def frontend(self) -> Any:
        """Triton's own representation of the kernel: an error where it is no program for these constants and types."""
        signature = {name: self.types.get(name, "constexpr") for name in self.kernel.arg_names}
        places = {name: (i,) for i, name in enumerate(self.kernel.arg_names)}
        source = ASTSource(
            self.kernel, signature, {places[name]: value for name, value in self.constants.items()},
            {places[name]: [["tt.divisibility", 16]] for name in self.multiples},
        )  # fmt: skip
        target = GPUTarget("cuda", self.arch, 32)
        backend, context = make_backend(target), ir.context()
        ir.load_dialects(context)
        backend.load_dialects(context)
        codegen = backend.get_codegen_implementation(self.options)
        return source.make_ir(target, self.options, codegen, backend.get_module_map(), context)

    def covered_by(self, point: Point) -> bool:
        """Whether a point of the gate is this code: the same constants and types, and no promise that was not kept."""
        same = (self.kernel, self.types, self.constants) == (point.kernel, dict(point.types), dict(point.constants))
        tile = all(point.launch[name] == value for name, value in self.asked.items())
        return same and tile and self.arch == point.arch and point.multiples <= self.multiples


@contextmanager
def recorded(arch: int = 90, multiprocessors: int = 132) -> Iterator[list[Launch]]:
    """Launches on a GPU of such an architecture, of calls whose tensors are on a CPU."""
    backend = make_backend(GPUTarget("cuda", arch, 32))
    found: list[Launch] = []
    guarded: list[torch.Tensor] = []
    binders: dict[JITFunction, Any] = {}

    def run(kernel, *args, grid, warmup, **named):
        if kernel not in binders:
            binders[kernel] = create_function_from_signature(kernel.signature, kernel.params, backend)
        bound, specialization, _ = binders[kernel](*args, **named)
        given = named | {"debug": False, "instrumentation_mode": ""}
        options, signature, constants, attrs = kernel._pack_args(backend, given, bound, specialization, None)
        names = kernel.arg_names
        found.append(Launch(
            kernel, arch, {name: kind for name, kind in signature.items() if kind != "constexpr"},
            {names[place[0]]: value for place, value in constants.items()},
            frozenset(names[place[0]] for place, facts in attrs.items() if facts), options,
            {name: named[name] for name in ("num_warps", "num_stages") if name in named}, tuple(guarded),
        ))  # fmt: skip

    @contextmanager
    def device_of(x):
        guarded.append(x)
        yield
        guarded.pop()

    with (
        mock.patch.object(JITFunction, "run", run), mock.patch.object(devices, "capability", lambda x: arch),
        mock.patch.object(devices, "multiprocessors", lambda x: multiprocessors),
        mock.patch.object(torch.cuda, "device_of", device_of),
    ):  # fmt: skip
        yield found
