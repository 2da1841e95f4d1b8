#!/usr/bin/env python3
"""Writes a deterministic image to standard output: image.py MIB mixed|sparse

mixed:  of each 8 MiB, 3 random, 3 of words, 2 zero: about what a root file system is to a compressor
sparse: of each 64 MiB, 1 random, 1 of words, 62 zero: a large image whose download stays small
"""

import random
import sys

MIB = 1 << 20
LAYOUT = {"mixed": "rt0rtr0t", "sparse": "rt" + "0" * 62}


def words():
    source = random.Random("words")
    return [b"%x " % source.getrandbits(source.randrange(8, 44)) for _ in range(2048)]


def main():
    count, layout = int(sys.argv[1]), LAYOUT[sys.argv[2]]
    vocabulary, zeros = words(), bytes(MIB)
    for at in range(count):
        source = random.Random(at)
        match layout[at % len(layout)]:
            case "r":
                piece = source.randbytes(MIB)
            case "t":
                piece = b"".join(source.choices(vocabulary, k=MIB // 2))[:MIB]
            case _:
                piece = zeros
        sys.stdout.buffer.write(piece)


main()
