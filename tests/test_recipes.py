"""Recipes on the command line: each field explained, printed as YAML that is read back, chosen by name or file, overridden field by
field.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from iidrive.cli.explain import explained
from iidrive.cli.main import main
from iidrive.cli.options import DataOptions, Switch, TrainOptions
from iidrive.cli.parser import call, meanings, parser_of, read_recipe
from iidrive.core.errors import ConfigError
from iidrive.pipeline import recipes
from iidrive.pipeline.recipes import Recipe
from iidrive.training.parallel import ParallelConfig


def configs(kind: type) -> set[type]:
    """A config dataclass and those in its fields."""
    hints = typing.get_type_hints(kind)
    inner = (hints[field.name] for field in dataclasses.fields(kind))
    return {kind}.union(*(configs(hint) for hint in inner if dataclasses.is_dataclass(hint)))


KINDS = sorted(configs(Recipe) | {ParallelConfig, DataOptions, TrainOptions}, key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_field_has_a_meaning(kind: type) -> None:
    """The `Attributes:` of a config's docstring are the one source: they name every field, in order, and nothing else."""
    found = meanings(kind)
    assert list(found) == [field.name for field in dataclasses.fields(kind)]
    assert all(len(meaning.split()) > 1 for meaning in found.values())


def test_the_list_has_one_line_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipes"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(recipes.RECIPES)
    assert all(len(line.split()) > 3 for line in lines)


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_printed_recipe_is_yaml_that_is_read_back(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["recipes", name])
    printed = capsys.readouterr().out
    (tmp_path / "mine.yaml").write_text(printed)
    assert read_recipe(str(tmp_path / "mine.yaml")) == recipes.named(name)
    assert yaml.safe_load(printed)["town"]["train_scenes"] == recipes.named(name).town.train_scenes
    assert max(map(len, printed.splitlines())) <= 140


def test_each_printed_field_has_its_meaning_beside_it() -> None:
    lines = explained(recipes.demo()).splitlines()
    assert "  heads: 8                                # number of attention heads." in lines
    fields = [line for line in lines if not line.lstrip().startswith("#")]
    assert all("  # " in line for line in fields)
    assert len(fields) == sum(1 for _ in leaves(yaml.safe_load("\n".join(lines)))), "one line a field and one a group"


def leaves(plain: object) -> typing.Iterator[object]:
    """Every key of nested dicts."""
    if isinstance(plain, dict):
        for key, value in plain.items():
            yield key
            yield from leaves(value)


