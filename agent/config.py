"""The configuration of a run: defaults ← the user's file ← the repository's agent.toml ← the environment ← flags.

This is the only reader of the environment within ``agent``. Every value remembers where it came from, and unknown keys
fail by name. A repository may not configure the user's machine, keys and endpoint: keys marked *personal* are refused in
``agent.toml``, because the repository is untrusted.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any

from agent.backends import BACKENDS
from agent.errors import ConfigError
from agent.rules import GIB, Rule, checked, from_text

APP = "gpt-oss-agent"
REPOSITORY_FILE = "agent.toml"
MAX_FILE_BYTES = 1 << 20

# Variables with a name of their own; every other key K is AGENT_K.
SPECIAL_VARIABLES = {
    "OPENAI_BASE_URL": "endpoint",
    "OPENAI_API_KEY": "api_key",
    "EXA_API_KEY": "exa_api_key",
    "YDC_API_KEY": "youcom_api_key",
}
# AGENT_ variables that are not keys of a run.
OTHER_VARIABLES = ("debug", "config")


def _rule(rule: Rule) -> Mapping[str, Rule]:
    return {"rule": rule}


def _state_dir() -> Path:
    return base_dir(os.environ, "XDG_STATE_HOME", ".local/state") / "runs"


def _cache_dir() -> Path:
    return base_dir(os.environ, "XDG_CACHE_HOME", ".cache")


def base_dir(environ: Mapping[str, str], variable: str, fallback: str) -> Path:
    """Our folder below an XDG base directory; a relative value is ignored, as the XDG specification demands."""
    named = environ.get(variable, "")
    base = Path(named) if named.startswith("/") else Path(environ.get("HOME") or Path.home()) / fallback
    return base / APP


@dataclass(frozen=True, slots=True)
class RunConfig:
    """The configuration of one run. Units are in the names; ``api_key`` is never printed, logged or passed into a sandbox."""

    endpoint: str | None = field(
        default=None,
        metadata=_rule(Rule("url", "Base URL of the model server, including /v1.", optional=True, personal=True)),
    )
    model: str | None = field(
        default=None,
        metadata=_rule(
            Rule("text", "Name of the model at the endpoint, or the folder of a checkpoint.", optional=True)
        ),
    )
    api_key: str | None = field(
        default=None,
        repr=False,
        metadata=_rule(
            Rule(
                "text", "API key for the endpoint; never printed or logged.", optional=True, personal=True, secret=True
            )
        ),
    )
    wire: str = field(
        default="auto",
        metadata=_rule(
            Rule(
                "choice",
                "Backend that answers; auto takes the best one available.",
                choices=tuple(BACKENDS),
                personal=True,
            )
        ),
    )
    script: Path | None = field(
        default=None,
        metadata=_rule(
            Rule("path", "Script, or log of a run, that the scripted backend replays.", optional=True, personal=True)
        ),
    )
    effort: str = field(
        default="medium",
        metadata=_rule(Rule("choice", "Reasoning effort.", choices=("low", "medium", "high"))),
    )
    temperature: float = field(default=1.0, metadata=_rule(Rule("number", "Sampling temperature.", low=0, high=2)))
    top_p: float = field(default=1.0, metadata=_rule(Rule("number", "Nucleus sampling threshold.", low=0, high=1)))
    seed: int | None = field(
        default=None, metadata=_rule(Rule("integer", "Random seed for sampling.", low=0, high=2**63 - 1, optional=True))
    )
    max_turns: int = field(
        default=200, metadata=_rule(Rule("integer", "Maximum number of model answers in a run.", low=1))
    )
    max_tokens: int | None = field(
        default=None,
        metadata=_rule(Rule("integer", "Maximum number of sampled tokens in a run.", low=1, optional=True)),
    )
    max_answer_tokens: int = field(
        default=32768, metadata=_rule(Rule("integer", "Maximum number of sampled tokens in one answer.", low=16))
    )
    timeout_s: float = field(default=3600.0, metadata=_rule(Rule("number", "Time limit for a run, in seconds.", low=1)))
    command_timeout_s: float = field(
        default=300.0, metadata=_rule(Rule("number", "Time limit for one command of the model, in seconds.", low=0.1))
    )
    silence_timeout_s: float = field(
        default=120.0, metadata=_rule(Rule("number", "How long the endpoint may send nothing, in seconds.", low=0.1))
    )
    endpoint_timeout_s: float = field(
        default=60.0, metadata=_rule(Rule("number", "How long to retry when the endpoint fails, in seconds.", low=0))
    )
    context_tokens: int | None = field(
        default=None,
        metadata=_rule(
            Rule(
                "integer",
                "Context window of the model in tokens, if the endpoint does not say.",
                low=1024,
                optional=True,
            )
        ),
    )
    tools: str = field(
        default="trained",
        metadata=_rule(
            Rule(
                "choice", "Tool names: those gpt-oss was trained with, or generic ones.", choices=("trained", "generic")
            )
        ),
    )
    python: str = field(
        default="stateful",
        metadata=_rule(
            Rule("choice", "Whether the python tool keeps variables between calls.", choices=("stateful", "stateless"))
        ),
    )
    constrain: str = field(
        default="off",
        metadata=_rule(
            Rule(
                "choice",
                "Whether the bundled engine constrains tool calls to their schemas while sampling.",
                choices=("off", "calls"),
            )
        ),
    )
    browser: str = field(
        default="off",
        metadata=_rule(
            Rule(
                "choice",
                "Web search for the model, and the service behind it; auto takes the one with a key.",
                choices=("off", "auto", "exa", "youcom"),
                personal=True,
            )
        ),
    )
    browser_url: str | None = field(
        default=None,
        metadata=_rule(
            Rule("url", "Base URL of the search service, if it is behind a proxy.", optional=True, personal=True)
        ),
    )
    exa_api_key: str | None = field(
        default=None,
        repr=False,
        metadata=_rule(
            Rule("text", "API key for exa.ai; never printed or logged.", optional=True, personal=True, secret=True)
        ),
    )
    youcom_api_key: str | None = field(
        default=None,
        repr=False,
        metadata=_rule(
            Rule("text", "API key for you.com; never printed or logged.", optional=True, personal=True, secret=True)
        ),
    )
    sandbox: str = field(
        default="docker",
        metadata=_rule(
            Rule(
                "choice",
                "Where the model's commands run; none is this machine, unprotected.",
                choices=("docker", "none"),
                personal=True,
            )
        ),
    )
    image: str | None = field(
        default=None,
        metadata=_rule(Rule("text", "Container image, or host for the programs of this machine.", optional=True)),
    )
    network: str = field(
        default="none",
        metadata=_rule(
            Rule("choice", "Whether the container has network access.", choices=("none", "on"), personal=True)
        ),
    )
    memory_bytes: int = field(
        default=4 * GIB, metadata=_rule(Rule("size", "Memory limit of the container.", low=64 << 20, personal=True))
    )
    pids: int = field(
        default=512, metadata=_rule(Rule("integer", "Limit on processes in the container.", low=16, personal=True))
    )
    cpus: float | None = field(
        default=None,
        metadata=_rule(
            Rule("number", "CPU limit of the container (default: all CPUs).", low=0.1, optional=True, personal=True)
        ),
    )
    disk_bytes: int | None = field(
        default=None,
        metadata=_rule(
            Rule(
                "size",
                "Size limit of the workspace (default: half the memory); on a volume if memory cannot hold it.",
                low=16 << 20,
                optional=True,
                personal=True,
            )
        ),
    )
    price_input: float | None = field(
        default=None,
        metadata=_rule(
            Rule(
                "number",
                "Price of a million input tokens, in your currency; reports then show costs.",
                low=0,
                optional=True,
                personal=True,
            )
        ),
    )
    price_cached: float | None = field(
        default=None,
        metadata=_rule(
            Rule(
                "number",
                "Price of a million cached input tokens (default: price_input).",
                low=0,
                optional=True,
                personal=True,
            )
        ),
    )
    price_output: float | None = field(
        default=None,
        metadata=_rule(Rule("number", "Price of a million output tokens.", low=0, optional=True, personal=True)),
    )
    otel: bool = field(
        default=False,
        metadata=_rule(
            Rule("flag", "Export each run as an OpenTelemetry trace; the OTEL_ variables say where to.", personal=True)
        ),
    )
    otel_content: bool = field(
        default=False,
        metadata=_rule(Rule("flag", "Include what was said and printed in traces.", personal=True)),
    )
    policy: str = field(
        default="person",
        metadata=_rule(
            Rule(
                "choice",
                "Who writes the task: you, or (ci) anybody who can write to the issue tracker.",
                choices=("person", "ci"),
                personal=True,
            )
        ),
    )
    trusted_commit: str | None = field(
        default=None,
        metadata=_rule(
            Rule(
                "text",
                "Commit to read AGENTS.md and agent.toml from under --policy ci (default: HEAD).",
                optional=True,
                personal=True,
            )
        ),
    )
    include_uncommitted: bool = field(
        default=True, metadata=_rule(Rule("flag", "Copy uncommitted and untracked files into the sandbox too."))
    )
    checks: tuple[str, ...] = field(
        default=(),
        metadata=_rule(Rule("list", "Command that must pass, repeatable (default: found from the repository).")),
    )
    check_timeout_s: float = field(
        default=600.0, metadata=_rule(Rule("number", "Time limit for one check, in seconds.", low=1))
    )
    max_output_bytes: int = field(
        default=10_000, metadata=_rule(Rule("size", "How much of a command's output the model sees.", low=256))
    )
    runs_dir: Path = field(
        default_factory=_state_dir,
        metadata=_rule(Rule("path", "Folder for the logs and patches of runs.", personal=True)),
    )
    cache_dir: Path = field(
        default_factory=_cache_dir, metadata=_rule(Rule("path", "Folder for caches.", personal=True))
    )
    branch: str | None = field(
        default=None,
        metadata=_rule(Rule("text", "Branch for the commit (default: agent/<slug>-<id>).", optional=True)),
    )
    worktree: Path | None = field(
        default=None,
        metadata=_rule(
            Rule(
                "path", "Also check the branch out in this new folder, as a git worktree.", optional=True, personal=True
            )
        ),
    )
    deliver: str = field(
        default="branch",
        metadata=_rule(
            Rule(
                "choice",
                "Form of the result: a branch, uncommitted changes in the checkout, or only a patch.",
                choices=("branch", "apply", "patch"),
                personal=True,
            )
        ),
    )


RULES: Mapping[str, Rule] = {f.name: f.metadata["rule"] for f in fields(RunConfig)}
SECRETS = tuple(name for name, rule in RULES.items() if rule.secret)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration and, for each key, the place its value came from."""

    config: RunConfig
    sources: Mapping[str, str]


