"""Conversations to tokens: what the model is asked, what it shall answer, and where one ends and the other begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmcl.errors import ConfigError, SampleError
from mmcl.modules.mllm_tokens import Tokens
from mmcl.modules.places import line

ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
MARK = "<image>"
"""Where a question of LLaVA's data shows its picture; the picture always comes first in the first question."""
TEMPLATE = (
    "{% for turn in messages %}{{ turn['role'] | capitalize }}: {{ turn['content'] }}"
    "{% if turn['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""The prompt where a tokenizer brings no chat template: ``User: QUESTION``, a line break, ``Assistant: ANSWER``."""
PROBE = "ANSWER"

Turn = dict[str, str]


@dataclass(frozen=True)
class Exchange:
    """A conversation read.

    Attributes:
        turns: everything before the answer.
        answer: the last turn, the assistant's.
        references: texts that count as right, the answer first.
        choices: answers to choose from, where the sample brings them.
    """

    turns: list[Turn]
    answer: str
    references: list[str]
    choices: list[str] = field(default_factory=list)


def read(value: Any) -> Exchange:
    """The conversation of a sample.

    Args:
        value: a list of turns ``{"role": ..., "content": ...}`` (or LLaVA's ``from`` and ``value``), or a dictionary
            with such a list under ``conversations`` or ``messages``, and perhaps ``answers`` (further right answers)
            and ``choices``.

    Raises:
        SampleError: it is none, or its last turn is no answer.
    """
    more: Mapping[str, Any] = value if isinstance(value, Mapping) else {}
    given = more.get("conversations", more.get("messages")) if more else value
    if not isinstance(given, list) or not given:
        raise SampleError("has no conversation: a list of turns, or a dictionary with one under 'conversations'")
    turns = [_turn(turn) for turn in given]
    if turns[-1]["role"] != "assistant" or not turns[-1]["content"]:
        raise SampleError("is a conversation without an answer: its last turn must be the assistant's, and not empty")
    if len(turns) == 1:
        raise SampleError("is a conversation without a question: an answer alone cannot be asked for")
    answer = turns[-1]["content"]
    return Exchange(turns[:-1], answer, [answer, *_texts(more, "answers")], _texts(more, "choices"))


def _turn(turn: Any) -> Turn:
    if not isinstance(turn, Mapping):
        raise SampleError(f"has a turn that is no dictionary but {type(turn).__name__}")
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if role not in ROLES:
        raise SampleError(f"has a turn of role '{role}'; known: {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise SampleError(f"has a turn whose content is no text but {type(content).__name__}")
    return {"role": ROLES[role], "content": content.strip()}


def _texts(more: Mapping[str, Any], key: str) -> list[str]:
    found = more.get(key, [])
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise SampleError(f"has '{key}' that are no list of texts")
    return found


class Prompter:
    """Renders conversations by the tokenizer's chat template and tells how an answer is written and ended.

    Prompt and answer become tokens separately, so that a prompt is the same whatever the answer is.

    Args:
        tokenizer: of transformers.
        image_token: text of the placeholder that stands for a picture.
        template: Jinja chat template; None takes the tokenizer's, or `TEMPLATE` where it has none.
        model: its name, for messages.

    Raises:
        ConfigError: a template that cannot be used, or no token that ends an answer.
    """

    def __init__(self, tokenizer: Any, image_token: str, template: str | None, model: str) -> None:
        self.tokenizer = tokenizer
        self.image_token = image_token
        self.model = model
        self.template = template or tokenizer.chat_template or TEMPLATE
        self.in_parts = self._takes_parts()
        question = [{"role": "user", "content": "QUESTION"}]
        try:
            prompt = self._render(question, False, True)
            answered = [*question, {"role": "assistant", "content": PROBE}]
            whole = self._render(answered, False, False)
            turns = self._render([*answered, *question], False, False)
        except Exception as error:  # Jinja's own errors and whatever a template raises
            raise ConfigError(f"model '{model}': its chat template cannot be used: {line(error)}") from error
        if not whole.startswith(prompt) or PROBE not in whole[len(prompt) :]:
            raise ConfigError(f"model '{model}': its chat template does not write an answer after its own prompt")
        self.lead, _, tail = whole[len(prompt) :].partition(PROBE)
        self.end = self._end(tail)
        first = tokenizer("a").input_ids[0]
        begins = tokenizer.bos_token is not None and whole.startswith(tokenizer.bos_token)
        self.start = [first] if first == tokenizer.bos_token_id and not begins else []
        control = {*self._written(turns), self.end, tokenizer.convert_tokens_to_ids(image_token)}
        self.tokens = Tokens(tokenizer, control)

    def prompt(self, turns: Sequence[Turn], picture: str | None) -> list[int]:
        """Token ids of everything before an answer.

        Args:
            turns: of the conversation, without the answer.
            picture: the placeholder repeated for each feature of the picture; None without a picture.

        Raises:
            SampleError: the template refuses the turns, or there is nowhere to put the picture.
        """
        clean = [{**turn, "content": self._content(turn["content"])} for turn in turns]
        try:
            text = self._render(clean, picture is not None, True)
        except Exception as error:  # a template may refuse an order of turns
            raise SampleError(f"does not fit the chat template: {line(error)}") from error
        if picture is not None:
            if text.count(self.image_token) != 1:
                raise SampleError("has a picture but no question of the user's to show it with")
            text = text.replace(self.image_token, picture)
        return self.start + self.tokens.encode(text)

    def answer(self, text: str) -> list[int]:
        """Token ids of an answer, the token that ends it included."""
        return [*self.tokens.encode(self.lead + self.tokens.shield(text)), self.end]

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, nothing added. What looks like a special token in it is text."""
        return self.tokens.encode(self.tokens.shield(text))

    def _content(self, text: str) -> str:
        """What a turn says, without marks of a picture's place and, for the template, without special tokens."""
        for mark in (MARK, self.image_token):
            text = text.replace(mark, "")
        return self.tokens.shield(text.strip())

    def _written(self, text: str) -> list[int]:
        """Token ids of what the template writes itself."""
        found: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return found

    def _render(self, turns: Sequence[Turn], picture: bool, ask: bool) -> str:
        place = next((i for i, turn in enumerate(turns) if turn["role"] == "user"), None) if picture else None
        messages: list[dict[str, Any]] = []
        for i, turn in enumerate(turns):
            content: Any = turn["content"]
            if self.in_parts:
                content = [{"type": "text", "text": content}]
                content = [{"type": "image"}, *content] if i == place else content
            elif i == place:
                content = f"{self.image_token}\n{content}"
            messages.append({"role": turn["role"], "content": content})
        rendered: str = self.tokenizer.apply_chat_template(
            messages, chat_template=self.template, tokenize=False, add_generation_prompt=ask
        )
        return rendered

    def _takes_parts(self) -> bool:
        """Whether the template shows pictures itself; one of a language model only knows texts."""
        self.in_parts = True
        try:
            text = self._render([{"role": "user", "content": "QUESTION"}], True, False)
        except Exception:  # such a template joins a text with a list
            return False
        return text.count(self.image_token) == 1

    def _end(self, tail: str) -> int:
        special = set(self.tokenizer.added_tokens_decoder)
        following = self._written(tail)
        if following and following[0] in special:
            return following[0]
        if self.tokenizer.eos_token_id is None:
            raise ConfigError(f"model '{self.model}': neither its chat template nor its tokenizer ends an answer")
        return int(self.tokenizer.eos_token_id)
