"""How this process comes to a Ray cluster: whom it may trust, what it starts itself, and what a failure is called.

Who reaches a Ray cluster can run any program on it. A cluster that is started here listens on the loopback interface
only, without a dashboard, and asks for a token. One at another address is used with a token only (RAY_AUTH_MODE=token;
https://docs.ray.io/en/latest/ray-security/token-auth.html). A token does not encrypt the traffic.
"""

import importlib.metadata
import ipaddress
import logging
import os
import secrets
import socket
import sys
from pathlib import Path
from typing import Any

from gptcore.errors import RunError, UserError

OLDEST = (2, 52)  # the first Ray with token authentication
ADVICE = "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE on all nodes; `ray get-auth-token --generate` makes one"
CONNECT_S = 5.0
OBJECT_STORE_BYTES = 80 * 2**20  # about the least that Ray takes: a result is a few kilobytes


def connect(address: str | None) -> bool:
    """Connects this process, or starts a cluster; False where it was connected already, to that very cluster."""
    try:
        version = importlib.metadata.version("ray")
    except importlib.metadata.PackageNotFoundError:
        raise UserError("Ray is not installed: pip install 'gptcore[ray]'") from None
    if tuple(int(word) for word in version.split(".")[:2]) < OLDEST:
        raise UserError(f"Ray {version} has no token authentication: {'.'.join(map(str, OLDEST))} or later is needed")
    address = _running_here() if address == "auto" else address
    loopback = address is None or _is_loopback(_split(address)[0])
    token = _has_token()
    if not loopback and not token:
        raise UserError(f"the Ray cluster at {address} can be used with a token only.\n{ADVICE}.")
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        return _same(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "3")  # of a second each: for what fails, it will
    wanted = {}
    if loopback:
        wanted["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # or Ray uses the address of another interface instead
    if address is None or token:
        wanted["RAY_AUTH_MODE"] = "token"
    if address is None and not token:
        wanted["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    if "ray" in sys.modules and (late := [name for name in wanted if os.environ.get(name) != wanted[name]]):
        raise UserError(f"Ray was imported before {', '.join(late)} could be set: import it later, or set them")
    os.environ.update(wanted)
    if address is not None:
        _knock(address)
    _init(address)
    if not token and address is not None:
        _refuse_exposed()
    return True


def _init(address: str | None) -> None:
    import ray

    start: dict[str, Any] = {}
    if address is None:
        start = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    try:
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **start)
    except (ray.exceptions.RayError, OSError, RuntimeError, ValueError) as error:
        ray.shutdown()
        last: BaseException = error
        while last.__cause__ is not None:
            last = last.__cause__
        words = str(last).strip()
        if isinstance(last, ray.exceptions.AuthenticationError) or "AuthenticationError" in words:
            raise UserError(f"the Ray cluster at {address} does not accept this process's token.\n{ADVICE}.") from error
        words = words.splitlines()[-1] if "Traceback" in words else " ".join(words.split())
        where = f"use the Ray cluster at {address}" if address else "start a Ray cluster"
        raise RunError(f"cannot {where}: {words}") from error


def _refuse_exposed() -> None:
    """A cluster without a token may be used from its own machine alone; its address may have hidden that it is not."""
    import ray

    addresses = [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]
    if exposed := [address for address in addresses if not _is_loopback(address)]:
        ray.shutdown()
        raise UserError(f"the Ray cluster listens at {', '.join(exposed)} without a token.\n{ADVICE}.")


def _same(address: str | None) -> bool:
    here = sys.modules["ray"].get_runtime_context().gcs_address
    if address is None or _split(address) != _split(here):
        wanted = f"the cluster at {address}" if address else "one of its own"
        raise UserError(f"this process is connected to the Ray cluster at {here}, so it cannot use {wanted}")
    return False


def _running_here() -> str:
    """The cluster of which this machine is a node, as Ray looks for it."""
    note = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
    try:
        return os.environ.get("RAY_ADDRESS") or note.read_text().strip()
    except OSError:
        raise UserError(
            "no Ray cluster runs here: start one with `ray start --head`, or name no address to have one of its own"
        ) from None


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        raise UserError(f"{address!r} is no address of a Ray cluster: expected HOST:PORT or auto")
    return host.strip("[]"), int(port)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def _has_token() -> bool:
    """Whether there is a token that Ray would find, and the user has not switched tokens off."""
    named = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    found = named or (Path.home() / ".ray" / "auth_token").is_file()
    return found and os.environ.get("RAY_AUTH_MODE", "token") == "token"


def _knock(address: str) -> None:
    """Ray itself would try for a minute, and then end this process."""
    try:
        socket.create_connection(_split(address), CONNECT_S).close()
    except OSError as error:
        raise RunError(f"no Ray cluster answers at {address}: {error.strerror or error}") from error
