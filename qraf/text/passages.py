"""Documents cut into passages: about as long as one thought, each with the headings that say what it is about."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["passages"]

_MAX_TITLE_WORDS = 14
_CHARS_PER_WORD = 12  # text of longer words (Chinese, base64, code) counts as one word for every so many characters

_MARKDOWN = re.compile(r"#{1,6}\s+(\S.*?)\s*#*\s*$")
_UNDERLINE = re.compile(r"\s*([=\-~^\"'`#*+.:])\1{2,}\s*$")
_FENCE = re.compile(r"\s*(```|~~~)")
_CODE = re.compile(r"(?: {4,}|\t)\s*\S")
_SESSION = re.compile(r"\s*>>>")
_LISTED = re.compile(r"\s*(?:[-*+•]|\d{1,3}[.)])\s+\S")
# a sentence ends at its mark and what closes it, before a space and something other than a small letter
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s+[^\sa-z])|[。！？]+[”’」』）]*")


def passages(text: str, max_words: int = 120) -> list[str]:
    r"""The text in passages of at most `max_words` words, cut at the ends of sentences or lines of code.

    A passage opens with the document's title (its first heading, or a short first line) and the heading of its
    section, which are not counted. Short sections share a passage; a sentence that is too long is cut between words.
    Every word is in some passage, in order; empty text has none. Runs in time linear in the text.

    >>> passages("Tea\n\nBoil water. Pour it over the leaves. Wait.", max_words=6)
    ['Tea\nBoil water.', 'Tea\nPour it over the leaves. Wait.']
    """
    if _num_words(text) <= max_words:
        return [text.strip()] if text.strip() else []
    sections = list(_sections(text.splitlines()))
    title = sections[0].heading
    builder = _Builder(title, max_words)
    for section in sections:
        builder.add(section)
    builder.flush()
    return builder.done


@dataclass(slots=True)
class _Section:
    heading: str
    lines: list[str] = field(default_factory=list)


class _Builder:
    """Fills passages section by section."""

    def __init__(self, title: str, max_words: int) -> None:
        self.title, self.max_words = title, max_words
        self.done: list[str] = []
        self._parts: list[str] = []
        self._words = self._headings = 0  # characters of headings without a text of their own

    def add(self, section: _Section) -> None:
        units = [(unit, _num_words(unit)) for unit in _units(section.lines, self.max_words)]
        if self._words >= self.max_words / 2 and self._words + sum(words for _, words in units) > self.max_words:
            self.flush()
        self._open(section.heading)
        for unit, words in units:
            if self._words and self._words + words > self.max_words:
                self.flush()
                self._open(section.heading)
            self._parts.append(unit)
            self._words += words
        self._headings += 0 if units else len(section.heading)
        if self._headings > self.max_words * _CHARS_PER_WORD:
            self.flush()

    def flush(self) -> None:
        """End the passage."""
        if self._parts:
            self.done.append("".join(self._parts).strip())
            self._parts, self._words, self._headings = [], 0, 0

    def _open(self, heading: str) -> None:
        if not self._parts and self.title and heading != self.title:
            self._parts.append(self.title + "\n")
        if heading:
            self._parts.append(("" if not self._parts or self._parts[-1].endswith("\n") else "\n") + heading + "\n")


def _sections(lines: list[str]) -> Iterator[_Section]:
    """The text between headings; the first section's heading is the title, which may be empty."""
    section = _Section("")
    is_code = is_begun = False
    at = 0
    while at < len(lines):
        line = lines[at]
        following = lines[at + 1] if at + 1 < len(lines) else ""
        heading, used = "", 1
        if _FENCE.match(line):
            is_code = not is_code
        elif not is_code and line.strip():
            if found := _MARKDOWN.match(line):
                heading = found[1]
            elif _UNDERLINE.match(following) and not _UNDERLINE.match(line) and _is_short(line):
                heading, used = line.strip(), 2
            elif not is_begun and not following.strip() and _is_short(line):
                heading = line.strip()
        if heading:
            if is_begun:
                yield section
            section = _Section(heading)
        elif line.strip() or is_begun:
            section.lines.append(line)
        is_begun = is_begun or bool(line.strip())
        at += used
    yield section


def _units(lines: list[str], max_words: int) -> Iterator[str]:
    """What is never cut in two, each with the space or line end that follows it: sentences, lines of code and lists."""
    paragraph: list[str] = []
    is_fenced = is_session = False  # an interpreter's session has its output after it, up to an empty line
    for line in lines:
        is_fence = bool(_FENCE.match(line))
        is_session = bool(line.strip()) and (is_session or bool(_SESSION.match(line)))
        is_kept = is_fenced or is_fence or is_session or not line.strip() or bool(_CODE.match(line) and not paragraph)
        is_fenced ^= is_fence
        if paragraph and (is_kept or _LISTED.match(line)):
            yield from _sentences(" ".join(paragraph), max_words)
            paragraph = []
        if not is_kept:
            paragraph.append(line.strip() if paragraph else line.rstrip())
        elif line.strip():
            yield from _fitting(line.rstrip(), max_words, "\n")
    if paragraph:
        yield from _sentences(" ".join(paragraph), max_words)


def _sentences(text: str, max_words: int) -> Iterator[str]:
    start = 0
    for end in _SENTENCE_END.finditer(text):
        sentence = text[start : end.end()]
        start = end.end()
        is_spaced = start < len(text) and text[start].isspace()
        yield from _fitting(sentence.lstrip() if start else sentence, max_words, " " if is_spaced else "")
    yield from _fitting(text[start:].strip(), max_words, "\n")


def _fitting(unit: str, max_words: int, after: str = "") -> Iterator[str]:
    """The unit, or pieces of it where it is longer than a passage may be."""
    if _num_words(unit) <= max_words:
        if unit.strip():
            yield unit + after
        return
    piece: list[str] = []
    count = 0
    longest = max_words * _CHARS_PER_WORD - 1
    for word in unit.split():
        for part in (word[at : at + longest] for at in range(0, len(word), longest)):
            cost = _num_words(part)
            if piece and count + cost > max_words:
                yield " ".join(piece) + " "
                piece, count = [], 0
            piece.append(part)
            count += cost
    yield " ".join(piece) + (after or " ")


def _num_words(text: str) -> int:
    return max(len(text.split()), len(text) // _CHARS_PER_WORD)


def _is_short(line: str) -> bool:
    return len(line) <= 120 and len(line.split()) <= _MAX_TITLE_WORDS
