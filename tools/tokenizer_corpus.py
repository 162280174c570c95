# SPDX-License-Identifier: Apache-2.0
"""Strings that tokenizers get wrong, made from a seed: every script, code, white space, emoji, marks, bytes made valid."""
import random
import unicodedata

CODE = [
    "def f(x):\n    return [i**2 for i in range(x) if i % 2 == 0]\n\n\n", "int main(void) {\n\tprintf(\"%d\\n\", 42);\n}\r\n",
    "SELECT * FROM t WHERE a='b' AND c>=1.5e-3;", "<div class=\"x\">&nbsp;</div>\r\n\r\n", "x = {'a': [1, 2.50, None]}  # note",
    "if(!a&&b||c){d+=1;}else{e--;}\t\t// 0xDEADBEEF", "git commit -m \"it's done\" && cd ../..", "a->b::c<d>(e)[0] ?? 'f'",
]
TEXT = [
    "The quick brown fox jumps over the lazy dog.", "I'm sure they'll say we've won, he'd've", "Don'T SHOUT, IT'S I'LL WE'RE YOU'VE",
    "Größenwahn überall, naïve façade", "Съешь ещё этих мягких французских булок", "我能吞下玻璃而不伤身体。", "私はガラスを食べられます。",
    "나는 유리를 먹을 수 있어요.", "أنا قادر على أكل الزجاج و هذا لا يؤلمني.", "אני יכול לאכול זכוכית", "मैं काँच खा सकता हूँ", "Μπορώ να φάω σπασμένα γυαλιά",
    "ฉันกินกระจกได้", "Tôi có thể ăn thủy tinh", "1234567 3.14159 2024-01-01 ١٢٣ १२३ ½ Ⅷ ²", "e\u0301 n\u0303 \u1100\u1161\u11a8 \ufb01",
]
SPACES = [" ", "  ", "    ", "\t", "\n", "\r\n", "\n\n", "\u00a0", "\u3000", "\u2028", "\u0085", "\x0b", "\x0c", "\x1c", "\u200b", "\u180e", "\ufeff"]
EMOJI = ["😀", "👨\u200d👩\u200d👧\u200d👦", "🏳\ufe0f\u200d🌈", "👍🏽", "🇩🇪🇫🇷", "1\ufe0f\u20e3", "🤷🏾\u200d♀\ufe0f", "❤\ufe0f"]
PIECES = ["'s", "'S", "'\u017f", "'re", "'rE", "'VE", "'ll", "'lL", "'d", "'", "''", "▁", "▁▁", "<0x41>", "<s>", "</s>", "Ġ", "<|", "|>", "\u0000", "\ufffd"]
BLOCKS = [b for b in range(0, 0x32000, 0x80)] + [0xE0000, 0xE0100, 0xF0000, 0x10FF80]
MARKS = [chr(c) for c in range(0x110000) if unicodedata.combining(chr(c))]
DECOMPOSABLE = [chr(c) for c in range(0x30000) if unicodedata.decomposition(chr(c)) and not unicodedata.decomposition(chr(c)).startswith("<")]
HANGUL = [chr(c) for r in ((0x1100, 0x1113), (0x1160, 0x1177), (0x11A6, 0x11C4), (0xAC00, 0xAC40)) for c in range(*r)]


def letters(rng, n):
    block = rng.choice(BLOCKS)
    return "".join(chr(c) for c in (block + rng.randrange(0x80) for _ in range(n)) if not 0xD800 <= c < 0xE000)


def fragment(rng, extra):
    kind = rng.randrange(12)
    if kind == 0:
        return letters(rng, rng.randrange(1, 12))
    if kind == 1:
        return "".join(rng.choice(SPACES) for _ in range(rng.randrange(1, 6)))
    if kind == 2:
        return rng.choice([" ", "\n", "\r", "\t"]) * rng.randrange(1, 40)
    if kind == 3:
        return rng.choice(EMOJI)
    if kind == 4:
        return rng.choice(CODE)
    if kind == 5:
        return "".join(rng.choice(["a", "e", "o", "か", "\u0915", *rng.sample(DECOMPOSABLE, 2)]) + "".join(rng.sample(MARKS, rng.randrange(4))) for _ in range(4))
    if kind == 6:
        return bytes(rng.randrange(256) for _ in range(rng.randrange(1, 24))).decode("utf-8", "replace")
    if kind == 7:
        return "".join(rng.choice(HANGUL) for _ in range(rng.randrange(1, 10)))
    if kind == 8:
        return rng.choice(PIECES)
    if kind == 9:
        return str(rng.randrange(10 ** rng.randrange(1, 15)))
    if kind == 10 and extra:
        return rng.choice(["", " ", "  ", "a"]) + rng.choice(extra) + rng.choice(["", " ", "\n ", "b"])
    return rng.choice(TEXT)


def every_character(step=48):
    """Each assigned code point, and some unassigned ones, beside letters, digits, spaces, quotes and line ends."""
    chars = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000
             and (unicodedata.category(chr(c)) not in ("Cn", "Co") or c % 997 == 0)]
    return ["".join(f"{c}a{c} {c}1{c}'s'{c}\n{c} " for c in chars[i:i + step]) for i in range(0, len(chars), step)]


def corpus(n, seed, extra=(), exhaustive=True):
    rng = random.Random(seed)
    out = ["", " ", "  ", "a", " a", "\n", "▁", " ▁", "'", *TEXT, *CODE, *EMOJI, *PIECES, *extra]
    if exhaustive:
        out += every_character()
    while len(out) < n:
        out.append("".join(fragment(rng, extra) for _ in range(rng.randrange(1, 7))))
    out += [c * k for c in (" ", "a", "\n", "=", "é", "😀", "1", "\u0301") for k in (31, 32, 33, 34, 100, 1000)]
    return out
