"""Where plaintext could leave memory on this machine, and how fast it decrypts."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from encpipe import aead, guard
from encpipe.checkup.finding import Finding, failed
from encpipe.errors import ConfigError
from encpipe.guard import Guard
from encpipe.machine import Machine, core_limit, cores, dumpable, lock_limit

SHM: Final = Path("/dev/shm")  # noqa: S108 - looked at, not written to
SHM_ENOUGH_BYTES: Final = 1 << 30
"""Less than this fills up with a few batches of each worker process; Docker gives 64 MB."""
SLOW_BYTES_PER_SECOND: Final = 500e6
"""AES-256-GCM without AES instructions is slower than this, and with them several times as fast."""


def check_machine(machine: Machine, env: Mapping[str, str]) -> Iterator[Finding]:
    """Memory first, then folders, then speed."""
    yield _check_core_dumps(machine)
    yield _check_guard()
    yield _check_debuggers(machine)
    yield _check_swap(machine)
    yield _check_locking()
    yield _check_shared_memory(machine)
    yield _check_temporary(machine)
    yield _check_caches(env)
    yield _check_speed(machine)
    yield Finding("cores", "ok", f"{cores()} of {os.cpu_count()} for this process")


def _check_core_dumps(machine: Machine) -> Finding:
    pattern, limit = machine.core_pattern(), core_limit()
    hint = "loaders of encpipe.torch forbid them; elsewhere: with encpipe.guard.hold(Guard()): ..."
    if pattern.startswith("|"):
        program = pattern[1:].split()[0]
        return Finding("core dumps", "note", f"go to {program}, whatever the limit (ulimit -c)", hint)
    if limit == 0:
        return Finding("core dumps", "ok", "off in this shell (ulimit -c is 0)")
    size = "of any size" if limit is None else f"of up to {limit} bytes"
    return Finding("core dumps", "note", f"on, {size}, to {pattern or 'an unknown place'}", hint)


def _check_guard() -> Finding:
    try:
        with guard.hold(Guard(warn_swap=False)):
            works = dumpable() == 0 and core_limit() == 0
    except ConfigError as error:
        return failed("guard", error)
    if works:
        return Finding("guard", "ok", "keeps keys and rows out of core dumps while it is held")
    return Finding("guard", "warn", "does nothing here: it knows Linux only")


def _check_debuggers(machine: Machine) -> Finding:
    scope = machine.ptrace_scope()
    if scope:
        return Finding("debuggers", "ok", f"kept from attaching (kernel.yama.ptrace_scope is {scope})")
    why = "no Yama here" if scope is None else "kernel.yama.ptrace_scope is 0"
    hint = "a guard keeps all but root's away; sysctl kernel.yama.ptrace_scope=1 does for every process"
    return Finding("debuggers", "note", f"programs of the same user may attach ({why})", hint)


def _check_swap(machine: Machine) -> Finding:
    areas, in_clear = machine.swaps(), machine.swaps_in_clear()
    if in_clear:
        hint = "swapoff -a, dm-crypt, or guard=Guard(lock_memory=True): keys and rows may reach that disk"
        return Finding("swap", "warn", f"on, in clear as far as can be told: {', '.join(in_clear)}", hint)
    if areas:
        return Finding("swap", "ok", f"{', '.join(areas)}: encrypted, in memory, or not for this process")
    return Finding("swap", "ok", "off")


def _check_locking() -> Finding:
    limit = lock_limit()
    if limit is None:
        return Finding("locked memory", "ok", "no limit: Guard(lock_memory=True) works")
    hint = "for Guard(lock_memory=True): ulimit -l unlimited, or LimitMEMLOCK=infinity"
    return Finding("locked memory", "note", f"at most {limit} bytes: too few for training", hint)


def _check_shared_memory(machine: Machine) -> Finding:
    """Only worker processes of a DataLoader use it, and they put decrypted tensors there."""
    try:
        status = os.statvfs(SHM)
    except OSError:
        return Finding("shared memory", "note", f"no {SHM}: DataLoader workers need it, Loader does not")
    free, kind = status.f_bavail * status.f_frsize, machine.file_system(SHM)
    found = f"{SHM} has {free >> 20:,} MiB free; DataLoader workers put decrypted tensors there"
    hint = "train with encpipe.torch.Loader, which needs no worker processes"
    if kind not in ("tmpfs", ""):
        return Finding("shared memory", "warn", f"{found}, and it is on a disk ({kind})", hint)
    if free < SHM_ENOUGH_BYTES:
        return Finding("shared memory", "warn", found, f"{hint}; or docker --shm-size, --ipc=host")
    return Finding("shared memory", "note", found, hint)


def _check_temporary(machine: Machine) -> Finding:
    try:
        folder = Path(tempfile.gettempdir()).resolve()
    except FileNotFoundError:
        return Finding("temporary files", "note", "no folder for them; encpipe needs none")
    kind = machine.file_system(folder) or "unknown"
    return Finding("temporary files", "ok", f"{folder} ({kind}); encpipe puts no rows and no keys there")


def _check_caches(env: Mapping[str, str]) -> Finding:
    home = Path(env.get("XDG_CACHE_HOME") or Path(env.get("HOME", "/"), ".cache"))
    places = (env.get("HF_HOME") or home / "huggingface", env.get("TORCH_HOME") or home / "torch")
    found = f"{places[0]}, {places[1]}; encpipe writes to neither"
    hint = "Hugging Face datasets made of decrypted rows are written there in clear: keep_in_memory=True"
    return Finding("caches", "note", found, hint)


def _check_speed(machine: Machine) -> Finding:
    speed, flags = aead.open_speed(), machine.cpu_flags()
    found = f"AES-256-GCM at {speed / 1e9:.1f} GB/s on one core"
    if speed < SLOW_BYTES_PER_SECOND or (flags and "aes" not in flags):
        hint = "a virtual machine may hide the processor's AES instructions: let them through"
        return Finding("decryption", "warn", f"{found}, without AES instructions as it seems", hint)
    return Finding("decryption", "ok", f"{found}, with AES instructions" if flags else found)
