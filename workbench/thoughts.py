"""What of a reply is said aloud: the thoughts of reasoning models, and what comes after them.

Graders, demonstrations and reconstructions all ask ``said_aloud``. Nothing here knows a model.
"""

from __future__ import annotations

import re

# How chat templates of 2024 to 2026 write a thought: what opens it and what closes it.
_TAGS = (
    "think",  # DeepSeek, Qwen, SmolLM3, GLM, Nemotron, Olmo, Granite 3.3, ...
    "thinking",
    "thought",  # EXAONE Deep
    "Thought",  # Marco-o1
    "reasoning",  # Reka
    "seed:think",  # Seed-OSS
    "longcat_think",
)
_OTHERS = (
    ("[THINK]", "[/THINK]"),  # Magistral, Ministral
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),  # Kimi
    ("<|open|>think<|sep|>", "<|close|>think<|sep|>"),  # Kimi K3
    ("<|begin_of_thought|>", "<|end_of_thought|>"),  # Sky-T1, OpenThinker
    ("<|thought_start|>", "<|thought_end|>"),  # MiniCPM
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Cohere
    ("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    ("<|think|>", "<|content|>"),  # Solar Open
    ("<|channel>thought", "<channel|>"),  # Gemma 4
    ("<unused94>thought", "<unused95>"),  # MedGemma
    ("[unused16]", "[unused17]"),  # openPangu
    ("Here is my thought process:", "Here is my response:"),  # Granite 3.2
)
MARKS = (*((f"<{tag}>", f"</{tag}>") for tag in _TAGS), *_OTHERS)
# What wraps the reply itself.
_WRAPPERS = re.compile(
    r"</?response>|<\|(?:begin|end)_of_solution\|>|<\|(?:START|END)_RESPONSE\|>"
    r"|<\|(?:open|close)\|>response<\|sep\|>"
)
_MARK = re.compile("|".join(re.escape(mark) for pair in MARKS for mark in pair))
_CLOSES = dict(MARKS)

# Harmony, the format of gpt-oss: <|channel|>NAME<|message|>...<|end|>, a message a channel. Without
# its control tokens a reply reads "analysis...assistantfinal...".
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w*)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>")
_MESSAGE_ENDS = re.compile(r"<\|(?:end|return|call|start|channel)\|>")
_BARE_FINAL = re.compile(r"\Aanalysis(?=[A-Z]).*assistantfinal", re.DOTALL)
_BARE_ANALYSIS = re.compile(r"\Aanalysis(?=[A-Z])")


def said_aloud(text: str, prompt: str = "", asked: str = "") -> str:
    """The text without its thoughts; "" while a thought is not finished.

    A thought that the prompt opened has only an end: all before it is thought. Before that end only
    the ``prompt`` tells it from speech, where it is known. In harmony only the channel ``final`` is
    said. Where a question ``asked`` for <reasoning>, that is a part of the answer (SciKnowEval).
    """
    text = opened_by(prompt) + text
    if "<|channel|>" in text:
        return _final_channel(text)
    text, endings = _BARE_FINAL.subn("", text)
    if not endings and _BARE_ANALYSIS.match(text):
        return ""
    pieces: list[str] = []
    form = ("<reasoning>", "</reasoning>") if "<reasoning>" in asked else ()
    closes, end = "", 0  # what would close the thought that is open; where the last mark ended
    for mark in _MARK.finditer(text):
        if mark[0] in form or (closes and mark[0] != closes):
            continue  # a thought may speak of marks
        if mark[0] in _CLOSES:
            pieces.append(text[end : mark.start()])
            closes = _CLOSES[mark[0]]
        elif closes:
            closes = ""
        else:  # the prompt opened it, or it went on after a mark that it only spoke of
            pieces.clear()
        end = mark.end()
    if closes:
        return ""
    return _WRAPPERS.sub("", "".join([*pieces, text[end:]])) if end else text


def spoken(text: str, asked: str = "") -> str:
    """What is said aloud, without the blank lines that part it from a thought."""
    said = said_aloud(text, asked=asked)
    return said if said == text else said.lstrip()


def closing(opening: str) -> str:
    """What closes a thought; "" for no thought."""
    return _CLOSES.get(opening, "")


def opened_by(prompt: str) -> str:
    """The mark that a prompt ends with, where it leaves a thought open."""
    end = prompt.rstrip()
    return next((opening for opening in _CLOSES if end.endswith(opening)), "")


def _final_channel(text: str) -> str:
    """The messages of the channel ``final``."""
    messages = []
    for channel in _CHANNEL.finditer(text):
        if channel[1] == "final":
            end = _MESSAGE_ENDS.search(text, channel.end())
            messages.append(text[channel.end() : end.start() if end else None])
    return "\n".join(messages)
