"""The user's input: from a terminal with history and keys (prompt_toolkit), or from any other stream, one message per line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from agent.errors import UsageError

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.input import Input
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.output import Output

PROMPT = "> "
MORE = "  "


def typed(
    history: Path,
    commands: Sequence[str],
    keyboard: Input | None = None,
    display: Output | None = None,
) -> Iterator[str]:
    """Yield the typed messages until Ctrl-D. Raises UsageError if prompt_toolkit is not installed."""
    session = _session(history, commands, keyboard, display)
    while True:
        try:
            text = session.prompt(PROMPT)
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        if text.strip():
            yield text


def piped(stream: TextIO) -> Iterator[str]:
    """Yield the lines of a stream; a line that ends in a backslash continues in the next one.

    Raises UsageError if the stream is not valid in its encoding.
    """
    parts: list[str] = []
    for line in _lines(stream):
        text = line.rstrip("\n")
        if text.endswith("\\"):
            parts.append(text[:-1])
            continue
        whole = "\n".join([*parts, text])
        parts = []
        if whole.strip():
            yield whole
    if parts:
        yield "\n".join(parts)


def _lines(stream: TextIO) -> Iterator[str]:
    try:
        yield from stream
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not text: {error}.") from error


def _session(
    history: Path,
    commands: Sequence[str],
    keyboard: Input | None,
    display: Output | None,
) -> PromptSession[str]:
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.history import FileHistory
    except ModuleNotFoundError as missing:
        raise UsageError(
            f'a chat on a terminal needs {missing.name}: pip install "gpt-oss-agent[chat]" (piped input works without)'
        ) from missing
    try:
        history.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        history.touch(mode=0o600)
    except OSError as error:
        raise UsageError(
            f"the history {history} cannot be written: {error.strerror}; name another with --history"
        ) from error
    return PromptSession(
        history=FileHistory(str(history)),
        multiline=True,
        key_bindings=_keys(),
        completer=WordCompleter([f"/{name}" for name in commands], sentence=True),
        complete_while_typing=False,
        prompt_continuation=MORE,
        input=keyboard,
        output=display,
    )


def _keys() -> KeyBindings:
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.keys import Keys

    bindings = KeyBindings()

    def send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    def ignore(event: KeyPressEvent) -> None:
        del event

    bindings.add(Keys.Vt100MouseEvent)(ignore)  # the mouse is off, so this is a colour sequence in pasted text
    bindings.add("enter")(send)
    bindings.add("escape", "enter")(new_line)
    bindings.add("c-j")(new_line)
    return bindings
