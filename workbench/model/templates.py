"""Between messages and token ids: the chat template, its options and date, and what ends a turn.

    prompt_ids   a conversation up to the assistant's header
    text_ids     what somebody says: text that spells a control token is text
    end          what the template puts after a reply
    check        refuses, in a sentence, tokenizers that lose text and templates without the message

Content is kept apart from the template's own marks: where it spells a control token, it is encoded
by a copy of the tokenizer in which control tokens have names that nobody can write.
"""

from __future__ import annotations

import json
import random
import re
import secrets
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cached_property
from pathlib import Path

from workbench.core import Message, WorkbenchError, refuse_if, refuse_on
from workbench.thoughts import MARKS

# What a tokenizer must give back as it was.
PLAIN = (
    "the answer is 42",
    "two  spaces, three   more",
    "First line\n\n  second line\n",
    "UPPER and lower: 1,234.50 + 7*8 = -9%",
    "Is it 3 , or 'x' ? It isn 't .",
)
# So must these, unless it says that it does not know a character. (Not the four signs that NFC
# rewrites: many a tokenizer composes them.)
BEYOND_ASCII = (
    "caf\u00e9 na\u00efve \u00dcber",
    "x\u00b2 + \u00bd \u2264 \u221a2",
    "a\tb",
    "\u4e2d\u6587 \u0440\u0443\u0441 \uff21",
)
CONTENT = "QZXCONTENTXZQ"  # stands for what somebody says; no template changes it but for its case
_LIKE_CONTROL = re.compile(r"<[|\uff5c].*[|\uff5c]>")
THOUGHTS = {mark for pair in MARKS for mark in pair}
GIVEN = {"messages", "tools", "documents", "add_generation_prompt"}  # by who calls a template


