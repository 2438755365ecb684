"""Compute the order in which a stream goes through a data set: every entry once an epoch, each time in another order.

Any place of any epoch is computed alone, so a resumed run, or one of another batch, reads the same stream.
"""

ROUNDS = 6
WORD = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def entry(seed: int, index: int, count: int) -> int:
    """Return which of `count` entries is sample `index` of the stream that `seed` names.

    A Feistel network is a permutation of all numbers of an even count of bits; those that are no entry are permuted on
    until they are one (cycle walking: Black & Rogaway 2002, section 4).
    """
    epoch, place = divmod(index, count)
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    key = _mix(_mix(seed) + epoch)
    while True:
        left, right = place >> half, place & mask
        for step in range(ROUNDS):
            left, right = right, left ^ (_mix(_mix(key + step) ^ right) & mask)
        place = left << half | right
        if place < count:
            return place


def _mix(number: int) -> int:
    """Scatter 64 bits (SplitMix64: Steele, Lea & Flood 2014)."""
    number = (number + GOLDEN) & WORD
    number = ((number ^ number >> 30) * 0xBF58476D1CE4E5B9) & WORD
    number = ((number ^ number >> 27) * 0x94D049BB133111EB) & WORD
    return number ^ number >> 31
