"""Progress bar on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from iidrive.runtime.distributed import ProcessGroup


@contextmanager
def counting(what: str, total: int, process_group: ProcessGroup | None = None) -> Iterator[Callable[[str], None]]:
    """Context manager that yields a function: each call with a name advances the bar by one.

    Only rank 0 shows a bar, over its own items.
    """
    process_group = process_group or ProcessGroup()
    named = TextColumn("{task.fields[name]}")
    columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(compact=True), named)
    with Progress(*columns, console=Console(stderr=True), disable=not process_group.is_rank_zero) as bar:
        task = bar.add_task(what, total=len(process_group.shard(range(total))), name="")
        yield lambda name: bar.update(task, advance=1, name=name)
