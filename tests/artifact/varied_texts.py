"""Texts of every sort that tokenizers disagree about, the same ones for the same seed."""

from __future__ import annotations

import random

# Ranges of characters: Latin, punctuation, digits and other numerals, accents to combine, Greek to Thai, CJK, Hangul,
# emoji with their joiners, white space of all kinds, characters of no width, controls, private use, far planes.
_RANGES = (
    (0x20, 0x7E),
    (0x20, 0x7E),
    (0x30, 0x39),
    (0xA1, 0x17F),
    (0xB2, 0xB3),
    (0x300, 0x36F),
    (0x370, 0x5FF),
    (0x600, 0x6FF),
    (0x900, 0x97F),
    (0xE00, 0xE7F),
    (0x2000, 0x206F),
    (0x2150, 0x218B),
    (0x2600, 0x27BF),
    (0x3000, 0x30FF),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A3),
    (0xE000, 0xE0FF),
    (0xFE00, 0xFE0F),
    (0x1F300, 0x1F6FF),
    (0x1F1E6, 0x1F1FF),
    (0x20000, 0x2A6DF),
)
_SPACES = (" ", "  ", "    ", "\t", "\n", "\r\n", "\n\n", "\u00a0", "\u2003", "\u3000", "\u200b", "\ufeff", "\u0085")
_WORD_LIST = """
the of and to in a is that it was for on are with as his they be at one have this from
it's IT'S we'll We'LL they're 'Re I'm I'D don't can't rock'n'roll ''' ' 's
0 1 12 123 1234 12345 3.14 1,000,000 0x1F 1e-9 ½ ² ٣٤ Ⅷ ④ 2024-01-31
def return lambda: self.x += 1; ==> != // /* */ #include <stdio.h> {} [[]] __init__ a_b
camelCase HTTPServer
café naïve Übermut ñ e\u0301 Å A\u030a \u0301 ﬁ ſ ß İ ı
Привет मस्ते 你好世界 こんにちは 안녕하세요 שלום สวัสดี កាន់តែពិសេសអាច
🦙 👩‍👩‍👧‍👦 🇨🇭 ✅ 😶‍🌫️ 👍🏽 ☃
https://example.org/a?b=c&d=%20 user@example.com C:\\temp <b>bold</b> ... --- === !!!???
"""
_WORDS = _WORD_LIST.split()


def varied(count: int, special: tuple[str, ...] = (), seed: int = 0) -> list[str]:
    """Return ``count`` texts; ``special`` tokens stand in some of them."""
    chance = random.Random(seed)
    texts = ["", " ", "\n", *_SPACES, *_WORDS, *special]
    while len(texts) < count:
        pieces = []
        for _ in range(chance.randint(1, 12)):
            kind = chance.random()
            if kind < 0.45:
                pieces.append(chance.choice(_WORDS))
            elif kind < 0.65:
                pieces.append("".join(chance.choice(_SPACES) for _ in range(chance.randint(1, 3))))
            elif kind < 0.95 or not special:
                first, last = chance.choice(_RANGES)
                pieces.append("".join(chr(chance.randint(first, last)) for _ in range(chance.randint(1, 6))))
            else:
                pieces.append(chance.choice(special))
            if chance.random() < 0.5:
                pieces.append(" ")
        texts.append("".join(pieces))
    return texts[:count]
