"""`agent chat` and `agent generate`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from agent.cli.options import (
    ACKNOWLEDGEMENT,
    config_options,
    configured,
    configured_run,
    find_repository,
    read_text,
)
from agent.config import RunConfig, history_file
from agent.errors import UsageError
from agent.lines import clean

if TYPE_CHECKING:
    from agent.chat.commands import Desk
    from agent.chat.screen import Screen
    from agent.chat.talk import Talk
    from sandbox.base import Sandbox

MODEL_KEYS = (
    "endpoint", "model", "wire", "script", "effort", "temperature", "top_p", "seed", "context_tokens", "max_answer_tokens",
    "constrain", "silence_timeout_s", "endpoint_timeout_s",
)  # fmt: skip
CHAT_KEYS = (*MODEL_KEYS, "tools", "browser_url", "sandbox", "image", "network", "memory_bytes", "command_timeout_s")


@click.command()
@click.option("-p", "--python", "with_python", is_flag=True, help="Let the model run Python in a sandbox.")
@click.option(
    "-b", "--browser", "with_browser", is_flag=True, help="Let the model search and read the web (Exa or You.com)."
)
@click.option(
    "-a", "--apply-patch", "with_files", is_flag=True, help="Let the model read and patch a copy of this repository."
)
@click.option("--system", metavar="TEXT|@FILE", help="Instructions for the model (developer message).")
@click.option("--raw", is_flag=True, help="Show the raw harmony tokens.")
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=30,
    metavar="N",
    help="Maximum number of model answers in one turn (default: 30).",
)
@click.option("--load", "saved", type=click.Path(path_type=Path), metavar="FILE", help="Continue a saved chat.")
@click.option("--history", type=click.Path(path_type=Path), metavar="FILE", help="File for the history of typed lines.")
@click.option(ACKNOWLEDGEMENT, "acknowledged", is_flag=True, help="Required by --sandbox none.")
@config_options(*CHAT_KEYS)
def chat(
    with_python: bool,
    with_browser: bool,
    with_files: bool,
    system: str | None,
    raw: bool,
    steps: int,
    saved: Path | None,
    history: Path | None,
    acknowledged: bool,
    **flags: object,
) -> None:
    """Chat with a model in the terminal, with optional tools.

    On a terminal, Enter sends, Alt-Enter or Ctrl-J starts a new line, Ctrl-C stops an answer and Ctrl-D leaves. Otherwise each
    line of standard input is a message. /help lists the commands.
    """
    from agent.chat.commands import COMMANDS, Desk
    from agent.chat.place import Place
    from agent.chat.talk import Talk, chosen_tools
    from agent.chat.terminal import piped, typed
    from agent.model.open import open_model
    from agent.session import new_run_id
    from agent.tools.open import open_tools

    repository = _repository()
    config = configured_run(flags, repository, acknowledged)
    config = replace(config, browser=_browser(config) if with_browser else "off")
    tools = chosen_tools(open_tools(config), python=with_python, files=with_files, web=with_browser)
    person = sys.stdin.isatty() and sys.stdout.isatty()
    lines = typed(history or history_file(), list(COMMANDS)) if person else piped(sys.stdin)
    with ExitStack() as opened, _ending():
        run = new_run_id()
        place = Place(tools, config.tools, _starter(config, run, repository, opened))
        opened.callback(place.close)
        talk = Talk(config, open_model(config, _tell), place, run, None if system is None else read_text(system), steps)
        opened.callback(lambda: talk.model.close())
        screen = _screen(talk, raw, person)
        desk = Desk(talk, screen.say, lambda wanted: open_model(wanted, _tell), repository)
        if saved is not None:
            screen.say(f"loaded {talk.load(saved)} messages from {saved}")
        if person:
            screen.say(f"{talk.model.name}. /help lists the commands.")
        _converse(lines, desk, screen)


@click.command()
@click.argument("file", metavar="FILE|-")
@config_options(*MODEL_KEYS)
def generate(file: str, **flags: object) -> None:
    """Continue a plain text, without chat or tools.

    The text is read from FILE, or from standard input for -; its continuation goes to standard output.
    """
    from agent.generate import generate as continued
    from agent.view import write

    text = read_plain(file)
    for piece in continued(configured(flags, None).config, text, _tell):
        write(sys.stdout, clean(piece) if sys.stdout.isatty() else piece)
    write(sys.stdout, "\n" if sys.stdout.isatty() else "")


def read_plain(file: str) -> str:
    """Return the exact content of a file or of standard input. Raises UsageError."""
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return data.decode()
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8: {error}.") from error


def _repository() -> Path | None:
    try:
        return find_repository(Path.cwd())
    except UsageError:
        return None


def _browser(config: RunConfig) -> str:
    return "auto" if config.browser == "off" else config.browser


def _tell(text: str) -> None:
    click.echo(clean(text), err=True)


def _starter(config: RunConfig, run: str, repository: Path | None, opened: ExitStack) -> Callable[[], Sandbox]:
    """Return a function that opens a sandbox with a copy of the repository or, outside of one, with an empty workspace."""
    from agent.landing import remove_containers
    from agent.session import sandbox_options
    from sandbox import plumbing, scratch
    from sandbox import snapshot as snapshots
    from sandbox.open import open_sandbox

    begun = False

    def clean() -> None:
        """Remove a container whose start Ctrl-C interrupted: no sandbox object exists that could be closed."""
        if begun and config.sandbox == "docker":
            remove_containers(run)

    def start() -> Sandbox:
        nonlocal begun
        begun = True
        folder = opened.enter_context(scratch.folder("chat"))
        source = repository
        if source is None:
            source = folder / "empty"
            source.mkdir()
            plumbing.run(["init", "-q"], source)
        snapshot = snapshots.take(source, folder / "state", config.include_uncommitted)
        return open_sandbox(sandbox_options(config, run, _tell), snapshot)

    opened.callback(clean)  # registered before the sandbox's own close, so that it runs after it
    return start


def _screen(talk: Talk, raw: bool, person: bool) -> Screen:
    from agent.chat.screen import Screen
    from agent.tools.browser.browser import BrowserTool

    sources = next((tool.browser.cited for tool in talk.place.tools.values() if isinstance(tool, BrowserTool)), None)
    if not raw:
        return Screen(sys.stdout, live=person, sources=sources)
    from agent.harmony.codec import open_codec

    codec = open_codec(talk.config.cache_dir)
    screen = Screen(sys.stdout, live=person, spell=lambda message: codec.decode(codec.render(message)))
    screen.say(codec.decode(codec.prompt(talk.state.conversation, ())))
    return screen


def _converse(lines: Iterator[str], desk: Desk, screen: Screen) -> None:
    """Answer line after line. An error in a turn does not end the chat."""
    from agent.chat.commands import is_command, obey

    for text in lines:
        if is_command(text):
            if not obey(text, desk):
                return
        else:
            desk.talk.turn(text.strip(), screen)


@contextmanager
def _ending() -> Iterator[None]:
    """Inside this context, SIGTERM and SIGHUP end the chat cleanly: everything open is closed."""

    def leave(number: int, frame: FrameType | None) -> None:
        del frame
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
