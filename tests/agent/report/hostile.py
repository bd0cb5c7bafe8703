"""Text as a model or a repository may write it to get out of a report, and a strategy that mixes it with anything else."""

from __future__ import annotations

from hypothesis import strategies as st

PIECES = (
    "<script>alert(1)</script>", "</pre></details>", "<!-- agent -->", "-->", "<![CDATA[", "]]>", "<img src=x onerror=alert(1)>",
    '"', "'", "&amp;", "&#60;", "`", "``", "```", "````\n", "\n```\n", "\n~~~\n", "@octocat", "#123", "owner/repo#5", "GH-7",
    "\n/close\n", "\n  /merge", "![x](http://e.test/x.png)", "[x](javascript:alert(1))", "https://github.com/o/r/issues/1",
    "\n# head\n", "| a | b |\n|---|---|\n", "\x1b[31m", "\x1b]0;title\x07", "\u202e", "\u2028", "\r\n", "\r", "\x00", "\ud800", "\ufffe",
    "\n\n", " ", "\t", "\\", "*x*", "</summary>", "\n---\n", "diff --git a/x b/x\n", "\n@@ -1 +1 @@\n",
)  # fmt: skip
texts = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=12)), max_size=12).map("".join)
