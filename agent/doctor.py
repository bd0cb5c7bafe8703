"""Checks whether a run can work here: each part is actually used, and each problem comes with a remedy."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from agent.backends import BACKENDS, IN_PROCESS
from agent.config import RunConfig
from agent.errors import AgentError
from agent.events import EXIT_CODES, Outcome
from agent.lines import seconds
from sandbox.errors import SandboxError, WorktreeError

GIT_AT_LEAST = (2, 31)  # rev-parse --path-format
TUNED = frozenset(name for name in IN_PROCESS if BACKENDS[name].kernels in {"auto", "triton"})
FIX_CODE = EXIT_CODES[Outcome.INTERNAL]
SANDBOX_CODE = EXIT_CODES[Outcome.SANDBOX]
ENDPOINT_CODE = EXIT_CODES[Outcome.ENDPOINT]


@dataclass(frozen=True, slots=True)
class Finding:
    """The finding for one part. ``exit_code`` is that of a run that fails because of it; 0 if the part works."""

    subject: str
    detail: str
    exit_code: int = 0

    @property
    def works(self) -> bool:
        """Whether a run can rely on it."""
        return self.exit_code == 0


def examine(config: RunConfig) -> Iterator[Finding]:
    """Yield a finding for each part, as it is known."""
    yield python()
    yield git()
    yield engine(config)
    yield container(config)
    yield vocabulary(config)
    if config.wire in {"scripted", *IN_PROCESS} or (config.endpoint is None and config.script is not None):
        if config.wire in TUNED:
            yield from kernels(config)
        yield model(config)
    else:
        yield from endpoint(config)


def python() -> Finding:
    """The interpreter that the agent runs in."""
    return Finding("python", f"{sys.version.split()[0]} at {sys.executable}")


def git(run: Callable[..., subprocess.CompletedProcess[str]] = subprocess.run) -> Finding:
    """The git program on PATH, and whether it is new enough."""
    wanted = ".".join(map(str, GIT_AT_LEAST))
    try:
        said = run(["git", "--version"], capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("git", f"git does not start ({error}); install it: apt-get install git", FIX_CODE)
    found = re.search(r"(\d+)\.(\d+)", said)
    if found is None or (int(found[1]), int(found[2])) < GIT_AT_LEAST:
        return Finding("git", f"{said} is too old; {wanted} or newer is needed", FIX_CODE)
    return Finding("git", said)


def engine(config: RunConfig) -> Finding:
    """The Docker engine."""
    if config.sandbox == "none":
        return Finding("docker", "not used: --sandbox none lets commands run on this machine, unprotected")
    from sandbox import docker

    try:
        client = docker.engine(timeout_s=10)
    except SandboxError as error:
        return Finding("docker", str(error), SANDBOX_CODE)
    try:
        version = client.version()
    finally:
        client.close()
    return Finding("docker", f"engine {version.get('Version')}, API {version.get('ApiVersion')}")


def container(config: RunConfig) -> Finding:
    """A sandbox from the configured image: started with a repository of one file, used for one command, and removed."""
    from sandbox import plumbing, scratch
    from sandbox import snapshot as snapshots
    from sandbox.docker import Limits
    from sandbox.open import SandboxOptions, open_sandbox

    subject = "sandbox"
    limits = Limits(config.memory_bytes, config.disk_bytes, config.pids, config.cpus, config.network == "on")
    options = SandboxOptions(f"doctor-{os.getpid()}", config.sandbox, config.image, limits)
    with scratch.folder("doctor") as folder:
        repository = folder / "repository"
        repository.mkdir()
        (repository / "file").write_text("text\n", encoding="utf-8")
        try:
            plumbing.run(["init", "--quiet"], repository)
            start_s = time.monotonic()
            sandbox = open_sandbox(options, snapshots.take(repository, folder / "state"))
            up_s = time.monotonic()
            try:
                done = sandbox.exec(["cat", "file"], timeout_s=30)
            finally:
                command_s = time.monotonic()
                sandbox.close()
        except (SandboxError, WorktreeError) as error:
            return Finding(subject, str(error), SANDBOX_CODE)
    if done.output != b"text\n":
        return Finding(subject, f"a command printed {done.output[:200]!r}, not the contents of the file", SANDBOX_CODE)
    image = config.image or "the default image"
    return Finding(subject, f"{image} is up in {seconds(up_s - start_s)}, a command takes {seconds(command_s - up_s)}")


def vocabulary(config: RunConfig) -> Finding:
    """The harmony vocabulary, which raw wires need; it comes with the package, so this needs no network."""
    from agent.harmony.vocabulary import load_encoding

    try:
        load_encoding(config.cache_dir)
    except AgentError as error:
        return Finding("vocabulary", str(error), FIX_CODE)
    return Finding("vocabulary", f"complete, in {config.cache_dir}")


def endpoint(config: RunConfig) -> Iterator[Finding]:
    """The endpoint that a run would use, tested in detail. A weakness is not a failure, but comes with a remedy."""
    from agent.model.probe import probe

    for seen in probe(config):
        code = ENDPOINT_CODE if seen.good is False and seen.subject in {"endpoint", "wire"} else 0
        weak = "weak: " if seen.good is False and not code else ""
        yield Finding(seen.subject, weak + "; ".join(filter(None, [seen.seen, seen.remedy])), code)


def kernels(config: RunConfig) -> Iterator[Finding]:
    """The kernel sizes of the bundled engine, if there is a GPU for which they are chosen."""
    from agent.model.local import sizes_here

    try:
        sizes = sizes_here(config.model or "", config.cache_dir)
    except AgentError as error:
        yield Finding("kernels", str(error), error.exit_code)
        return
    if sizes is not None:
        yield Finding("kernels", f"sizes: {sizes}")


def model(config: RunConfig) -> Finding:
    """The model that a run would use, and the wire."""
    from agent.model.open import open_model

    said: list[str] = []
    try:
        found = open_model(config, said.append)
    except AgentError as error:
        return Finding("model", " ".join([*said, str(error)]), error.exit_code)
    try:
        window = f"a window of {found.context_tokens} tokens" if found.context_tokens else "a window of unknown size"
        return Finding("model", "; ".join([*said, f"{found.name}, {window}"]))
    finally:
        found.close()