@pytest.mark.slow
def test_a_recipe_file_is_explained_and_other_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\ntown: {seed: 7}\n")
    (tmp_path / "wrong.yaml").write_text("town: {sed: 7}\n")
    main(["recipes", str(tmp_path / "mine.yaml")])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["name"], printed["town"]["seed"]) == ("mine", 7)
    assert printed["train_world"]["samples"] == recipes.small().train_world.samples
    for arguments, message in (
        (["dmo"], "Did you mean 'demo'"),
        (["demo", "tiny"], "one recipe at a time"),
        (["nowhere.yaml"], "nowhere.yaml: no such file"),
        ([str(tmp_path / "wrong.yaml")], "unknown field of town 'town.sed'"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["recipes", *arguments])
        assert stop.value.code == 2
        assert message in " ".join(capsys.readouterr().err.split())


Parsed = dict[str, object]


def parse(*arguments: str, without: tuple[str, ...] = ()) -> Parsed:
    """What a function with every kind of parameter is called with."""
    found: Parsed = {}

    def command(
        files: list[str],
        test_ii: Switch = "off",
        grid: bool = False,
        samples: int = 0,
        train: TrainOptions = TrainOptions(run="runs/x"),  # noqa: B008
        where: DataOptions = DataOptions(),  # noqa: B008
        recipe: Recipe = recipes.small(),  # noqa: B008
    ) -> None:
        """Keep the arguments.

        Args:
            files: some files.
            test_ii: a switch.
            grid: a switch without a value.
            samples: a number.
            train: training.
            where: data.
            recipe: a recipe.
        """
        found.update({name: value for name, value in locals().items() if name != "found"})

    call(command, parser_of(command, "iidrive command", without), arguments)
    return found


@pytest.mark.slow
def test_recipes_by_name_or_file_with_fields_overridden(tmp_path: Path) -> None:
    assert parse("a")["recipe"] == recipes.small()
    assert parse("a", "--recipe", "demo")["recipe"] == parse("a", "--recipe=demo")["recipe"] == recipes.demo()
    demo = recipes.demo()
    other = replace(demo, town=replace(demo.town, seed=3), train_world=replace(demo.train_world, samples=1600))
    assert parse("a", "--recipe", "demo", "--recipe.town.seed", "3", "--recipe.train_world.samples=1600")["recipe"] == other
    for name, text in (("mine.yaml", "town: {seed: 3}"), ("mine.json", '{"town": {"seed": 3}}')):
        (tmp_path / name).write_text(text)
        small = recipes.small()
        assert parse("a", "--recipe", str(tmp_path / name))["recipe"] == replace(small, town=replace(small.town, seed=3))
    frozen = parse("a", "--recipe.train_world.freeze", '["inter"]')["recipe"]
    assert isinstance(frozen, Recipe)
    assert frozen.train_world.freeze == ("inter",)


@pytest.mark.slow
def test_files_stand_anywhere_among_options() -> None:
    for arguments in ("a b c --samples 3 --grid", "--samples 3 a --grid b c", "a --samples=3 b --grid c", "--grid a b --samples 3 c"):
        found = parse(*arguments.split())
        assert (found["files"], found["samples"], found["grid"]) == (["a", "b", "c"], 3, True), arguments
    assert parse("a")["grid"] is False


@pytest.mark.slow
def test_options_are_spelled_with_dashes_or_underscores_and_switched_on_or_off() -> None:
    for option in ("--test-ii", "--test_ii"):
        assert parse("a", option, "on")["test_ii"] == "on"
    for option in ("--run", "--out"):
        assert parse("a", option, "r")["train"] == TrainOptions(run="r")
    for value in ("on", "off"):
        train = parse("a", "--parallel.compile", value, "--tensorboard", value, "--allow-mismatch", value)["train"]
        assert train == TrainOptions("runs/x", parallel=ParallelConfig(compile=value == "on"), tensorboard=value, allow_mismatch=value)


@pytest.mark.slow
def test_data_options_are_flat_and_unsupported_ones_are_refused() -> None:
    assert parse("a", "--data", "nuscenes", "--root", "n", "--split", "val")["where"] == DataOptions("nuscenes", "n", "val")
    assert parse("a", "--root", "n", without=("split",))["where"] == DataOptions(root="n")
    with pytest.raises(ConfigError, match="unrecognized arguments: --split"):
        parse("a", "--split", "val", without=("split",))
    for abbreviated in ("--spl", "--recipe.town.see"):
        with pytest.raises(ConfigError, match="unrecognized arguments"):
            parse("a", abbreviated, "3")


@pytest.mark.slow
def test_printed_options_are_a_config_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("a", "--recipe", "demo", "--recipe.town.seed", "3", "--test-ii", "on", "--split", "val", "--parallel.compile", "on")
    with pytest.raises(SystemExit):
        parse(*given, "--print-config")
    (tmp_path / "options.yaml").write_text(capsys.readouterr().out)
    assert parse("a", "--config", str(tmp_path / "options.yaml")) == parse(*given)


@pytest.mark.slow
def test_a_config_file_gives_options_and_later_ones_win(tmp_path: Path) -> None:
    (tmp_path / "options.yaml").write_text("test_ii: 'on'\nroot: n\nrecipe: {town: {seed: 3}}\n")
    found = parse("a", "--config", str(tmp_path / "options.yaml"), "--root", "m")
    assert (found["test_ii"], found["where"]) == ("on", DataOptions(root="m"))
    assert found["recipe"] == replace(recipes.small(), town=replace(recipes.small().town, seed=3))