def load(
    flags: Mapping[str, object] | None = None,
    repository: Path | None = None,
    environ: Mapping[str, str] | None = None,
    names: Mapping[str, str] | None = None,
    repository_text: str | None = None,
) -> Loaded:
    """Merge all sources. A flag with the value None was not given; ``names`` are the flags' spellings. Raises ConfigError.

    ``repository_text`` replaces the content of the repository's file if the checkout is not trusted.
    """
    env = os.environ if environ is None else environ
    values: dict[str, Any] = {
        "runs_dir": base_dir(env, "XDG_STATE_HOME", ".local/state") / "runs",
        "cache_dir": base_dir(env, "XDG_CACHE_HOME", ".cache"),
    }
    sources = dict.fromkeys(RULES, "default")
    layers: list[tuple[Mapping[str, object], Mapping[str, str]]] = [_from_file(user_file(env), personal=True)]
    if repository is not None:
        layers.append(_from_file(repository / REPOSITORY_FILE, personal=False, text=repository_text))
    layers.append(_from_environment(env))
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    layers.append((given, {key: f"flag {(names or {}).get(key, key)}" for key in given}))
    for found, places in layers:
        for key, value in found.items():
            values[key] = _checked(key, value, places[key])
            sources[key] = places[key]
    return Loaded(RunConfig(**values), sources)


