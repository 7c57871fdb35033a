"""Turns a job's seed and a row into the seed of that row alone."""

import hashlib


def row_seed(seed: int, row_id: object) -> int:
    """The seed of one row, 0 to 2^63 - 1: the same in every run, and another for every id."""
    digest = hashlib.blake2b(f"{seed}/{row_id}".encode(errors="surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little") >> 1