class Template:
    """A tokenizer's chat template with its options, at a moment that does not go on.

    ``stops``: tokens that end a turn whatever the template says. Raises WorkbenchError where there
    is none, and for an option that it does not read.
    """

    def __init__(self, tokenizer, name: str, options: Mapping | None, stops: Sequence[int]):
        self.tokenizer, self.name = tokenizer, name
        self.options = dict(options or {})
        self.moment = datetime.now()
        self.stops = stops
        refuse_if(
            tokenizer.chat_template and not isinstance(tokenizer.chat_template, str | dict),
            f"the chat template of {name} is no text",
        )
        refuse_if(
            not tokenizer.chat_template,
            f"{name or 'the model'} has no chat template: take an instruction-tuned "
            "model, or set tokenizer.chat_template",
        )
        unknown = sorted(self.options.keys() - self.reads) if self.options else ()
        if unknown:
            known = ", ".join(sorted(self.reads)) or "no options"
            raise WorkbenchError(
                f"the chat template of {name} does not read {', '.join(unknown)}: it takes {known}"
            )

    @property
    def _source(self) -> str:
        # several, and none of them by default
        with refuse_on(ValueError, f"the chat template of {self.name} cannot be chosen", why=True):
            return self.tokenizer.get_chat_template()

    @property
    def _compiled(self):
        # the object that the tokenizer itself renders with, compiled once
        from transformers.utils.chat_template_utils import _compile_jinja_template

        # it is a program, and may be none
        with refuse_on(Exception, f"the chat template of {self.name} cannot be read", why=True):
            return _compile_jinja_template(self._source)

    @cached_property
    def reads(self) -> frozenset[str]:
        """The options that the template looks at."""
        from jinja2 import meta

        environment = self._compiled.environment
        names = meta.find_undeclared_variables(environment.parse(self._source))
        given = GIVEN | environment.globals.keys() | self.tokenizer.special_tokens_map.keys()
        return frozenset(names - given)

    def record(self) -> dict:
        """What a run must keep to see the same prompts again; {} for a template without either."""
        record = {"options": self.options} if self.options else {}
        if "strftime_now" in self._source:
            record["date"] = self.moment.isoformat(timespec="seconds")
        return record

    def restore(self, record: Mapping) -> None:
        """Take up what ``record`` said, but for options that are given anew."""
        self.options = self.options or dict(record.get("options", {}))
        if "date" in record:
            self.moment = datetime.fromisoformat(record["date"])

    # ---- rendering

    @contextmanager
    def _fixed(self) -> Iterator[None]:
        """The template's date is the run's, and what it draws is the same each time."""
        names, state = self._compiled.globals, random.getstate()
        names["strftime_now"] = self.moment.strftime
        random.seed(0)
        try:
            yield
        finally:
            random.setstate(state)
            del names["strftime_now"]

    def render(self, messages: Iterable[Message], header: bool = True) -> str:
        """The conversation as text, with the assistant's header behind it."""
        refused = f"the chat template of {self.name} refuses this prompt"
        # the template's own: "System role not supported", "Conversation roles must alternate", ...
        # or any: it is a program
        with refuse_on(Exception, refused, why=True), self._fixed():
            return self.tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=header, **self.options
            )

    @cached_property
    def _takes_parts(self) -> bool:
        """Does the template want content as a list of parts, and leave out mere text?"""
        refused = False
        for as_parts in (False, True):
            content = _parts(CONTENT) if as_parts else CONTENT
            try:
                text = self.render([{"role": "user", "content": content}])
            except WorkbenchError:  # it may want a system message: a real prompt will tell
                refused = True
                continue
            if CONTENT in text.upper():
                return as_parts
        refuse_if(
            not refused,
            f"the chat template of {self.name} leaves out what the user says, as text and as a "
            "list of parts",
        )
        return False

    def prompt_ids(self, messages: Iterable[Message]) -> tuple[int, ...]:
        """Raises WorkbenchError where the template refuses the conversation."""
        messages = [dict(message) for message in messages]
        marked = [message | {"content": self._mark(message)} for message in messages]
        rendered = (
            [m | {"content": _parts(m["content"])} for m in marked] if self._takes_parts else marked
        )
        text = self.render(rendered)
        if marked == messages:
            return self._ids(text)
        text = self._control.sub(lambda token: self._alias[token[0]], text)
        for token, mark in self._marks.items():
            text = text.replace(mark, token)
        return tuple(self._literal.encode(text, add_special_tokens=False).ids)

    def _mark(self, message: Message) -> str:
        """What is said, with a sign nobody writes in place of each control token that it spells.

        Of a reply that is quoted, thoughts keep their marks: templates cut it there.
        """
        spoken = self._control if message["role"] != "assistant" else self._control_of_replies
        return spoken.sub(lambda token: self._marks[token[0]], message["content"])

    # ---- texts

    def _ids(self, text: str) -> tuple[int, ...]:
        # who asks looks at the length, and says so in a sentence
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return tuple(ids)

    def text_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of a reply's text. None of them ends the turn; thoughts keep their marks."""
        if not self._control_of_replies.search(text):
            return self._ids(text)
        for token, alias in self._alias.items():
            text = text.replace(token, alias) if token in THOUGHTS else text
        return tuple(self._literal.encode(text, add_special_tokens=False).ids)

    def spells_control(self, text: str) -> bool:
        return bool(self._control_of_replies.search(text))

    @cached_property
    def _controls(self) -> dict[int, str]:
        """Special tokens, and other added ones that the template writes, that end a turn or that
        look like <|this|>; not white space.
        """
        turn = [{"role": role, "content": CONTENT} for role in ("system", "user", "assistant")]
        lexed = self._compiled.environment.lex(self._source)
        written = "\n".join(text for _, kind, text in lexed if kind in ("data", "string"))
        for messages in (turn, turn[1:]):
            with suppress(WorkbenchError):
                written += self.render(messages)
        return {
            place: token.content
            for place, token in self.tokenizer.added_tokens_decoder.items()
            if token.content.strip()
            and (
                token.special
                or place in self.stops
                or (token.content in written and not token.content.isalnum())
                or _LIKE_CONTROL.fullmatch(token.content)
            )
        }

    @cached_property
    def _control(self) -> re.Pattern:
        return _any_of(self._controls.values())

    @cached_property
    def _control_of_replies(self) -> re.Pattern:
        return _any_of(set(self._controls.values()) - THOUGHTS)

    @cached_property
    def _alias(self) -> dict[str, str]:
        return _unwritable(self._controls.values())

    @cached_property
    def _marks(self) -> dict[str, str]:
        return _unwritable(self._controls.values())

    @cached_property
    def _literal(self):
        """The tokenizer with other names for its control tokens, and the same ids."""
        from tokenizers import Tokenizer

        refuse_if(
            getattr(self.tokenizer, "backend_tokenizer", None) is None,
            f"a text spells a control token, which the tokenizer of {self.name} cannot write "
            "as text",
        )
        alias = self._alias
        content = json.loads(self.tokenizer.backend_tokenizer.to_str())
        model = content["model"]
        for token in content["added_tokens"]:
            token["content"] = alias.get(token["content"], token["content"])
        if isinstance(model["vocab"], dict):
            model["vocab"] = {alias.get(word, word): i for word, i in model["vocab"].items()}
        else:
            model["vocab"] = [[alias.get(word, word), score] for word, score in model["vocab"]]
        if model.get("unk_token") in alias:
            model["unk_token"] = alias[model["unk_token"]]
        if "merges" in model:
            model["merges"] = [m for m in model["merges"] if not _joins(m, alias)]
        return Tokenizer.from_str(
            json.dumps(content | dict.fromkeys(("post_processor", "padding", "truncation")))
        )

    # ---- the end of a turn

    @cached_property
    def end(self) -> tuple[int, ...]:
        """What the template puts after a reply, through its first control token; else its words;
        EOS where it puts nothing. () for a tokenizer without EOS.
        """
        turn = [{"role": role, "content": CONTENT} for role in ("user", "assistant")]
        if self._takes_parts:
            turn = [message | {"content": _parts(message["content"])} for message in turn]
        text = ""
        with suppress(WorkbenchError):
            text = self.render(turn, header=False)
        *_, through = (0, *(said.end() for said in re.finditer(CONTENT, text, re.IGNORECASE)))
        reply, rest = text[:through], text[through:] if through else ""
        after = self._ids_after(reply, rest)
        for place, token in enumerate(after):
            if self.is_control(token):
                return after[: place + 1]
        if rest.strip():
            return self._ids_after(reply, rest.rstrip())
        eos = self.tokenizer.eos_token_id
        return () if eos is None else (eos,)

    def is_control(self, token: int) -> bool:
        return token in self._controls

    def _ids_after(self, before: str, text: str) -> tuple[int, ...]:
        """Token ids of a text that follows another one."""
        head, whole = self._ids(before), self._ids(before + text)
        return whole[len(head) :] if whole[: len(head)] == head else self._ids(text)


