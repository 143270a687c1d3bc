"""Which structure a store gets. The wall behind which the choice by size, memory and recall will stand."""

from __future__ import annotations

from dataclasses import dataclass

from embedx.core.errors import UsageError


@dataclass(frozen=True)
class IndexChoice:
    """A structure and what it will need.

    Attributes:
        factory: in FAISS's notation.
        why: the reason, for people.
        memory_bytes: of the opened index.
    """

    factory: str
    why: str
    memory_bytes: int


def choose_index(count: int, dim: int, budget_bytes: int, factory: str | None = None) -> IndexChoice:
    """Choose the structure for `count` vectors of `dim` values.

    Today there is one: `Flat`, exact, 4 bytes a value. Compressed and partitioned structures belong here.

    Args:
        count: vectors.
        dim: values of a vector.
        budget_bytes: the most memory the opened index may need.
        factory: a structure somebody asked for; None leaves the choice open.

    Raises:
        UsageError: the structure is not one this version builds, or it does not fit.
    """
    if factory not in (None, "Flat"):
        raise UsageError(
            f"--factory {factory!r} is not built by this version of embedx",
            "Leave --factory out, or pass Flat (exact)",
        )
    needed = 4 * count * dim
    if needed > budget_bytes:
        raise UsageError(
            f"an exact index of {count:,} vectors of {dim} values needs {needed / 2**30:.2f} GiB, "
            f"the budget is {budget_bytes / 2**30:.2f} GiB",
            f"Pass --memory {-(-needed // 2**20)}MiB on a machine that has it, or index a smaller store",
        )
    return IndexChoice("Flat", "asked for" if factory else "exact search fits the memory budget", needed)
