"""Ids as a caller hands them over, converted to an array. Pure.

Rows are matched by the order of their ids, so a container without an order is refused wherever the
order counts: a set of strings has another order in each run. The keys and the values of a dict keep
the order of insertion, and are taken; its items are ids and vectors at once.
"""

from __future__ import annotations

import operator
from collections.abc import ItemsView, Iterable, KeysView, Mapping, Sequence, Set
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from vectorshard.shard.errors import InvalidId
from vectorshard.shard.types import IdArray
from vectorshard.shard.wire.primitives import TIMES, is_table, shown

Ids: TypeAlias = int | str | Iterable[int] | Iterable[str] | IdArray
"""Ids as a caller may pass them; a single id stands for a list of one."""


_SET_ITERATOR: Final = type(iter(frozenset[object]()))
_NO_ITEMS: Final = dict[object, object]().items()
_ITEMS: Final = (ItemsView, type(iter(_NO_ITEMS)), type(reversed(_NO_ITEMS)))
"""The items of a mapping, and iterators over those of a dict."""


def why_not_rows(values: object) -> str:
    """Return why values are not one value for each row: they have no order, or are pairs.

    Empty for values with an order, such as the keys or the values of a dict, and sorted sets.
    """
    kind = type(values)
    if kind in (np.ndarray, list, tuple):  # faster than to ask an abstract class
        return ""
    if isinstance(values, _ITEMS):
        return f"{kind.__name__} are pairs: pass keys() and values() as separate arguments"
    if isinstance(values, Mapping):
        return f"{kind.__name__} is a mapping: pass its keys() and values() as separate arguments"
    if _is_set(values):
        return f"{kind.__name__} has no order, and rows are matched by their order: pass a list"
    return ""


def _is_set(values: object) -> bool:
    """Whether values are a set without an order, or an iterator over one."""
    if type(values) is _SET_ITERATOR:
        return True
    return isinstance(values, Set) and not isinstance(values, Sequence | KeysView | ItemsView)


def why_not_one_axis(values: object) -> str:
    """Return why values are not a single axis of ids or values; empty if they may be one.

    A table would be read as the names of its columns, and a date as a number of its unit.
    """
    if isinstance(values, np.ndarray):
        if values.dtype.kind in "mM":
            return f"dtype {values.dtype} is a time: pass .astype(str)"
        return ""
    if is_table(values):
        return f"{type(values).__name__} has columns: pass one of them"
    return ""


def is_listed(values: object) -> bool:
    """Whether values can be iterated; an array without an axis looks as if, and cannot."""
    return isinstance(values, Iterable) and getattr(values, "ndim", 1) != 0


def is_one_id(ids: object) -> bool:
    """Whether `ids` is a single id, and not a container of ids."""
    return isinstance(ids, int | np.integer | str | np.str_) and not isinstance(
        ids, bool | np.timedelta64
    )


def id_array(ids: Ids | npt.NDArray[Any], *, ordered: bool = True) -> IdArray:
    """Return ids (rows,): int64 for integers, object of str for strings.

    With `ordered`, rows are matched by the order of their ids: sets are refused. Mappings are
    always refused. Raises InvalidId unless all ids are integers of 64 bits, or all are strings.
    Names the first other row.
    """
    if isinstance(ids, np.ndarray) and not isinstance(ids, np.ma.MaskedArray):
        if reason := why_not_one_axis(ids):
            raise InvalidId(reason, field="ids")
        if ids.ndim > 1:
            raise InvalidId(f"shape {ids.shape} is not (rows,)", field="ids")
        if ids.dtype.kind == "i" and ids.ndim == 1:
            return ids.astype(np.int64, copy=False)
    listed = _listed(ids, ordered)
    if listed and isinstance(listed[0], str):
        return _string_ids(listed)
    return _int64_ids(listed)


def one_id(id_: int | str) -> IdArray:
    """Return a single id (1,)."""
    if not is_one_id(id_):
        return _int64_ids([id_])
    return id_array(id_)


def _listed(ids: Any, ordered: bool) -> list[Any]:
    """Return the ids of any container as a list; refuse one that has no order."""
    if is_one_id(ids):
        return [ids]
    if isinstance(ids, np.ma.MaskedArray):
        raise InvalidId(
            "a masked array is not accepted: pass ids.compressed(), or ids.data", field="ids"
        )
    kind = type(ids).__name__
    if (reason := why_not_rows(ids)) and (ordered or not _is_set(ids)):
        cure = ", such as sorted(ids)" if _is_set(ids) else ""
        raise InvalidId(reason + cure, field="ids")
    if reason := why_not_one_axis(ids):
        raise InvalidId(reason, field="ids")
    if isinstance(ids, bytes | bytearray | memoryview):
        raise InvalidId(f"{kind} is not an id: pass a string, such as ids.decode()", field="ids")
    is_container = isinstance(ids, Iterable) or hasattr(ids, "__getitem__")
    if not is_container or isinstance(ids, TIMES):
        cure = _cure(ids) or ": pass integers or strings"
        raise InvalidId(f"{shown(ids)} is not an id{cure}", field="ids")
    return plain_list(ids)


def plain_list(values: Any) -> list[Any]:
    """Return the values of any container as Python's, in its order."""
    for method in ("to_pylist", "tolist"):  # of Arrow; of numpy, pandas and torch
        if callable(convert := getattr(values, method, None)):
            listed = convert()
            return listed if isinstance(listed, list) else [listed]
    listed = list(values)
    if listed and hasattr(listed[0], "as_py"):  # scalars of Arrow
        return [each.as_py() if hasattr(each, "as_py") else each for each in listed]
    return listed


def _string_ids(ids: Sequence[Any]) -> npt.NDArray[np.object_]:
    strings = np.empty(len(ids), dtype=np.object_)
    if set(map(type, ids)) == {str}:
        strings[:] = ids
        return strings
    for row, id_ in enumerate(ids):
        if not isinstance(id_, str):
            reason = f"{shown(id_)} is not a string; row 0 is a string"
            raise InvalidId(reason, field="ids", row=row)
        strings[row] = str(id_)
    return strings


def _int64_ids(ids: Sequence[Any]) -> npt.NDArray[np.int64]:
    integers = np.empty(len(ids), dtype=np.int64)
    for row, id_ in enumerate(ids):
        try:
            if isinstance(id_, bool | np.bool_):
                raise TypeError
            integers[row] = operator.index(id_)
        except TypeError:
            raise InvalidId(
                f"{shown(id_)} is not an integer{_cure(id_)}", field="ids", row=row
            ) from None
        except OverflowError:
            raise InvalidId(f"{int(id_):,} does not fit in 64 bits", field="ids", row=row) from None
    return integers


def _cure(id_: Any) -> str:
    """Return what to pass instead of an id of another type."""
    if isinstance(id_, bool | np.bool_) or id_ is None:
        return ""
    if isinstance(id_, bytes):
        return ": pass a string, such as id.decode()"
    if isinstance(id_, float | np.floating):
        return ": pass int(id)" if float(id_).is_integer() else ""
    if isinstance(id_, str):
        return "; row 0 is an integer"
    return ": pass a string, such as str(id)"
