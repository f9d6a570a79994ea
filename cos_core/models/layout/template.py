"""A profile's dialogue as a Jinja chat template: what `encoding.render` writes, for programs that take messages.

Content may be a text or a list of parts; pictures stand where their parts stand. The line break that the wording has behind
every picture belongs to the picture, as in the templates of the hub's LLaVA checkpoints, so that nobody has to send it. A given
system message replaces the profile's.
"""

from __future__ import annotations

import json

from cos_core.dialogue.prompts import Profile, break_after_image
from cos_core.errors import InputError

_TEMPLATE = """\
{%- for message in messages -%}
  {%- if loop.first and message['role'] != 'system' %}{{ SYSTEM }}{% endif -%}
  {%- if message['role'] == 'user' %}{{ USER }}{% endif -%}
  {%- if message['role'] == 'assistant' %}{{ ASSISTANT + ' ' }}{% endif -%}
  {%- if message['content'] is string -%}
    {%- if message['role'] == 'system' %}{{ message['content'] | trim }}{% else %}{{ message['content'] }}{% endif -%}
  {%- else -%}
    {%- for part in message['content'] -%}
      {%- if part['type'] in ['image', 'image_url', 'input_image'] %}{{ IMAGE }}
      {%- elif message['role'] == 'system' %}{{ part['text'] | trim }}
      {%- else %}{{ part['text'] }}{% endif -%}
    {%- endfor -%}
  {%- endif -%}
  {%- if message['role'] == 'system' %}{{ GAP }}{% endif -%}
  {%- if message['role'] == 'assistant' %}{{ END }}{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ ASSISTANT }}{% endif -%}
"""


def chat_template(profile: Profile, image_token: str, *, start: bool) -> str:
    """The template's text; `start`: whether a dialogue begins with the tokenizer's start token.

    Raises InputError for a profile that leaves the roles to the checkpoint's own template.
    """
    if profile.roles != "profile":
        raise InputError(
            f"the profile {profile.name!r} leaves the roles to the checkpoint's own chat template; name one with "
            "roles of its own"
        )
    system = profile.system
    words = {
        "SYSTEM": system,
        "GAP": system[len(system.rstrip()) :] or " ",
        "USER": profile.user,
        "ASSISTANT": profile.assistant,
        "IMAGE": image_token + ("\n" if break_after_image(profile) else ""),
        "END": profile.turn_end,
    }
    pieces = ("{{- bos_token -}}\n" if start else "") + _TEMPLATE
    for name, text in words.items():
        pieces = pieces.replace("{{ " + name + " ", "{{ " + _literal(text) + " ")
    return pieces


def _literal(text: str) -> str:
    """A Jinja string; its braces are apart, so that no later replacement and no tag begins in it."""
    return json.dumps(text, ensure_ascii=False).replace("{", "\\x7b").replace("}", "\\x7d")
