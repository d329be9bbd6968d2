"""What a long command shows: a bar with an ETA on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_SECONDS_BETWEEN_LINES = 15.0


class Display:
    """Callable with stage, done, total, news. One bar per stage, kept on screen when it ends.

    A total of zero is a line of news without a bar.
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._quiet, self._console = quiet, console
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._stage, self._began, self._printed, self._first = "", 0.0, 0.0, 0

    def __enter__(self) -> Self:
        if not self._quiet and self._console.is_terminal:
            from rich import progress

            self._bars = progress.Progress(
                progress.TextColumn("[bold]{task.description:<10}"),
                progress.BarColumn(bar_width=30),
                progress.MofNCompleteColumn(),
                progress.TimeElapsedColumn(),
                progress.TextColumn("left"),
                progress.TimeRemainingColumn(),
                progress.TextColumn("{task.fields[news]}"),
                console=self._console,
            )
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, stage: str, done: int, total: int, news: str) -> None:
        if self._quiet:
            return
        if total == 0:  # news that stay
            self._console.print(escape(news), soft_wrap=True)
            return
        if self._bars is not None:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, news="")
            self._bars.update(
                self._tasks[stage],
                completed=done,
                total=total,
                news=escape(news.split("\n")[0][:60]),
            )
            return
        now = time.monotonic()
        new = stage != self._stage
        if new:
            self._stage, self._began, self._first = stage, now, done
        if new or done >= total or now - self._printed >= _SECONDS_BETWEEN_LINES:
            self._printed = now
            elapsed = now - self._began
            gained = done - self._first  # since this call: a continued stage does not start at 0
            left = f", {elapsed / gained * (total - done):.0f} s left" if gained > 0 else ""
            line = (
                f"{stage:<10} {done}/{total}  {elapsed:.0f} s{left if done < total else ''}  {news}"
            )
            self._console.print(escape(line.rstrip()), soft_wrap=True)
