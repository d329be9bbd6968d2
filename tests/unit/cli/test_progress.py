"""What a long command shows on a terminal: stages, and how far a whole turn is."""

from io import StringIO

from rich.console import Console

from mlff_distiller.cli.progress import Display

SHARES = {"teacher": 0.0, "label": 0.5, "round": 0.0, "train": 0.35}


def test_one_bar_shows_the_whole_turn():
    console = Console(file=StringIO(), force_terminal=True, width=100)
    seen = []
    with Display(console, shares=SHARES) as display:

        def at(stage, done, total):
            display(stage, done, total, "")
            bars = {task.description: task for task in display._bars.tasks}
            seen.append(bars["turn"].completed)
            assert {name for name, bar in bars.items() if bar.visible} == {"turn", stage}

        at("teacher", 1, 1)
        at("label", 100, 200)
        at("round 1", 5, 10)
        at("label", 200, 200)
        at("train", 400, 800)
        at("train", 800, 800)
        at("300 K, equilibration", 10, 10)
        at("speed", 1, 2)
        assert seen == [0, 25, 25, 50, 67, 85, 92, 94]
        display("turn", 0, 0, "turn 1: rejected")
        at("label", 10, 100)
        assert seen[-1] == 5
    assert "rejected" in console.file.getvalue()


def test_other_commands_keep_a_bar_for_each_stage():
    console = Console(file=StringIO(), force_terminal=True, width=100)
    with Display(console) as display:
        display("read", 1, 1, "")
        display("train", 1, 2, "")
        assert [task.description for task in display._bars.tasks] == ["read", "train"]
        assert all(task.visible for task in display._bars.tasks)
