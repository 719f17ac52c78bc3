"""The demo's model with a larger context, under a template that shows all tools first and each message once."""

from __future__ import annotations

from toolway.demo import model

CONTEXT = 8_192
"""Tokens; the model was trained with no more, and llama.cpp grants no more."""

TEMPLATE = """{%- if tools -%}<|im_start|>system
You may call functions:
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
Write a call as <tool_call>{"name": "...", "arguments": {...}}</tool_call>.<|im_end|>
{% endif -%}
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content if message.content is string else '' }}
{%- for call in message.tool_calls or [] %}
<tool_call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>
{%- endfor %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""

if __name__ == "__main__":
    model.CONTEXT_TOKENS = CONTEXT
    model.chat_template = lambda: TEMPLATE
    model.main()
