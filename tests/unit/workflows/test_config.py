"""Settings: strict, readable errors, nothing executable."""

import pytest

from mlff_distiller.errors import ConfigError
from mlff_distiller.workflows.config import Config, differences, load_config, to_plain


def test_file_then_flags_then_overrides(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("labels: 50\nsampling: {beta: 0.25}\nseed: 3\n")
    config = load_config(file, ["seed=5", "training.loss.energy=0.5"], labels=70, device=None)
    assert (config.labels, config.seed, config.sampling.beta) == (70, 5, 0.25)
    assert config.training.loss.energy == 0.5
    assert config.device == "auto"


def test_round_trip(tmp_path):
    import yaml

    plain = to_plain(Config())
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(plain))
    assert load_config(file) == Config()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainign.epochs=3"], "trainign: there is no such setting"),
        (
            ["training.epoch=3"],
            "training.epoch: there is no such setting; did you mean training.epochs",
        ),
        (["lables=100"], "lables: there is no such setting; did you mean labels"),
        (["nep.cutof_radial_A=5"], "did you mean nep.cutoff_radial_A"),
        (
            ["sampling.temperature_K=[-300]"],
            "sampling.temperature_K: must be greater than 0",
        ),
        (["labels=3"], "labels: must be at least 10"),
        (["dynamics=5"], "dynamics: is a section"),
        (["sampling.beta=2"], "sampling.beta: must be at most 1"),
        (["labels=many"], "labels: .* valid integer"),
        (["labels"], "KEY=VALUE"),
        (["labels.x=1"], "is a value, not a section|labels"),
        (["student=gpt"], "student"),
        (["seed=!!python/object/apply:os.system ['true']"], "cannot read the value of seed"),
    ],
)
def test_mistakes_are_named(overrides, words):
    with pytest.raises(ConfigError, match=words):
        load_config(None, overrides)


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system ['touch marker']",
        "labels: 1\nlabels: 2",
        "- a list",
        "{unclosed",
        "_target_: os.system",
    ],
)
def test_dangerous_or_sloppy_yaml_is_refused(tmp_path, text, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError):
        load_config(tmp_path / "c.yaml")
    assert not (tmp_path / "marker").exists()


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "none.yaml")


def test_differences_name_every_leaf():
    old = {"a": {"b": 1, "c": 2}, "d": 3}
    assert differences(old, {"a": {"b": 1, "c": 5}, "e": 1}) == [
        "a.c: 2 -> 5",
        "d: 3 -> None",
        "e: None -> 1",
    ]
    assert differences(old, old) == []