def _parts(text: str) -> list[dict]:
    return [{"type": "text", "text": text}]


def _any_of(words: Iterable[str]) -> re.Pattern:
    """Any of the words, the longest first; nothing where there are none."""
    longest_first = sorted(words, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _unwritable(words: Iterable[str]) -> dict[str, str]:
    """A name for each word that nobody can know: private characters and digits, without case."""
    nonce = secrets.randbits(64)
    return {word: f"\ue000{nonce}\ue001{i}\ue000" for i, word in enumerate(words)}


def _joins(merge: str | Sequence[str], words: Mapping) -> bool:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return any(piece in words for piece in (left, right, left + right))


def _recorded(folders: Iterable[str | Path | None]) -> dict:
    """What the run keeps whose model or adapter is in one of the folders; {} for none."""
    for folder in filter(None, folders):
        with suppress(OSError, ValueError, KeyError, TypeError):
            config = Path(folder).expanduser().parent / "config.json"
            return dict(json.loads(config.read_text(encoding="utf-8"))["template"])
    return {}


# ---- when models are loaded


def settle(policy, *folders: str | Path | None) -> None:
    """A policy that came out of a run reads its prompts as the run did; then it is checked.

    Raises WorkbenchError where the tokenizer loses text, the template loses the message, or nothing
    ends a turn.
    """
    template, unknown = policy.template, policy.tokenizer.unk_token_id
    template.restore(_recorded(folders))
    for text in (*PLAIN, *BEYOND_ASCII):
        ids = template.text_ids(text)
        said = policy.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        refuse_if(
            said != text and not (text in BEYOND_ASCII and unknown in ids),
            f"the tokenizer of {policy.name} loses text: {text!r} comes back as {said!r}",
        )
    _ = template._takes_parts, policy.end


def follow(expert, policy) -> None:
    """A teacher reads with the policy's options and date, and one warning says where it was trained
    with other prompts: those that it reads are the policy's.
    """
    options = policy.template.options.items()
    taken = {name: value for name, value in options if name in expert.template.reads}
    expert.template.restore({"options": taken, "date": policy.template.moment.isoformat()})
    theirs, ours = _shape(expert), _shape(policy)
    if theirs != ours:
        warnings.warn(
            f"the teacher {expert.name} has another chat template than {policy.name}: where it "
            f"scores, it reads {ours!r} and not its own {theirs!r}",
            stacklevel=4,
        )


def _shape(policy) -> str:
    """A question and the end of a reply as the template writes them."""
    with suppress(WorkbenchError):
        prompt = policy.prompt_ids([{"role": "user", "content": "..."}])
        return policy.tokenizer.decode([*prompt, *policy.text_ids("..."), *policy.end])
    return ""
