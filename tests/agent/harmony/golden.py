"""Golden files of the codec: the ids of every golden conversation, and of a run of ten turns.

``make golden`` renews them; read the difference before it is committed: a changed id is a changed prompt.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent.conversation import Conversation, Message
from agent.events import MessageAdded
from agent.harmony.codec import Codec
from agent.harmony.tokens import CALL
from agent.model.base import SamplingParams
from agent.model.raw import RawModel
from agent.model.scripted_tokens import ScriptedTokens
from tests.agent.harmony.cases import CONVERSATIONS, TRAINED, result, user

FOLDER = Path(__file__).resolve().parent.parent.parent / "golden" / "harmony"
RENDERED = FOLDER / "rendered.json"
TEN_TURNS = FOLDER / "ten_turns.json"

THINK = "<|channel|>analysis<|message|>{}<|end|><|start|>assistant"
# What the model samples at each turn, in spellings that rendering would not give back: recipient behind the channel or
# before it, with a type or without, split unlike the encoder would split it, with a damaged header, with a preamble.
TURNS = (
    THINK.format("Look at the tree first.")
    + '<|channel|>commentary to=repo_browser.open_file <|constrain|>json<|message|>{"path":"README.md"}<|call|>',
    '<|channel|>commentary to=container.exec<|constrain|>json<|message|>{"command":["bash","-lc","ls"]}<|call|>',
    THINK.format("Reproduce.")
    + "<|channel|>analysis to=python code<|message|>import slug; print(slug.slugify('a b', 3))<|call|>",
    ' to=repo_browser.open_file<|channel|>commentary <|constrain|>json<|message|>{"path":"slug.py"}<|call|>',
    (
        "<|channel|>commentary<|message|>I found it: the limit is compared with ≤.<|end|><|start|>assistant"
        '<|channel|>commentary to=container.exec <|constrain|>json<|message|>{"command":["pytest","-q"]}<|call|>'
    ),
    '<|channel|>commentary to=container.exec please <|constrain|>json<|message|>{"command":["git","diff"]}<|call|>',
    THINK.format("Mend it. 🔧") + "<|channel|>commentary to=repo_browser.apply_patch <|constrain|>json<|message|>"
    '{"patch":"*** Begin Patch\\n*** Update File: slug.py\\n@@\\n-    <\\n+    <=\\n*** End Patch"}<|call|>',
    THINK.format("Now the tests.") + "<|start|>assistant<|channel|>analysis to=container.exec<|message|>"
    '{"command":["pytest","-q"]}<|call|>',
    '<|channel|>commentary to=functions.plan <|constrain|>json<|message|>{"steps":[]}<|call|>',
    THINK.format("All pass.") + "<|channel|>final<|message|>The last word is kept now; all tests pass.<|return|>",
)
ANSWERS = (
    "# slug\n",
    "exit 0\nREADME.md\nslug.py",
    "a\n",
    "def slugify(): ...",
    "exit 1\n1 failed",
    "",
    "Done!",
    "exit 0",
    "ok",
)


class Asked:
    """The scripted source, with what it was asked written down. It finds its turn by the calls in the prompt."""

    def __init__(self, codec: Codec) -> None:
        self.prompts: list[list[int]] = []
        self.completions = [codec.encode_sampled(turn) for turn in TURNS]
        # One word in letters, as a model may well split it: rendering the text again would not give these ids.
        index = self.completions[0].index(codec.encode(" tree")[0])
        self.completions[0][index : index + 1] = [t for letter in " tree" for t in codec.encode(letter)]

    def __call__(self, prompt: Sequence[int]) -> Sequence[int]:
        self.prompts.append(list(prompt))
        return self.completions[list(prompt).count(CALL)]


def ten_turns(codec: Codec) -> tuple[list[list[int]], list[list[int]], Conversation]:
    """A run of ten turns: the prompts that were sent, what was sampled, and the conversation at its end."""
    asked = Asked(codec)
    model = RawModel(codec, ScriptedTokens(asked, chunk_tokens=7))
    conversation = Conversation("Fix the issue.", TRAINED, (user("<issue>\nThe last word is lost.\n</issue>"),))
    for turn in range(len(TURNS)):
        events = list(model.sample(conversation, SamplingParams()))
        messages: list[Message] = [event.message for event in events if isinstance(event, MessageAdded)]
        conversation = conversation.add(*messages)
        if messages[-1].is_call:
            answer = result("", ANSWERS[turn])
            conversation = conversation.add(Message(answer.role, answer.text))
    return asked.prompts, asked.completions, conversation


def content(codec: Codec) -> dict[Path, Any]:
    """What the golden files should hold."""
    prompts, completions, _ = ten_turns(codec)
    return {
        RENDERED: {name: codec.prompt(conversation) for name, conversation in CONVERSATIONS.items()},
        TEN_TURNS: [
            {"prompt": prompt, "completion": completion}
            for prompt, completion in zip(prompts, completions, strict=True)
        ],
    }


def renew(codec: Codec) -> None:
    """Write them."""
    for path, value in content(codec).items():
        rows = value.items() if isinstance(value, dict) else enumerate(value)
        opening, closing = "{}" if isinstance(value, dict) else "[]"
        lines = [f"{json.dumps(k)}: {json.dumps(v)}" if isinstance(value, dict) else json.dumps(v) for k, v in rows]
        path.write_text(f"{opening}\n" + ",\n".join(lines) + f"\n{closing}\n", encoding="utf-8")