def user_file(environ: Mapping[str, str] | None = None) -> Path:
    """Return the user's own file: ``AGENT_CONFIG``, or config.toml in our XDG configuration folder."""
    env = os.environ if environ is None else environ
    return (
        Path(env["AGENT_CONFIG"])
        if env.get("AGENT_CONFIG")
        else base_dir(env, "XDG_CONFIG_HOME", ".config") / "config.toml"
    )


def history_file(environ: Mapping[str, str] | None = None) -> Path:
    """Return the file in which `agent chat` stores the input history."""
    return base_dir(os.environ if environ is None else environ, "XDG_STATE_HOME", ".local/state") / "chat-history"


@contextmanager
def exported(variable: str, value: str) -> Iterator[None]:
    """Set an environment variable while a library is loaded that has no other way to configure it; then restore it."""
    before = os.environ.get(variable)
    os.environ[variable] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def process_environment() -> Mapping[str, str]:
    """Return the environment of this process, for a CI service's own variables and the search for write tokens."""
    return MappingProxyType(dict(os.environ))


def debug_wanted(environ: Mapping[str, str] | None = None) -> bool:
    """Whether AGENT_DEBUG asks for tracebacks."""
    return bool((os.environ if environ is None else environ).get("AGENT_DEBUG"))


def drop_relative_path() -> None:
    """Take relative folders (``.``, or an empty entry) off PATH, for this process and what it starts.

    With them, git started in a checkout could be a program of that name that the checkout contains.
    """
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    os.environ["PATH"] = os.pathsep.join(filter(os.path.isabs, folders)) or os.defpath


