"""Checks that a manifest has the columns that a job names."""

from collections.abc import Sequence

import pyarrow as pa

from mediamill.schemas import columns as c
from mediamill.schemas.arrow_types import can_be_a_path, is_list, is_text
from mediamill.schemas.errors import JobError
from mediamill.schemas.manifest import ManifestSchema, existing_names


def check_partition_by(manifest: ManifestSchema, partition_by: Sequence[str], where: str) -> None:
    """Checks that the result can be partitioned by these columns of the manifest `where`.

    Raises JobError if a column is missing, is not one of the user's, or cannot be a part of a path.
    """
    user = {field.name: field.type for field in manifest.user}
    mistakes = []
    for name in partition_by:
        if name in c.RESULT_COLUMNS:
            mistakes.append(
                f"partition_by: column '{name}' is what the job writes, expected a column of the "
                f"manifest {where}{_in_parentheses(user)}"
            )
        elif name in c.MANIFEST_COLUMNS:
            mistakes.append(
                f"partition_by: column '{name}' is read by Mediamill itself, expected one of the "
                f"manifest's further columns{_in_parentheses(user)}"
            )
        elif name not in user:
            mistakes.append(
                f"{where}: partition_by names column '{name}', "
                + (existing_names(user, name) if user else _only_own(manifest))
            )
        elif not can_be_a_path(user[name]):
            mistakes.append(
                f"{where}: partition_by names column '{name}' of type {user[name]}, expected a "
                "string, integer, boolean or date column"
            )
    if mistakes:
        raise JobError(*mistakes)


def check_text_column(manifest: ManifestSchema, name: str, key: str, where: str) -> None:
    """Checks that the manifest `where` has the column `name` with a text, or texts, for each row.

    key: the job's key that names the column. Raises JobError.
    """
    user = {field.name: field.type for field in manifest.user}
    if name not in user:
        raise JobError(f"{where}: {key} names column '{name}', {existing_names(user, name)}")
    column_type = user[name]
    if not is_text(column_type.value_type if is_list(column_type) else column_type):
        raise JobError(
            f"{where}: {key} names column '{name}' of type {column_type}, expected string or "
            "list<string>"
        )


def _only_own(manifest: ManifestSchema) -> str:
    names = ", ".join(field.name for field in manifest.fields)
    return f"the columns are {names}, and no other one, which rows could be partitioned by"


def _in_parentheses(names: dict[str, pa.DataType]) -> str:
    return f" ({', '.join(names)})" if names else " (it has none)"
