"""Masking of one row in plain Python, written from the description and sharing no code with it.

Slow and obvious: integers, lists and bytes. `masked_row` says what becomes of each predicted
position; the tests compare it with `stream.masking` position by position.
"""

from __future__ import annotations

from itertools import pairwise

from roberta_dist.config.data import MaskingConfig, MaskSelection, MaskUnit
from roberta_dist.corpus.bpe import ROLES, Bpe, byte_alphabet

U64 = 2**64 - 1
PHI = 0x9E3779B97F4A7C15
WHITESPACE = tuple(chr(c).encode() for c in range(0x3001) if chr(c).isspace())


def mix64(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & U64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & U64
    return z ^ (z >> 31)


def counter(key: int, number: int) -> int:
    return mix64((key + (number + 1) * PHI) & U64)


def token_bytes(bpe: Bpe) -> dict[int, bytes]:
    """The bytes of every token but the specials."""
    byte_of = {character: byte for byte, character in byte_alphabet().items()}
    return {
        number: bytes(byte_of[c] for c in token)
        for token, number in bpe.vocab.items()
        if token not in ROLES.values()
    }


def words_of(tokens: list[int], spelt: dict[int, bytes], longest: int) -> list[list[int]]:
    """Positions of each word of a row; a special token (one without bytes) is a word of its own."""
    words: list[list[int]] = []
    for position, token in enumerate(tokens):
        before = tokens[position - 1] if position else None
        if token not in spelt or before not in spelt:
            words.append([position])
            continue
        after_space = spelt[before].endswith(WHITESPACE)
        after_text = not spelt[before].decode(errors="replace").isspace()
        new = after_text if after_space else spelt[token].startswith(WHITESPACE)
        if new and not 0x80 <= spelt[token][0] <= 0xBF:
            words.append([position])
        else:
            words[-1].append(position)
    return [piece for word in words for piece in cut_long(word, tokens, spelt, longest)]


def cut_long(word: list[int], tokens: list[int], spelt: dict[int, bytes], longest: int):
    """A long word in pieces: cut at each multiple of `longest`, or at the next character after it."""
    cuts = {0, len(word)}
    for multiple in range(longest, len(word), longest):
        for offset in range(multiple, len(word)):
            if not 0x80 <= spelt[tokens[word[offset]]][0] <= 0xBF:
                cuts.add(offset)
                break
    ordered = sorted(cuts)
    return [word[a:b] for a, b in pairwise(ordered)]


def predicted(
    config: MaskingConfig, key: int, units: list[list[int]], stretches: list[int]
) -> dict[int, int | None]:
    """Predicted positions of a row whose key is `key`; the value is the span's second hash, or None.

    `stretches[u]` numbers the run of units without a gap that unit u lies in.
    """
    select_below = round(config.probability * 2**32)
    if config.selection is MaskSelection.bernoulli:
        chosen = [u for u in units if counter(key, u[0]) >> 32 < select_below]
        return {position: None for unit in chosen for position in unit}
    size = sum(len(unit) for unit in units)
    left = (size * select_below + (counter(key, 2**32) >> 32)) >> 32
    coin = counter(key, 2**32 + 1) >> 32
    taken: dict[int, int | None] = {}
    if config.unit is not MaskUnit.span:
        for unit in sorted(units, key=lambda u: (counter(key, u[0]), u[0])):
            if left > 0 and (len(unit) <= left or (coin * len(unit)) >> 32 < left):
                taken |= dict.fromkeys(unit)
            left -= len(unit)
        return taken
    flat = [number for number, unit in enumerate(units) for _ in unit]
    for attempt in range(64 + 64 * left // 8):
        if left <= 0:
            break
        bits = counter(key, 2**32 + 2 + attempt)
        first = flat[((bits & (2**32 - 1)) * size) >> 32]
        span = [
            number
            for number in range(first, first + span_words(config, bits >> 32))
            if number < len(units) and stretches[number] == stretches[first]
        ]
        if any(units[number][0] in taken for number in span):
            continue
        for number in span:
            unit = units[number]
            if left > 0 and (len(unit) <= left or (coin * len(unit)) >> 32 < left):
                taken |= dict.fromkeys(unit, mix64((bits + PHI) & U64))
            left -= len(unit)
    return taken


def span_words(config: MaskingConfig, draw: int) -> int:
    """Words of a span from 32 random bits: the geometric distribution cut at max_span."""
    chances = [config.span_p * (1 - config.span_p) ** k for k in range(config.max_span)]
    below = 0.0
    for words, chance in enumerate(chances, start=1):
        below += chance
        if draw < round(below / sum(chances) * 2**32):
            return words
    return config.max_span


def masked_row(
    config: MaskingConfig,
    seed_key: int,
    mask_row: int,
    tokens: list[int],
    spelt: dict[int, bytes],
    roles: dict[str, int],
) -> dict[int, int]:
    """Predicted position → what stands there after masking."""
    if mask_row < 0:
        return {}
    specials = set(roles.values())
    never = {roles["pad"], roles["mask"]} if config.mask_specials else specials
    ordinary = [token for token in range(max(*specials, *spelt) + 1) if token not in specials]
    key = counter(seed_key, mask_row)
    if config.unit is MaskUnit.token:
        units = [[position] for position in range(len(tokens))]
    else:
        units = words_of(tokens, spelt, config.max_word_tokens)
    allowed = [unit for unit in units if tokens[unit[0]] not in never]
    stretches = [
        sum(1 for other in units if other[0] < unit[0] and tokens[other[0]] in never)
        for unit in allowed
    ]
    mask_below = round(config.mask_fraction * 2**32)
    random_below = mask_below + round(config.random_fraction * 2**32)
    result = {}
    for position, of_span in predicted(config, key, allowed, stretches).items():
        second = mix64((counter(key, position) + PHI) & U64)
        decision = (second if of_span is None else of_span) >> 32
        if decision < mask_below:
            result[position] = roles["mask"]
        elif decision < random_below:
            result[position] = ordinary[(second & (2**31 - 1)) * len(ordinary) >> 31]
        else:
            result[position] = tokens[position]
    return result
