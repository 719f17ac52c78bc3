"""The embedded model under a template that renders a message the same way wherever it stands.

The demo's template shows a tiny model less of a conversation the longer it gets, so no prompt begins with the one
before it. Those of real models are like this one: what was said stays, and new messages go behind it.
"""

from __future__ import annotations

from toolway.demo import model

ALWAYS = [
    ("{%- set last_tool = messages[-1].role == 'tool' -%}", "{%- set last_tool = false -%}"),
    ("(tools and loop.last and message.role == 'user' and state.concerns_tools)", "(message.role == 'user')"),
]


def flat_template() -> str:
    """The demo's template without its looks at the last message."""
    template = model.chat_template()
    for conditional, always in ALWAYS:
        assert conditional in template
        template = template.replace(conditional, always)
    return template


if __name__ == "__main__":
    template = flat_template()
    model.chat_template = lambda: template
    model.main()
