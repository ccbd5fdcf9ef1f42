"""What one payload may ask of the side that decodes it. The encoder keeps to the same limits."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, eq=False)  # compared by identity: it is a key of a cache that each item asks
class PayloadLimits:
    """Limits of one payload. Both sides must use the same, or the device sends what the cloud refuses.

    Attributes:
        head_bytes: array table, small arrays and pickle. Python looks at every part of it, so it is small;
            what is large in an item is arrays, and they travel in the body. It leaves room for the control
            fields in a message's head of 1 MiB.
        body_bytes: two 4K frames of 3 channels fit.
        raw_bytes: all arrays after decompression, together: a few kB may expand to it. Not more than a body, so
            that an item travels with any codec or with none.
        arrays: entries of the array table; the contours of a noisy picture are thousands of small arrays.
        buffers: arrays in the body. Each is a part of one scatter-gather send, and systems take 1,024.
        dimensions: NumPy 1 has 32 at most.
        levels: nesting of tuples, lists, dicts, sets and objects. Python's hash of a nested tuple recurses
            without a check of the C stack.
        containers: tuples, lists, dicts, sets and objects in all. One byte of a pickle can make an empty set of
            216 bytes.
        proof: values still to be looked at, summed over levels: what the proof of a pickle costs. A list of
            500,000 numbers within ten other containers passes.
        hashed: set members and dict keys that are neither text, bytes, None nor numbers of up to 64 bits. A peer
            can choose such values to have equal hashes, and a set of them takes quadratic time.
        numbers: set members and dict keys that are numbers other than of 8 or 16 bits. A peer can choose them so that
            each is put behind all before it: 80,000 of them in 500 kB stopped the interpreter for six seconds.
    """

    head_bytes: int = 1 * MIB - 1024
    body_bytes: int = 64 * MIB
    raw_bytes: int = 64 * MIB
    arrays: int = 16_384
    buffers: int = 64
    dimensions: int = 32
    levels: int = 32
    containers: int = 65_536
    proof: int = 8 * MIB
    hashed: int = 512
    numbers: int = 4096
