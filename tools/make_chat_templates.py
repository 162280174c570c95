#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes golden data for chat templates: what transformers' own Jinja2 environment makes of templates and conversations.

usage: make_chat_templates.py [OUT_DIR] [--smollm2 GGUF] [--random N] [--seed S]

families.json: one template for each family of models, in the constructs that its published template uses, over several
conversations. random.json: expressions and statements made at random. {"t": template, "x": what it renders to, or null for an
error}. The families' templates also become the seeds of the fuzz target, in tests/fuzz/corpus/chat_template. Rendering is by transformers.utils.chat_template_utils, with the clock fixed at 2024-07-26 13:05:09.
"""
import argparse
import datetime
import json
import pathlib
import random

from transformers.utils import chat_template_utils

NOW = datetime.datetime(2024, 7, 26, 13, 5, 9)

CHATML = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are helpful.<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must take turns: user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""

LLAMA3 = """{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

LLAMA31 = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools_in_user_message is defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}

{#- The system message comes first. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}

{#- Head of the prompt #}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if builtin_tools is defined or tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{%- if builtin_tools is defined %}
    {{- "Tools: " + builtin_tools | reject('equalto', 'code_interpreter') | join(", ") + "\\n\\n"}}
{%- endif %}
{{- "Knowledge ends: December 2023\\n" }}
{{- "Today: " + date_string + "\\n\\n" }}
{%- if tools is not none and not tools_in_user_message %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- if tools_in_user_message and not tools is none %}
    {%- if messages | length != 0 %}
        {%- set first_user_message = messages[0]['content']|trim %}
        {%- set messages = messages[1:] %}
    {%- else %}
        {{- raise_exception("Tools need a first user message!") }}
    {%- endif %}
    {{- first_user_message + "<|eot_id|>"}}
{%- endif %}

{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("One tool call at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {%- for arg_name, arg_val in tool_call.arguments | items %}
            {{- arg_name + '="' + arg_val + '"' }}
            {%- if not loop.last %}
                {{- ", " }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

MISTRAL1 = """{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must take turns!') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% else %}{{ raise_exception('Only user and assistant roles!') }}{% endif %}{% endfor %}"""

MISTRAL3 = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}

{#- Turns must alternate, tool calls aside. #}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.role == "tool_results" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the system message, roles must alternate user/assistant") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}

{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}{{- "]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {{- raise_exception("Only user and assistant roles, with a system message at the beginning!") }}
    {%- endif %}
{%- endfor %}
"""

QWEN25 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "<|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are an assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- tool_call.name }}
        {%- endfor %}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- message.content }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

QWEN3 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}{{- tools | tojson }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}
                    {{- '\\n' }}
                {%- endif %}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""

SMOLLM3 = """{%- macro block(role, text='', close=true) -%}
{{ '<|im_start|>' ~ role ~ '\n' ~ text|trim }}{% if close %}{{ '<|im_end|>' }}{% endif %}

{%- endmacro %}
{%- set system = messages | selectattr('role', 'eq', 'system') | map(attribute='content') | join('\n') %}
{%- if system %}{{ block('system', system) }}
{% endif %}
{%- for message in messages if message.role != 'system' %}
{% if message.role == 'assistant' %}
{% generation %}{{ block('assistant', message.content) }}{% endgeneration %}

{% else %}
{{ block(message.role | lower, text=message.content) }}
{% endif %}
{% else %}
nothing was said
{% endfor %}
{%- if add_generation_prompt -%}{{ block('assistant', close=false) }}{%- endif %}"""

FAMILIES = {
    "chatml": CHATML, "llama2": LLAMA2, "llama3": LLAMA3, "llama31": LLAMA31, "mistral1": MISTRAL1, "mistral3": MISTRAL3,
    "qwen25": QWEN25, "qwen3": QWEN3, "zephyr": ZEPHYR, "smollm3": SMOLLM3,
    "qwen3-no-thinking": "{%- set enable_thinking = false %}\n" + QWEN3,
}


def chat(*turns):
    return [{"role": role, "content": content} for role, content in turns]


CONVERSATIONS = [
    chat(("user", "Why is the sky blue?")),
    chat(("system", "Be brief."), ("user", "  Hi there \n"), ("assistant", "Hello!\n"), ("user", "And\n\nnow? {{ 1 }} {% x %}")),
    chat(("user", "Grüße, 你好 🙂"), ("assistant", "<think>\nhm, 1 < 2\n</think>\n\nJa & \"so\""), ("user", "<b>'q'</b>")),
    chat(("system", "  S\u00a0"), ("user", "a"), ("assistant", "b</think>c</think>d")),
    chat(("user", "a"), ("user", "b")),
    chat(("assistant", "first"), ("tool", "x")),
    chat(("user", ""), ("assistant", ""), ("system", "late"), ("user", "\t")),
    [],
]

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def render(template, messages, **options):
    """The text, or None for any error of the template."""
    try:
        compiled = chat_template_utils._compile_jinja_template(template)
        compiled.globals["strftime_now"] = NOW.strftime
        text = compiled.render(messages=messages, tools=None, documents=None, **options)
        text.encode()  # a lone surrogate is no text
        return text
    except Exception:
        return None


def family_cases(templates):
    for name, template in templates.items():
        cases = []
        for i, messages in enumerate(CONVERSATIONS):
            for prompt in (True, False):
                tokens = {} if i == 0 and not prompt else TOKENS
                cases.append({"messages": messages, "add_generation_prompt": prompt, **tokens,
                              "expected": render(template, messages, add_generation_prompt=prompt, **tokens)})
        yield {"name": name, "template": template, "cases": cases}


class Maker:
    """Random expressions, mostly well typed, and statements around them."""

    STRINGS = ["", "a", "abc", "Hello World", "  x y  ", "a,b,,c", "<think>\\nx</think>y", "it's", 'say "hi"', "äÖß", "日本語", "12", "-3.5",
               "\\ttab\\n", "aXbXc", "user", "x\\\\y", "1e3", "ǅ ﬁ", "🙂🙃", "true", "one two\\nthree", "{{ }}"]

    ROUND = ["", "1", "2", "0, 'floor'", "method='ceil'"]
    JSON = ["", "(indent=2)", "(sort_keys=true)", "(ensure_ascii=true)", "(separators=[',', ':'])"]
    SELECT = ["'odd'", "'gt', 1", "'equalto', 2", ""]
    MAPS = ["map('upper')|list", "select('string')|list"]

    def __init__(self, seed):
        self.random = random.Random(seed)

    def pick(self, *choices):
        return self.random.choice(choices)

    def string_literal(self):
        text = self.pick(*self.STRINGS)
        quote = self.pick("'", '"')
        return quote + text.replace(quote, "\\" + quote) + quote

    def affix(self):
        return self.pick(self.string_literal(), "(" + self.string_literal() + ", 'a')")

    def int(self, depth):
        if depth <= 0 or self.random.random() < 0.4:
            return self.pick("0", "1", "2", "3", "-1", "7", "10", "100", "i", "n", "0x1f", "1_000", "true")
        d = depth - 1
        return self.pick(
            lambda: f"({self.int(d)} {self.pick('+', '-', '*', '//', '%')} {self.int(d)})",
            lambda: f"{self.any_sized(d)}|{self.pick('length', 'count')}",
            lambda: f"{self.string(d)}.{self.pick('find', 'count', 'rfind')}({self.string_literal()})",
            lambda: f"({self.int(d)} if {self.bool(d)} else {self.int(d)})",
            lambda: f"{self.pick(self.string, self.float, self.int)(d)}|int",
            lambda: f"{self.ints(d)}|{self.pick('sum', 'min', 'max', 'first', 'last')}",
            lambda: f"(-{self.int(d)})|abs",
            lambda: f"{self.ints(d)}.{self.pick('index', 'count')}({self.int(0)})",
            lambda: f"2 ** {self.pick('0', '3', '10', '-1')}",
        )()

    def float(self, depth):
        if depth <= 0 or self.random.random() < 0.4:
            return self.pick("1.5", "0.1", "2.0", "1e17", "1e-7", "3.14159", "1e16", "123456.789", "-0.0", "1.0e3", "2.5")
        d = depth - 1
        return self.pick(
            lambda: f"({self.number(d)} {self.pick('+', '-', '*', '/', '//', '%')} {self.number(d)})",
            lambda: f"{self.number(d)}|round({self.pick(*self.ROUND)})",
            lambda: f"{self.pick(self.string, self.int)(d)}|float",
        )()

    def number(self, depth):
        return self.pick(self.int, self.float)(depth)

    def string(self, depth):
        if depth <= 0 or self.random.random() < 0.3:
            return self.pick(self.string_literal(), self.string_literal(), "s", "t", "messages[0].content", "m.role")
        d = depth - 1
        return self.pick(
            lambda: f"({self.string(d)} {self.pick('+', '~')} {self.string(d)})",
            lambda: f"({self.any(d)} ~ {self.any(d)})",
            lambda: f"{self.string(d)}|{self.pick('upper', 'lower', 'trim', 'capitalize', 'title', 'reverse', 'string', 'first', 'last')}",
            lambda: f"{self.string(d)}.{self.pick('strip', 'lstrip', 'rstrip')}({self.pick('', self.string_literal())})",
            lambda: f"{self.string(d)}.{self.pick('upper', 'lower', 'capitalize')}()",
            lambda: f"{self.string(d)}.replace({self.string_literal()}, {self.string_literal()}{self.pick('', ', 1')})",
            lambda: f"{self.string(d)}|replace({self.string_literal()}, {self.string_literal()}{self.pick('', ', 2')})",
            lambda: f"{self.string(d)}[{self.pick('0', '-1', '1:', ':2', '::-1', '1:-1', '::2', '-3:', '5:1:-1', ':-9', '2::-1')}]",
            lambda: f"{self.strings(d)}|join({self.pick('', self.string_literal())})",
            lambda: f"{self.string_literal()}.join({self.strings(d)})",
            lambda: f"({self.string(d)} if {self.bool(d)} else {self.string(d)})",
            lambda: f"{self.any(d)}|tojson{self.pick(*self.JSON)}",
            lambda: f"{self.pick('missing', 'm.nope', 'd.zz', self.string(d))}|default({self.string_literal()}{self.pick('', ', true')})",
            lambda: f"{self.string(d)} * {self.pick('0', '2', '3')}",
            lambda: f"{self.string(d)}|indent({self.pick('2', '1, true', 'first=true', 'blank=true', '')})",
            lambda: f"{self.strings(d)}|{self.pick('first', 'last')}",
            lambda: f"{self.string(d)}.{self.pick('removeprefix', 'removesuffix')}({self.string_literal()})",
            lambda: f"{self.string(d)}|trim({self.string_literal()})",
        )()

    def bool(self, depth):
        if depth <= 0 or self.random.random() < 0.2:
            return self.pick("true", "false", "True", "b", "none", "add_generation_prompt")
        d = depth - 1
        tests = ["defined", "undefined", "none", "string", "number", "mapping", "sequence", "iterable", "boolean", "integer", "float",
                 "true", "false", "callable", "not string", "not none", "not defined"]
        return self.pick(
            lambda: f"({self.bool(d)} {self.pick('and', 'or')} {self.bool(d)})",
            lambda: f"(not {self.bool(d)})",
            lambda: f"({self.number(d)} {self.pick('<', '<=', '>', '>=', '==', '!=')} {self.number(d)})",
            lambda: f"({self.string(d)} {self.pick('<', '>=', '==', '!=', 'in', 'not in')} {self.string(d)})",
            lambda: f"({self.any(d)} {self.pick('==', '!=')} {self.any(d)})",
            lambda: f"({self.any(d)} {self.pick('in', 'not in')} {self.list(d)})",
            lambda: f"({self.pick(self.any(d), 'missing', 'm.nope')} is {self.pick(*tests)})",
            lambda: f"({self.int(d)} is {self.pick('odd', 'even', 'divisibleby 3', 'divisibleby(2)', 'gt 1', 'eq(2)', 'in [1, 2]')})",
            lambda: f"{self.string(d)}.{self.pick('startswith', 'endswith')}({self.affix()})",
            lambda: f"(1 {self.pick('<', '<=')} {self.int(d)} {self.pick('<', '>')} {self.int(d)})",
            lambda: f"({self.string_literal()} in {self.dict(d)})",
        )()

    def ints(self, depth):
        if depth <= 0 or self.random.random() < 0.4:
            return self.pick("[1, 2, 3]", "[]", "range(4)|list", "range(5, 0, -2)|list", "[3, 1, 2, 3, 1]", "(4, 5)", "range(3)", "[0]")
        d = depth - 1
        return self.pick(
            lambda: f"{self.ints(d)}[{self.pick('1:', '::-1', ':2', '-2:', '::2')}]",
            lambda: f"({self.ints(d)} + {self.ints(d)})",
            lambda: f"{self.ints(d)}|{self.pick('sort', 'sort(reverse=true)', 'unique', 'reverse', 'list')}|list",
            lambda: f"{self.ints(d)}|{self.pick('select', 'reject')}({self.pick(*self.SELECT)})|list",
            lambda: f"{self.strings(d)}|map('length')|list",
            lambda: f"[{self.int(d)}, {self.int(d)}]",
        )()

    def strings(self, depth):
        if depth <= 0 or self.random.random() < 0.3:
            return self.pick("['a', 'B', 'c']", "[]", "words", f"[{self.string_literal()}, {self.string_literal()}]", "'a b c'.split()")
        d = depth - 1
        return self.pick(
            lambda: f"{self.string(d)}.{self.pick('split', 'rsplit')}({self.pick('', self.string_literal(), self.string_literal() + ', 1', 'none, 1', 'maxsplit=1')})",
            lambda: f"{self.string(d)}.splitlines()",
            lambda: f"{self.string(d)}|list",
            lambda: f"{self.strings(d)}|map('{self.pick('upper', 'trim', 'lower', 'string', 'capitalize')}')|list",
            lambda: f"messages|{self.pick('map', 'map')}(attribute='{self.pick('role', 'content')}')|list",
            lambda: f"{self.strings(d)}|{self.pick('sort', 'unique|list', 'reverse|list', 'sort(true)', 'sort(case_sensitive=true)')}",
            lambda: f"{self.dict(d)}|list",
        )()

    def list(self, depth):
        return self.pick(self.ints, self.strings, self.mixed, self.dicts)(depth)

    def mixed(self, depth):
        return "[" + ", ".join(self.any(depth - 1) for _ in range(self.random.randrange(4))) + "]"

    def dicts(self, depth):
        return self.pick("messages", "messages[1:]", "messages|selectattr('role', 'equalto', 'user')|list", "messages|rejectattr('role', 'eq', 'user')|list",
                         "messages|selectattr('nope')|list", "messages|sort(attribute='role')", "d.items()|list", "d|dictsort", "d|items|list")

    def dict(self, depth):
        if depth <= 0 or self.random.random() < 0.5:
            return self.pick("d", "m", "{}", "{'a': 1, 'b': [1, 2]}", "messages[0]", "dict(x=1, y='z')", "{1: 'one', 'k': none, 1.5: true}")
        return "{" + ", ".join(f"{self.string_literal()}: {self.any(depth - 1)}" for _ in range(self.random.randrange(3))) + "}"

    def any_sized(self, depth):
        return self.pick(self.string, self.list, self.dict)(depth)

    def any(self, depth):
        d = depth - 1
        return self.pick(
            self.int, self.float, self.string, self.bool, self.list, self.dict, lambda _: "none", lambda _: "missing",
            lambda _: f"{self.dict(d)}.get({self.string_literal()}{self.pick('', ', 5')})", lambda _: f"{self.list(d)}[{self.int(0)}]",
            lambda _: f"{self.dict(d)}[{self.string_literal()}]", lambda _: f"{self.list(d)}|{self.pick('first', 'last')}",
            lambda _: f"{self.dict(d)}.{self.pick('a', 'b', 'role', 'zz')}", lambda _: f"({self.any(d)} {self.pick('and', 'or')} {self.any(d)})",
            lambda _: f"({self.any(d)}, {self.any(d)})",
        )(depth)

    def wild(self, depth):
        """Types at odds: mostly errors, and those must be errors here, too."""
        d = depth - 1
        return self.pick(
            lambda: f"{self.any(d)} {self.pick('+', '-', '*', '/', '<', 'in', '//')} {self.any(d)}",
            lambda: f"{self.any(d)}|{self.pick('length', 'upper', 'join', 'list', 'first', 'last', 'int', 'float', 'abs', 'sum', 'sort', 'trim', 'items', 'reverse', 'round', 'min', 'string', 'unique|list', *self.MAPS)}",
            lambda: f"{self.any(d)}[{self.any(d)}]", lambda: f"{self.any(d)}.{self.pick('strip', 'split', 'items', 'append', 'nope', 'upper')}({self.pick('', '1')})",
            lambda: f"-{self.any(d)}",
            lambda: f"{self.any(d)} is {self.pick('odd', 'sequence', 'iterable', 'mapping', 'gt 1', 'in [1]')}",
            lambda: f"{self.any(d)}({self.any(d)})",
        )()

    PRELUDE = ("{%- set i = 4 %}{% set n = -2 %}{% set s = 'Some Text ' %}{% set t = 'aßc-d' %}{% set b = true %}{% set m = {'role': 'user', 'x': 1} %}"
               "{% set d = {'a': 1, 'b': 'two', 'C': [3]} %}{% set words = ['x', 'Yy', '', 'z z'] -%}\n")

    def output(self):
        depth = self.random.randrange(1, 4)
        expression = self.wild(depth) if self.random.random() < 0.15 else self.any(depth)
        # Sliced behind a variable: Jinja2 folds a slice of a constant by rules of its own.
        return f"{{% set w = {expression} %}}{{{{ w }}}}{self.pick('', '', '', '{{ w[1:] }}', '{{ w[::-1] }}')}"

    def sign(self):
        return self.pick("", "", "", "-", "+")

    def space(self):
        return self.pick("", "", " ", "\n", "  ", "\n  ", " \n\n ", "text", "\t", "a\n", "\nb ", "\r\n")

    def tag(self, inner):
        return f"{{%{self.sign()} {inner} {self.pick('', '', '-', '+')}%}}"

    def value(self):
        return f"{{{{{self.pick('', '-')} {self.any(1)} {self.pick('', '-')}}}}}"

    def body(self, depth, in_loop=False):
        return "".join(self.space() + self.statement(depth - 1, in_loop) + self.space() for _ in range(self.random.randrange(1, 3)))

    def statement(self, depth, in_loop=False):
        if depth <= 0:
            return self.pick(self.value(), self.tag(f"set {self.pick('x', 'y')} = {self.any(1)}"), "{{ x }}", "{{ y }}", self.space(),
                             f"{{#{self.sign()} note {self.pick('', '-', '+')}#}}", "{% raw %} {{ raw }} {% endraw %}", "{%- raw -%}\n r {% endraw -%}",
                             "{{ loop.index }}" if in_loop else "{{ ns.k }}", self.tag("break") if in_loop else "", self.tag("set ns.k = ns.k + 1"))
        d = depth
        return self.pick(
            lambda: self.tag(f"if {self.bool(1)}") + self.body(d, in_loop) + self.tag("endif"),
            lambda: self.tag(f"if {self.bool(1)}") + self.body(d, in_loop) + self.tag(f"elif {self.bool(1)}") + self.body(d, in_loop) + self.tag("else") + self.body(d, in_loop) + self.tag("endif"),
            lambda: self.tag(f"for e in {self.list(1)}") + "{{ e }}" + self.body(d, True) + self.tag("endfor"),
            lambda: self.tag(f"for e in {self.list(1)} if {self.pick('e', 'e is string', 'e != 1', 'loop')}") + "{{ loop.revindex }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.last }}" + self.body(d, True) + self.tag("else") + self.body(d) + self.tag("endfor"),
            lambda: self.tag("for k, v in d.items()") + "{{ k }}={{ v }}{{ ',' if not loop.last }}" + self.body(d, True) + self.tag("endfor"),
            lambda: self.tag("for e in range(5)") + self.tag(f"if e == {self.pick(1, 2, 9)}") + self.tag(self.pick("break", "continue")) + self.tag("endif") + "{{ loop.cycle('p', 'q') }}" + self.tag("endfor"),
            lambda: self.tag(f"set x{self.pick('', '|upper', '|trim')}") + self.body(d) + self.tag("endset") + "[{{ x }}]",
            lambda: self.tag(f"macro f(p, q={self.any(1)})") + "{{ p }}|{{ q }}" + self.body(d) + self.tag("endmacro") + "{{ f(" + self.pick("1", "1, 2", "q=3, p=x", "", "1, 2, 3", "z=1") + ") }}",
            lambda: self.tag(f"with x = {self.any(1)}, z = x") + "{{ x }}{{ z }}" + self.body(d, in_loop) + self.tag("endwith"),
            lambda: self.tag("generation") + self.body(d) + self.tag("endgeneration"),
            lambda: self.tag(f"filter {self.pick('upper', 'trim', 'trim|lower')}") + self.body(d) + self.tag("endfilter"),
            lambda: "{% macro g() %}<{{ caller() }}>{% endmacro %}" + self.tag("call g()") + self.body(d) + self.tag("endcall"),
            lambda: self.tag("set x, y = 1, [2]") + "{{ x }}{{ y }}", lambda: self.tag("set x = 'q' if b else 'r'") + "{{ x }}",
        )()

    def make(self):
        kind = self.random.random()
        if kind < 0.6:
            return self.PRELUDE + self.output()
        return self.PRELUDE + "{% set ns = namespace(k=1) %}" + self.body(self.random.randrange(1, 4)) + self.pick("", "\n", "\n\n", "end ")


MESSAGES = chat(("user", "Hi <b>"), ("assistant", "Yo"), ("user", "Bye "))


def random_cases(n, seed):
    maker = Maker(seed)
    seen, errors = set(), 0
    while len(seen) < n:
        template = maker.make()
        if template in seen or len(template) > 900:
            continue
        expected = render(template, MESSAGES, add_generation_prompt=True, **TOKENS)
        # A generator, a macro or a bound method prints as its address: not a result.
        if expected is not None and (" at 0x" in expected or "<Macro" in expected or "<Namespace" in expected or "<LoopContext" in expected or "<built-in" in expected or len(expected) > 2000):
            continue
        if expected is None:
            if errors > n // 5:
                continue
            errors += 1
        seen.add(template)
        yield {"t": template.removeprefix(Maker.PRELUDE), "x": expected}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", default=pathlib.Path(__file__).parent.parent / "tests/data/chat_templates", type=pathlib.Path)
    parser.add_argument("--smollm2", help="a GGUF file whose own template is added to families.json (for a run that is not kept)")
    parser.add_argument("--random", type=int, default=700)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    templates = dict(FAMILIES)
    if args.smollm2:
        import gguf
        field = gguf.GGUFReader(args.smollm2).fields["tokenizer.chat_template"]
        templates["smollm2"] = bytes(field.parts[field.data[0]]).decode()
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / "families.json", "w", encoding="utf-8") as file:
        json.dump(list(family_cases(templates)), file, ensure_ascii=False, indent=0)
    if not args.smollm2:
        seeds = pathlib.Path(__file__).parent.parent / "tests/fuzz/corpus/chat_template"
        seeds.mkdir(parents=True, exist_ok=True)
        for name, template in templates.items():
            (seeds / f"{name}.jinja").write_text(template, encoding="utf-8")
    with open(args.out / "random.json", "w", encoding="utf-8") as file:
        cases = ",\n".join(json.dumps(case, ensure_ascii=False) for case in random_cases(args.random, args.seed))
        file.write('{"prelude": %s, "messages": %s,\n"cases": [\n%s\n]}\n' % (json.dumps(Maker.PRELUDE, ensure_ascii=False), json.dumps(MESSAGES), cases))


if __name__ == "__main__":
    main()
