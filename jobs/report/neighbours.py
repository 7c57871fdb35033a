"""Finds rows with similar vectors among the rows of a report."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mediamill.jobs.page.card import Card, Neighbour
from mediamill.pipeline.inspect.output import Output, Position
from mediamill.schemas import columns as c

_NEAREST = 3


def with_neighbours(
    output: Output, rows: Mapping[Position, Mapping[str, Any]], cards: Sequence[Card]
) -> list[Card]:
    """Returns the cards with the rows whose vectors are nearest, among those that are shown."""
    vectors_by_id: dict[str, Any] = {}
    for values in output.rows(rows, [c.ID, c.EMBEDDING]).values():
        if values.get(c.EMBEDDING):
            vectors_by_id[str(values[c.ID])] = values[c.EMBEDDING]
    known = [card for card in cards if card.id in vectors_by_id]
    if len(known) < 2:
        return list(cards)
    vectors = np.array([vectors_by_id[card.id] for card in known], np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    similar = (vectors / np.maximum(lengths, 1e-12)) @ (vectors / np.maximum(lengths, 1e-12)).T
    np.fill_diagonal(similar, -2.0)
    nearest = np.argsort(-similar, axis=1)[:, :_NEAREST]
    neighbours = {
        card.anchor: tuple(_neighbour(known[i], float(similar[n, i])) for i in nearest[n].tolist()
                           if similar[n, i] > -2.0)
        for n, card in enumerate(known)
    }  # fmt: skip
    return [replace(card, neighbours=neighbours.get(card.anchor, ())) for card in cards]


def _neighbour(card: Card, similarity: float) -> Neighbour:
    pictures = [picture for medium in card.media for picture in medium.pictures]
    return Neighbour(card.id, similarity, pictures[0] if pictures else None)
