"""`agent serve`: one server over any backend."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import click

from agent.cli.options import config_options, configured
from agent.errors import UsageError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@click.command()
@config_options("wire", "endpoint", "model", "script", "effort", "context_tokens")
@click.option("--host", default="127.0.0.1", metavar="H", help="Address to listen on (default: 127.0.0.1).")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    metavar="N",
    help="Port to listen on; 0 takes a free one (default: 8000).",
)
@click.option("--api-key", metavar="KEY|@FILE", help="Key that callers must send; @FILE reads it from a file.")
@click.option(
    "--max-requests",
    type=click.IntRange(1, 4096),
    default=256,
    metavar="N",
    help="Maximum number of concurrent requests; more get a 429 (default: 256).",
)
@click.option(
    "--max-body",
    type=click.IntRange(1024),
    default=8 << 20,
    metavar="BYTES",
    help="Maximum size of a request (default: 8 MiB).",
)
@click.option(
    "--request-timeout",
    type=click.FloatRange(1),
    default=3600.0,
    metavar="S",
    help="Time limit for one answer, in seconds (default: 3600).",
)
@click.option(
    "--grace",
    type=click.FloatRange(0),
    default=10.0,
    metavar="S",
    help="How long running answers may continue at shutdown, in seconds (default: 10).",
)
@click.option(
    "--web-search",
    type=click.Choice(["auto", "exa", "youcom"]),
    help="Let the model search the web for callers, with this machine's key (default: off).",
)
@click.option(
    "--code-interpreter",
    is_flag=True,
    help="Let the model run Python for callers, in containers without a network (default: off).",
)
@click.option(
    "--interpreters",
    type=click.IntRange(1, 256),
    default=8,
    metavar="N",
    help="Maximum number of these containers (default: 8).",
)
@click.option("--verbose", is_flag=True, help="Log requests and the backend's messages to standard error.")
def serve(
    host: str,
    port: int,
    api_key: str | None,
    max_requests: int,
    max_body: int,
    request_timeout: float,
    grace: float,
    web_search: str | None,
    code_interpreter: bool,
    interpreters: int,
    verbose: bool,
    **flags: object,
) -> None:
    """Serve a model through OpenAI's APIs.

    The routes are responses, chat completions and completions. Prints its URL on standard output, on one line, as soon as it
    accepts requests. Until the model is loaded it answers 503.
    """
    try:
        from agent.server.app import Access, Service
        from agent.server.equip import equipped
        from agent.server.gate import Limits
        from agent.server.loading import loading
        from agent.server.run import listen
        from agent.server.run import serve as run
    except ModuleNotFoundError as missing:
        raise UsageError(
            f'agent serve needs {missing.name}, which is not installed: pip install "gpt-oss-agent[server]"'
        ) from missing
    from agent.server.backend import open_backend

    local = host in LOOPBACK
    key = _key(api_key)
    if not local and key is None:
        click.echo(f"agent: anybody who can reach {host} can use this server: --api-key requires a key", err=True)
    config = configured(flags, None).config
    limits = Limits(max_requests, max_body, request_timeout_s=request_timeout, shutdown_s=grace)
    access = Access(key, loopback_only=local)
    with listen(host, port) as listener, ExitStack() as stack:
        with loading(listener):
            most_interpreters = interpreters if code_interpreter else 0
            builtins = stack.enter_context(equipped(config, web_search, most_interpreters, _tell))
            opened = open_backend(config, _tell)
        service = Service(opened, effort=config.effort, access=access, limits=limits, builtins=builtins)
        run(service, listener, click.echo, verbose=verbose)


def _tell(text: str) -> None:
    click.echo(f"agent: {text}", err=True)


def _key(given: str | None) -> str | None:
    """Return the key, or the content of a file (other users of the machine can read a command line).

    Raises UsageError, also for an empty key (from an unset variable, say), which would protect nothing.
    """
    if given is None:
        return None
    key, place = given, "it"
    if given.startswith("@"):
        place = given[1:]
        try:
            key = Path(place).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--api-key: {place} cannot be read: {error}.") from error
    key = key.strip()
    if not key:
        raise UsageError(
            f"--api-key: {place} is empty, so it would protect nothing. Give a key, or leave the flag out."
        )
    if not key.isascii() or not key.isprintable():
        raise UsageError(
            f"--api-key: {place} contains a character that is not allowed in an HTTP header: use plain ASCII on one line."
        )
    return key