def public(config: RunConfig) -> dict[str, Any]:
    """Return the configuration as JSON values for logs and display, without any API keys."""
    shown: dict[str, Any] = {}
    for name in RULES:
        value = getattr(config, name)
        match value:
            case _ if name in SECRETS:
                continue
            case Path():
                shown[name] = str(value)
            case tuple():
                shown[name] = list(value)
            case _:
                shown[name] = value
    return shown


def restore(record: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> RunConfig:
    """Return the configuration of a recorded run (the result of ``public``), with the current API keys. Raises ConfigError."""
    env = os.environ if environ is None else environ
    place = "the run's log"
    unknown = [key for key in record if key not in RULES]
    if unknown:
        raise _unknown(unknown[0], place, "")
    values: dict[str, Any] = {key: _checked(key, value, place) for key, value in record.items() if value is not None}
    today = load(environ=env).config
    return RunConfig(**{**values, **{key: getattr(today, key) for key in SECRETS}})


def _file_text(path: Path) -> str:
    if not path.exists():
        return ""
    # A repository may contain anything under this name: a device, a pipe, a terabyte.
    if not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
        raise ConfigError(f"{path} is not a regular file of at most {MAX_FILE_BYTES >> 20} MiB.")
    return path.read_text(encoding="utf-8")


def _from_file(path: Path, *, personal: bool, text: str | None = None) -> tuple[dict[str, object], dict[str, str]]:
    try:
        content: dict[str, object] = tomllib.loads(_file_text(path) if text is None else text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    for key in content:
        if key not in RULES:
            raise _unknown(key, str(path), "")
        if RULES[key].personal and not personal:
            raise ConfigError(
                f"{path}: {key!r} cannot be set by a repository, because it controls your machine or your keys. "
                f"Set it in {user_file()}, in the environment ({_variable(key)}) or as a flag."
            )
    for key, value in content.items():
        # A path in a file is relative to that file.
        if RULES[key].kind == "path" and isinstance(value, str) and not value.startswith("~"):
            content[key] = str(path.parent / value)
    return content, dict.fromkeys(content, str(path))


def _from_environment(environ: Mapping[str, str]) -> tuple[dict[str, object], dict[str, str]]:
    found: dict[str, object] = {}
    places: dict[str, str] = {}
    for variable, key in SPECIAL_VARIABLES.items():
        if environ.get(variable):
            found[key], places[key] = environ[variable], f"environment {variable}"
    for variable, text in sorted(environ.items()):
        if not variable.startswith("AGENT_") or not text:
            continue
        key = variable.removeprefix("AGENT_").lower()
        if key in RULES:
            found[key], places[key] = (
                from_text(RULES[key], key, text, f"environment {variable}"),
                f"environment {variable}",
            )
        elif key not in OTHER_VARIABLES and get_close_matches(key, RULES, n=1, cutoff=0.85):
            # Other programs use variables with this prefix too (Azure Pipelines does), so only a near miss is an error.
            raise _unknown(key, f"environment {variable}", "AGENT_")
    return found, places


def _checked(key: str, value: object, place: str) -> object:
    """Return the value as RunConfig stores it. Raises ConfigError, which names the key and the place."""
    if key not in RULES:
        raise _unknown(key, place, "")
    return checked(RULES[key], key, value, place)


def _unknown(key: str, place: str, prefix: str) -> ConfigError:
    near = get_close_matches(key, RULES, n=1, cutoff=0.6)
    spelled = prefix + (near[0].upper() if prefix else near[0]) if near else ""
    name = prefix + key.upper() if prefix else key
    return ConfigError(
        f"{place}: unknown key {name!r}. "
        + (f"Did you mean {spelled!r}?" if near else "`agent config show` lists all.")
    )


def _variable(key: str) -> str:
    return next((variable for variable, name in SPECIAL_VARIABLES.items() if name == key), f"AGENT_{key.upper()}")
