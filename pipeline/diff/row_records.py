"""Makes a record of fixed size for each row of an output: a key, hashes and numbers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mediamill.pipeline.diff.hashes import (
    frame_hashes,
    key_hashes,
    numbers,
    ranking_hashes,
    seen_hashes,
    text_lengths,
    value_hashes,
    vector_hashes,
)
from mediamill.pipeline.inspect.answers import AnswerLayout
from mediamill.pipeline.inspect.output import Chunk, Output
from mediamill.schemas import columns as c

Records = npt.NDArray[Any]
KEY, FILE, ROW, CODE = "key", "file", "row", "code"
FRAMES = "frames"
BEST = "best"  # of a ranking: its first text
LETTERS = "letters"
_TOKENS = (c.PROMPT_TOKENS, c.VISUAL_TOKENS, c.OUTPUT_TOKENS)
RECEIPTS = (c.SHA256, c.HEIGHT, c.WIDTH, FRAMES, c.FRAME_TIMES_S, c.RECEIPT)


@dataclass(frozen=True)
class Compared:
    """What is compared of two outputs: names of columns that both have.

    texts, fields: of answers. logprobs: their mean log-probabilities.
    others: of the manifest, which explain other answers. vectors: whether there are embeddings.
    """

    texts: tuple[str, ...]
    fields: tuple[str, ...]
    logprobs: tuple[str, ...]
    others: tuple[str, ...]
    scores: bool
    vectors: bool
    receipts: tuple[str, ...]
    tokens: tuple[str, ...]

    @classmethod
    def of(cls, a: tuple[Output, AnswerLayout], b: tuple[Output, AnswerLayout]) -> "Compared":
        """Returns what two outputs have in common."""
        names = set(a[0].schema.names) & set(b[0].schema.names)
        answers = a[1].answers

        def common(columns: Sequence[str | None]) -> tuple[str, ...]:
            return tuple(dict.fromkeys(name for name in columns if name in names and name))

        has_text = a[1].job not in ("score", "embed")
        return cls(
            common([answer.text for answer in answers]) if has_text else (),
            common([name for answer in answers for name in answer.fields.values()]),
            common([answer.mean_logprob for answer in answers]),
            common((c.URI, c.PROMPT, c.SYSTEM, c.MESSAGES)),
            c.SCORES in names,
            c.EMBEDDING in names,
            common((c.SHA256, c.HEIGHT, c.WIDTH, c.FRAME_TIMES_S, c.RECEIPT)),
            common(_TOKENS),
        )

    @property
    def hashed(self) -> tuple[str, ...]:
        """Names of the hashes in a record."""
        scores = (c.SCORES, BEST) if self.scores else ()
        vectors = (c.EMBEDDING,) if self.vectors else ()
        known = {c.SHA256, c.FRAME_TIMES_S, c.RECEIPT}
        receipts = [name for name in self.receipts if name in known]
        return (*self.texts, *self.fields, *self.others, *scores, *vectors, *receipts)

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of the numbers whose shift is told."""
        lengths = tuple(f"{name}.{LETTERS}" for name in self.texts)
        probability = (c.PROBABILITY,) if self.scores else ()
        return (*lengths, *self.tokens, *self.logprobs, *probability)

    @property
    def numbers(self) -> tuple[str, ...]:
        """Names of the numbers in a record."""
        sizes = [name for name in self.receipts if name in (c.HEIGHT, c.WIDTH)]
        frames = (FRAMES,) if c.FRAME_TIMES_S in self.receipts else ()
        return (*self.measures, *sizes, *frames)

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        scores = (c.SCORES, c.PROBABILITY) if self.scores else ()
        vectors = (c.EMBEDDING,) if self.vectors else ()
        names = (c.ID, c.STATUS, c.ERROR_CODE, *self.texts, *self.fields, *self.logprobs)
        names += (*self.others, *scores, *vectors, *self.receipts, *self.tokens)
        return list(dict.fromkeys(names))

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of a record. CODE: 0 for an ok row, else that of its error code."""
        return np.dtype(
            [(KEY, "u8"), (FILE, "i4"), (ROW, "i8"), (CODE, "i4")]
            + [(f"hash {name}", "u8") for name in self.hashed]
            + [(f"number {name}", "f8") for name in self.numbers]
        )


@dataclass
class Side:
    """One output while it is read. codes: of errors, by their number from 1 on.

    vectors: of the rows whose key is below `vector_limit`.
    """

    output: Output
    rows: int = 0
    errors: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    vector_limit: int = 0
    vectors: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)

    def records(self, compared: Compared) -> Iterator[Records]:
        """Yields the records of all rows, in the order of the files."""
        for chunk in self.output.chunks(compared.columns):
            if chunk.table.num_rows:
                yield self._records(chunk, compared)

    def _records(self, chunk: Chunk, compared: Compared) -> Records:
        table = chunk.table
        records = np.zeros(table.num_rows, compared.dtype)
        records[KEY] = key_hashes(table[c.ID])
        records[FILE] = chunk.file
        records[ROW] = np.arange(table.num_rows) + chunk.first
        records[CODE] = self._codes(table)
        self.rows += table.num_rows
        self.errors += int((records[CODE] > 0).sum())
        present = set(table.column_names)
        for name in (*compared.texts, *compared.fields, *compared.others, c.SHA256):
            if name in present and name in compared.hashed:
                records[f"hash {name}"] = value_hashes(table[name])
        for name in compared.texts:
            if name in present:
                records[f"number {name}.{LETTERS}"] = text_lengths(table[name])
        plain = (*compared.tokens, *compared.logprobs, c.PROBABILITY, c.HEIGHT, c.WIDTH)
        for name in plain:
            if name in compared.numbers:
                missing = pa.nulls(table.num_rows, pa.float64())
                column = table[name] if name in present else pa.chunked_array([missing])
                records[f"number {name}"] = numbers(column)
        self._nested(table, present, compared, records)
        return records

    def _nested(
        self, table: pa.Table, present: set[str], compared: Compared, records: Records
    ) -> None:
        if c.FRAME_TIMES_S in present:
            hashes, counts = frame_hashes(table[c.FRAME_TIMES_S])
            records[f"hash {c.FRAME_TIMES_S}"], records[f"number {FRAMES}"] = hashes, counts
        if c.RECEIPT in present:
            records[f"hash {c.RECEIPT}"] = seen_hashes(table[c.RECEIPT])
        if compared.scores and c.SCORES in present:
            whole, best = ranking_hashes(table[c.SCORES])
            records[f"hash {c.SCORES}"], records[f"hash {BEST}"] = whole, best
        if compared.vectors and c.EMBEDDING in present:
            records[f"hash {c.EMBEDDING}"] = vector_hashes(table[c.EMBEDDING])
            for place in np.flatnonzero(records[KEY] <= self.vector_limit).tolist():
                vector = table[c.EMBEDDING][place].as_py()
                if vector is not None:
                    self.vectors[int(records[KEY][place])] = np.asarray(vector, np.float32)

    def _codes(self, table: pa.Table) -> npt.NDArray[np.int32]:
        errors = table[c.STATUS].to_pylist()
        codes = table[c.ERROR_CODE].to_pylist()
        return np.array(
            [
                self.codes.setdefault(code or "unknown", len(self.codes) + 1)
                if status == c.STATUS_ERROR
                else 0
                for status, code in zip(errors, codes, strict=True)
            ],
            np.int32,
        )

    def label(self, code: int) -> str:
        """Returns `ok`, or the error code with this number."""
        return next((name for name, number in self.codes.items() if number == code), c.STATUS_OK)
