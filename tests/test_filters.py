import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qraf.errors import InvalidRequest
from qraf.filters import FIELDS, MAX_CONDITIONS, MAX_DEPTH, item_view, matches, predicate, validate
from qraf.records import Filter, Item

ITEM = item_view(
    Item(
        seq=1,
        item_id="i-1",
        speaker="Ada",
        role="user",
        at=1683460800.0,
        pin=True,
        metadata={"kind": "Note", "size": 3, "tags": ["red", 1], "done": False, "a.b": "dotted"},
    )
)


def read(text: str) -> Filter:
    return msgspec.json.decode(text, type=Filter)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"field": "speaker", "eq": "Ada"}', True),
        ('{"field": "speaker", "eq": "ada"}', False),
        ('{"field": "speaker", "contains": "ad"}', True),
        ('{"field": "speaker", "in": ["Bo", "Ada"]}', True),
        ('{"field": "speaker", "in": []}', False),
        ('{"field": "speaker", "ne": null}', True),
        ('{"field": "role", "ne": "user"}', False),
        ('{"field": "pin", "eq": true}', True),
        ('{"field": "item_id", "eq": "i-1"}', True),
        ('{"field": "at", "gte": "2023-05-07T12:00:00Z", "lt": "2023-05-08"}', True),
        ('{"field": "at", "gt": "2023-05-07T12:00:00Z"}', False),
        ('{"field": "at", "in": [1683460800]}', True),
        ('{"field": "metadata.kind", "contains": "NOT"}', True),
        ('{"field": "metadata.tags", "contains": "red"}', True),
        ('{"field": "metadata.tags", "contains": true}', False),
        ('{"field": "metadata.size", "gt": 2.5, "lte": 3}', True),
        ('{"field": "metadata.size", "gt": "2"}', False),
        ('{"field": "metadata.done", "eq": 0}', False),
        ('{"field": "metadata.done", "eq": false}', True),
        ('{"field": "metadata.missing", "eq": null}', True),
        ('{"field": "metadata.missing", "ne": 1}', True),
        ('{"field": "metadata.missing", "gt": 1}', False),
        ('{"field": "metadata.missing", "contains": "x"}', False),
        ('{"field": "metadata.a.b", "eq": "dotted"}', True),
        ('{"NOT": {"field": "speaker", "eq": "Ada"}}', False),
        ('{"AND": [{"field": "pin", "eq": true}, {"field": "role", "eq": "tool"}]}', False),
        ('{"OR": [{"field": "pin", "eq": false}, {"field": "role", "eq": "user"}]}', True),
    ],
)
def test_conditions(text, expected):
    tree = read(text)
    validate(tree)
    assert matches(tree, ITEM) is expected


@pytest.mark.parametrize(
    ("text", "pointer"),
    [
        ("{}", "/filter"),
        ('{"AND": []}', "/filter/AND"),
        ('{"AND": [{"field": "pin", "eq": true}], "field": "pin"}', "/filter"),
        ('{"NOT": {"field": "pin", "eq": true}, "eq": 1}', "/filter/eq"),
        ('{"field": "speaker"}', "/filter"),
        ('{"field": "speakr", "eq": "x"}', "/filter/field"),
        ('{"field": "metadata.", "eq": "x"}', "/filter/field"),
        ('{"OR": [{"field": "pin", "eq": true}, {"field": "at", "gt": "noon"}]}', "/filter/OR/1/gt"),
        ('{"field": "at", "contains": "2023"}', "/filter/contains"),
        ('{"field": "pin", "eq": "yes"}', "/filter/eq"),
        ('{"field": "pin", "gt": true}', "/filter/gt"),
        ('{"field": "role", "lt": "user"}', "/filter/lt"),
        ('{"field": "speaker", "eq": 3}', "/filter/eq"),
        ('{"field": "speaker", "in": "Ada"}', "/filter/in"),
        ('{"field": "speaker", "in": ["Ada", 3]}', "/filter/in/1"),
        ('{"field": "metadata.x", "eq": [1]}', "/filter/eq"),
        ('{"field": "metadata.x", "gt": null}', "/filter/gt"),
        ('{"field": "metadata.x", "gt": true}', "/filter/gt"),
    ],
)
def test_faults_are_named_by_their_place(text, pointer):
    with pytest.raises(InvalidRequest) as caught:
        validate(read(text))
    assert caught.value.pointer == pointer


def test_a_misspelt_field_gets_the_nearest_one():
    with pytest.raises(InvalidRequest, match="did you mean 'speaker'"):
        validate(read('{"field": "speakr", "eq": "x"}'))


def test_filters_are_bounded():
    leaf = Filter(field="pin", eq=True)
    deep = leaf
    for _ in range(MAX_DEPTH):
        deep = Filter(NOT=deep)
    for large in (deep, Filter(OR=(leaf,) * MAX_CONDITIONS), Filter(field="speaker", in_=["x"] * 5000)):
        with pytest.raises(InvalidRequest, match="at most"):
            validate(large)


values = st.one_of(st.none(), st.booleans(), st.integers(-2, 2), st.sampled_from(["a", "B", "ab"]))
conditions = st.builds(
    lambda key, operator, value: Filter(**{"field": f"metadata.{key}", operator: value}),
    st.sampled_from("xy"),
    st.sampled_from(["eq", "ne"]),
    values,
)
trees = st.recursive(
    conditions,
    lambda inner: st.one_of(
        st.builds(lambda parts: Filter(AND=tuple(parts)), st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda parts: Filter(OR=tuple(parts)), st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda part: Filter(NOT=part), inner),
    ),
    max_leaves=6,
)
metadata = st.dictionaries(st.sampled_from("xy"), values)


@given(trees, metadata)
def test_a_filter_and_its_negation_part_the_items(filter, values):
    validate(filter)
    item = {"metadata": values}
    assert matches(filter, item) != matches(Filter(NOT=filter), item)


@given(st.lists(trees, min_size=1, max_size=3), metadata)
def test_de_morgan(parts, values):
    item = {"metadata": values}
    left = Filter(NOT=Filter(AND=tuple(parts)))
    right = Filter(OR=tuple(Filter(NOT=part) for part in parts))
    assert matches(left, item) == matches(right, item)


@given(trees, metadata)
def test_a_filter_survives_the_wire(filter, values):
    item = {"metadata": values}
    again = msgspec.json.decode(msgspec.json.encode(filter), type=Filter)
    assert predicate(again)(item) == predicate(filter)(item)


def test_no_filter_passes_everything_and_missing_fields_are_null():
    assert matches(None, {})
    assert all(matches(Filter(field=field, eq=None), {}) for field in FIELDS)
