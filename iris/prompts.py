"""Prompts as text: checked, cleaned, and emoji spelled out. No torch here: the runtime without it reads the same prompts."""

from __future__ import annotations

import re
import unicodedata

MAX_PROMPT_CHARACTERS = 1000


class PromptError(ValueError):
    """A prompt that is not acceptable; the message says what is."""


def clean_prompt(prompt: object) -> str:
    """The prompt without surrounding blanks and control characters; "" is allowed.

    Raises PromptError if it is not a string or is longer than 1000 characters.
    """
    if not isinstance(prompt, str):
        raise PromptError(f"a prompt must be text, not {type(prompt).__name__}.")
    prompt = prompt.strip()
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise PromptError(f"the prompt has {len(prompt)} characters; use at most {MAX_PROMPT_CHARACTERS}.")
    return without_control(prompt).strip()


def clean_negative_prompt(prompt: object) -> str | None:
    """The same for what guidance steers away from; None where nothing is said, which is the null caption and not an empty one."""
    return None if prompt is None else clean_prompt(prompt) or None


def without_control(text: str) -> str:
    """Line breaks and tabs become blanks; other control characters and lone surrogates (not encodable) are removed."""
    kept = (" " if char.isspace() else char for char in text if char.isspace() or unicodedata.category(char) not in ("Cc", "Cs"))
    return "".join(kept)


# Characters whose Unicode name would mislead: there "black" and "white" mean filled and outlined.
_EMOJI_WORDS = {
    "\u2600": "sun", "\u263a": "smiling face", "\u2639": "frowning face", "\u2705": "check mark button", "\u261d": "index pointing up",
    "\U0001f446": "backhand index pointing up", "\U0001f447": "backhand index pointing down",
    "\U0001f448": "backhand index pointing left", "\U0001f449": "backhand index pointing right",
    "\u260e": "telephone", "\u2665": "red heart suit", "\u2660": "spade suit", "\u2663": "club suit",
    "\u2666": "red diamond suit", "\u2764": "red heart", "\u2b50": "star", "\u2712": "pen nib", "\u20e3": "keycap",
    "\u2605": "star", "\u2606": "star", "\u25cf": "circle", "\u25cb": "circle", "\u25a0": "square", "\u25a1": "square",
    "\u25b2": "triangle", "\u25b3": "triangle", "\u25c6": "diamond", "\u25c7": "diamond",
    "\U0001f3fb": "light skin tone", "\U0001f3fc": "medium-light skin tone", "\U0001f3fd": "medium skin tone",
    "\U0001f3fe": "medium-dark skin tone", "\U0001f3ff": "dark skin tone",
}  # fmt: skip


def spell_emoji(text: str) -> str:
    """Replace every emoji by its Unicode name in lower case, set off by blanks: encoders know words, not pictures.

    Joiners and variation selectors of emoji sequences are dropped; all other text, whatever its script, is unchanged.
    """
    if text.isascii():
        return text
    pieces: list[str] = []
    after_emoji = False
    for char in text:
        words = _emoji_name(char)
        if words:
            pieces.append(f" {words} ")
            after_emoji = True
        elif char in "\ufe0e\ufe0f" or (after_emoji and unicodedata.category(char) == "Cf"):
            continue
        else:
            pieces.append(char)
            after_emoji = False
    return re.sub(r" {2,}", " ", "".join(pieces)).strip()


def _emoji_name(char: str) -> str:
    """The words for one emoji character, "" for every other character."""
    if char in _EMOJI_WORDS:
        return _EMOJI_WORDS[char]
    is_picture = ord(char) >= 0x2190 and unicodedata.category(char) == "So"
    return unicodedata.name(char, "").lower() if is_picture else ""
