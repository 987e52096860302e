"""Candidates of pools whose blocking keys do not fit in memory: Parquet, DuckDB and Splink.

Every account's keys go into a Parquet file for each pool. DuckDB finds those that both pools have
and that do not make too many pairs. Splink blocks on them, for some accounts of the first pool at
a time against all of the second one. What comes back are the pairs that ``Blocks`` finds in
memory, no more and no fewer, and in the same order.

The packages are the extra ``bulk``, and imported only when this is used.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Final

import numpy as np

from resolvers.matching.candidates import STRONG_CAP, WEAK_CAP, flat_keys
from resolvers.matching.columns import WEAK_KINDS, Columns, Ints

PACKAGES: Final = ("duckdb", "pyarrow", "splink")
_ROWS_AT_ONCE: Final = 1 << 14
_ROWS_OF_SLICE: Final = 20_000
_MEMORY: Final = "2GB"
_SIDES: Final = ("left", "right")
_COUNT: Final = "key, count(*) AS count"
_WEAK: Final = ", ".join(str(kind) for kind in sorted(WEAK_KINDS))
_SAYS_SOMETHING: Final = (
    f"a.count * b.count <= CASE WHEN (key & 15) IN ({_WEAK}) THEN {WEAK_CAP} ELSE {STRONG_CAP} END"
)


class BulkMissing(Exception):
    """The packages of the extra ``bulk`` are not installed."""


def require_bulk() -> None:
    """Make sure that the packages are there.

    Raises:
        BulkMissing: They are not; the message says what to install.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise BulkMissing(
            f"Comparing so many accounts needs {' and '.join(missing)}: "
            "pip install 'learning-gateway[bulk]'"
        )


class DiskBlocks:  # pragma: no cover - needs the extra, as `make test-bulk` has it
    """The keys that accounts of two pools share, on disk.

    Args:
        columns: The pools.
        folder: Where the files go; an empty one, to be removed by whoever made it.
        rows: So many accounts of the first pool are asked for together.

    Raises:
        BulkMissing: The extra is not installed.
    """

    def __init__(
        self, columns: tuple[Columns, Columns], folder: Path, *, rows: int = _ROWS_OF_SLICE
    ) -> None:
        require_bulk()
        import duckdb  # noqa: PLC0415 - of the extra

        count = columns[0].count
        self.slices = [(begin, min(begin + rows, count)) for begin in range(0, count, rows)]
        self._database = duckdb.connect(
            str(folder / "blocks.duckdb"),
            config={"memory_limit": _MEMORY, "temp_directory": str(folder / "spilt")},
        )
        for side, name in zip(columns, _SIDES, strict=True):
            _write_keys(side, folder / f"{name}.parquet")
        self._find_shared(folder)

    def _find_shared(self, folder: Path) -> None:
        """Make a table of each pool: its accounts, with those of their keys that say something."""
        keys = [self._database.read_parquet(str(folder / f"{name}.parquet")) for name in _SIDES]
        left, right = (
            side.aggregate(_COUNT, "key").set_alias("ab"[n]) for n, side in enumerate(keys)
        )
        left.join(right, "key").filter(_SAYS_SOMETHING).project("key").create("shared")
        shared = self._database.table("shared")
        for side, name in zip(keys, _SIDES, strict=True):
            side.join(shared, "key", how="semi").aggregate(
                "row AS unique_id, list(key) AS keys", "row"
            ).create(f"{name}_pool")

    def pairs(self, begin: int, end: int) -> tuple[Ints, Ints]:
        """Return the pairs of some rows of the first pool, each once, in order."""
        from splink import DuckDBAPI, Linker, SettingsCreator, block_on  # noqa: PLC0415 - the same

        slice_name = "left_slice"
        self._database.table("left_pool").filter(
            f"unique_id >= {begin} AND unique_id < {end}"
        ).create_view(slice_name, replace=True)
        splink = DuckDBAPI(self._database)
        tables = [
            splink.register(table, dataset_display_name=name)
            for table, name in ((slice_name, "a"), ("right_pool", "b"))
        ]
        settings = SettingsCreator(
            link_type="link_only",
            unique_id_column_name="unique_id",
            blocking_rules_to_generate_predictions=[block_on("keys", arrays_to_explode=["keys"])],
            comparisons=[],  # the weighing is ours
        )
        linker = Linker(tables, settings, log_level=None)
        found = linker.inference.compute_blocked_pairs_for_predict()
        rows: dict[str, Any] = (
            self._database.table(found.physical_name)
            .project(
                "CAST(split_part(join_key_l, '-__-', 2) AS BIGINT) AS first, "
                "CAST(split_part(join_key_r, '-__-', 2) AS BIGINT) AS second"
            )
            .order("first, second")
            .fetchnumpy()
        )
        found.drop_table_from_database_and_remove_from_cache()
        return np.asarray(rows["first"], np.int64), np.asarray(rows["second"], np.int64)


def _write_keys(columns: Columns, path: Path) -> None:  # pragma: no cover - the same
    import pyarrow as pa  # noqa: PLC0415 - of the extra
    from pyarrow import parquet  # noqa: PLC0415 - the same

    schema = pa.schema([("key", pa.int64()), ("row", pa.int64())])
    with parquet.ParquetWriter(path, schema) as writer:
        for begin in range(0, columns.count, _ROWS_AT_ONCE):
            keys, rows = flat_keys(columns, begin, min(begin + _ROWS_AT_ONCE, columns.count))
            writer.write_table(pa.table([keys.view(np.int64), rows], schema=schema))
