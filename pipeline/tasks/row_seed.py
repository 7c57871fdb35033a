"""Derives the seed of a row from the job's, so that answers do not depend on the batch."""

import hashlib


def row_seed(seed: int, row_id: object) -> int:
    """Returns the seed of a row, 0 to 2^63 - 1: the same in every run, different for each id."""
    digest = hashlib.blake2b(f"{seed}/{row_id}".encode(errors="surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little") >> 1
