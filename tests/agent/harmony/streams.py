"""Well-formed completions, written with control tokens spelt out: what the model emits after ``<|start|>assistant``."""

from __future__ import annotations

from agent.harmony.codec import recipients
from tests.agent.harmony.cases import TRAINED

RECIPIENTS = recipients(TRAINED)

THINK = "<|channel|>analysis<|message|>We need to look at the parser — żółw 🤖 first.<|end|><|start|>assistant"

STREAMS: dict[str, str] = {
    "a final answer": "<|channel|>final<|message|>The bug is fixed; all 12 tests pass.<|return|>",
    "reasoning, then a final": THINK + "<|channel|>final<|message|>Done: the slug keeps its last word.<|return|>",
    "a call, recipient after the channel": (
        "<|channel|>commentary to=container.exec <|constrain|>json<|message|>"
        '{"command":["bash","-lc","pytest -q tests/test_slug.py"],"timeout":60}<|call|>'
    ),
    "a call, recipient before the channel": (
        " to=repo_browser.open_file<|channel|>commentary <|constrain|>json<|message|>"
        '{"path":"src/slug.py","line_start":1,"line_end":80}<|call|>'
    ),
    "reasoning, then a call": THINK
    + '<|channel|>commentary to=repo_browser.open_file <|constrain|>json<|message|>{"path":"a.py"}<|call|>',
    "a call without a space before its type": (
        '<|channel|>commentary to=functions.plan<|constrain|>json<|message|>{"steps":["look","mend","test"]}<|call|>'
    ),
    "a call without a type": '<|channel|>commentary to=container.exec<|message|>{"command":["ls","-R"]}<|call|>',
    "a call on the analysis channel": (
        '<|channel|>analysis to=container.exec <|constrain|>json<|message|>{"command":["cat","a.py"]}<|call|>'
    ),
    "python with its type": THINK
    + "<|channel|>analysis to=python code<|message|>import re\nprint(re.findall(r'a+', 'baab'))\n<|call|>",
    "python without a type": "<|channel|>analysis to=python<|message|>print(sum(range(10)))<|call|>",
    "a preamble, then a call": THINK
    + "<|channel|>commentary<|message|>I will run the tests now.<|end|><|start|>assistant"
    + '<|channel|>commentary to=container.exec <|constrain|>json<|message|>{"command":["make","test"]}<|call|>',
    "a patch": (
        "<|channel|>commentary to=repo_browser.apply_patch <|constrain|>json<|message|>"
        '{"patch":"*** Begin Patch\\n*** Update File: a.py\\n@@ def f():\\n-    return 1\\n+    return 2\\n*** End Patch"}'
        "<|call|>"
    ),
    "reasoning twice, then a final": THINK
    + "<|channel|>analysis<|message|>Nothing is wrong after all.<|end|><|start|>assistant"
    + "<|channel|>final<|message|>There is no bug.<|return|>",
}
