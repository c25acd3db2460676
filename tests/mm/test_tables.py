from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rtsmap.errors import OptionsError
from rtsmap.mm.tables import differences, override, parse, read_table, to_toml
from rtsmap.mm.train import TrainOptions

keys = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=6)
plain = (
    st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=8)
)
tables = st.recursive(
    st.dictionaries(keys, plain | st.lists(plain, max_size=3), max_size=3),
    lambda inner: st.dictionaries(keys, plain | inner, max_size=3),
    max_leaves=8,
)


@given(tables)
def test_data_written_as_toml_reads_back_the_same(data):
    assert parse(to_toml(data), "here") == data
    assert not differences(data, parse(to_toml(data), "here"))


@given(tables, st.lists(keys.filter(lambda k: "." not in k and "=" not in k), min_size=1, max_size=3), plain)
def test_a_setting_changes_its_key_and_nothing_else(data, path, value):
    path = [name.strip() or "x" for name in path]
    setting = f"{'.'.join(path)}={to_toml({'v': value})[4:].strip()}"
    before = to_toml(data)
    place = data
    for name in path[:-1]:
        place = place.get(name, {})
        assume(isinstance(place, dict))
    override(data, setting)
    place = data
    for name in path[:-1]:
        place = place[name]
    assert place[path[-1]] == value
    told = differences(data, parse(before, "before"))
    assert all(line.startswith(path[0]) for line in told)


def test_a_bare_word_is_a_text_and_nonsense_is_refused():
    data = {"stages": {"fused": {"steps": 1}}}
    override(data, "stages.fused.loss=pixels")
    assert data["stages"]["fused"]["loss"] == "pixels"
    with pytest.raises(OptionsError, match="wanted key=value"):
        override(data, "steps")
    with pytest.raises(OptionsError, match=r"'stages.fused.steps' is a value"):
        override(data, "stages.fused.steps.more=1")


def test_unknown_keys_and_wrong_kinds_are_refused_by_name():
    with pytest.raises(
        OptionsError, match=r"a.toml: unknown key 'x.stps'; the nearest known one is 'x.steps'"
    ):
        read_table(TrainOptions, {"stps": 3}, "a.toml", "x.")
    for key, value in {"steps": 1.5, "lr": "fast", "precision": 16, "seed": True, "step_at": 0.5}.items():
        with pytest.raises(OptionsError, match=f"'{key}' must be"):
            read_table(TrainOptions, {key: value}, "a.toml")
    with pytest.raises(OptionsError, match=r"a.toml \[x\]: must be positive: steps=0"):
        read_table(TrainOptions, {"steps": 0}, "a.toml", "x.")
    assert read_table(TrainOptions, {"lr": 1}, "a.toml").lr == 1.0


def test_differences_name_the_keys():
    told = differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3, "d": [4]}})
    assert told == ["a.c: 2 now, 3 then", "a.d: nothing now, [4] then"]
