"""What a long command shows: a bar with an ETA on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_SECONDS_BETWEEN_LINES = 15.0
_WHOLE = "turn"


class Display:
    """Callable with stage, done, total, news. One bar per stage, kept on screen when it ends.

    A total of zero is a line of news without a bar. With ``shares``, the shares of stages in the
    time of a turn by how their names begin, there is one bar for each turn as a whole, and below
    it only that of the stage at work; a stage without a share takes half of what is left. News of
    the stage "turn" end a turn.
    """

    def __init__(
        self, console: Console, *, quiet: bool = False, shares: Mapping[str, float] | None = None
    ) -> None:
        self._quiet, self._console = quiet, console
        self._shares = shares or {}
        self._spans: dict[str, tuple[float, float]] = {}
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
            if stage == _WHOLE:
                self._spans = {}
            return
        if self._bars is not None:
            if self._shares:
                self._show_turn(self._bars, stage, done / total)
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

    def _show_turn(self, bars: Progress, stage: str, part: float) -> None:
        """How much of the turn is done, where ``part`` of ``stage`` is; hide the other stages."""
        if not self._spans and _WHOLE in self._tasks:
            bars.reset(self._tasks[_WHOLE])
        if _WHOLE not in self._tasks:
            self._tasks[_WHOLE] = bars.add_task(_WHOLE, total=100, news="")
        if stage not in self._spans:
            begin = max((sum(span) for span in self._spans.values()), default=0.0)
            named = (own for name, own in self._shares.items() if stage.startswith(name))
            self._spans[stage] = begin, next(named, 0.5 * (1.0 - begin))
        begin, share = self._spans[stage]
        whole = self._tasks[_WHOLE]
        before = bars.tasks[bars.task_ids.index(whole)].completed
        now = int(100 * (begin + share * part)) if share else 0
        bars.update(whole, completed=max(before, now), news=stage)
        for name, task in self._tasks.items():
            bars.update(task, visible=name in (_WHOLE, stage))
