"""A command line as bash has it, into words and back."""

from __future__ import annotations

_BARE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./@%+,:=^-#")
_ESCAPED_IN_DOUBLE = '$`"\\!'


class Line:
    """Splits the text before the cursor: whole `words`, and the one being typed.

    `current` is that word without its quotes, `quote` the quote that is open in it ("" for none). `prefix_length` counts the
    characters of `current` before bash's last word break: bash replaces only what follows.
    """

    def __init__(self, text: str, breaks: str = "") -> None:
        self.words: list[str] = []
        self.current, self.quote, self.prefix_length = "", "", 0
        self._started = False
        place = 0
        while place < len(text):
            place = self._take(text, place, breaks)

    def _take(self, text: str, place: int, breaks: str) -> int:
        """Reads one character, or two with a backslash."""
        char = text[place]
        if self.quote == "'":
            self._add(char, char == "'")
        elif char == "\\" and place + 1 < len(text):
            following = text[place + 1]
            plain = self.quote == '"' and following not in _ESCAPED_IN_DOUBLE
            self._add(("\\" if plain else "") + following)
            return place + 2
        elif self.quote:
            self._add(char, char == self.quote)
        elif char in "'\"":
            self.quote, self._started = char, True
            self.prefix_length = len(self.current)
        elif char.isspace():
            self._end()
        else:
            self._add(char)
            if char in breaks:
                self.prefix_length = len(self.current)
        return place + 1

    def _add(self, char: str, closes: bool = False) -> None:
        self._started = True
        if closes:
            self.quote = ""
        else:
            self.current += char

    def _end(self) -> None:
        if self._started:
            self.words.append(self.current)
        self.current, self.prefix_length, self._started = "", 0, False


def quoted(text: str, quote: str) -> str:
    """`text` escaped for the command line: for the inside of an open `quote`, or with backslashes where `quote` is ""."""
    if quote == "'":
        return text.replace("'", "'\\''")
    if quote == '"':
        return "".join("\\" + c if c in _ESCAPED_IN_DOUBLE else c for c in text)
    characters = (c if c in _BARE or not c.isascii() else "\\" + c for c in text)
    bare = "".join(characters)
    return "\\" + bare if bare.startswith("#") else bare
