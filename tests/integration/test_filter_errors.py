"""A filter that cannot be evaluated is an error of the filter, and a damaged file one of the file."""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest
from scene import Scene, save

from encpipe import ConfigError, Dataset, IntegrityError, Policy
from encpipe.fragments import prune_by_partition

SECRET = "M4RKER-of-a-person"
START = datetime(2026, 1, 1, tzinfo=UTC)
NAIVE = datetime(2026, 1, 2)


def table(part: int) -> pa.Table:
    rows = range(8)
    stamps = [START + timedelta(days=n) for n in rows]
    return pa.table(
        {
            **{unit: pa.array(stamps, pa.timestamp(unit, "UTC")) for unit in ("s", "ms", "us", "ns")},
            "naive": pa.array([stamp.replace(tzinfo=None) for stamp in stamps], pa.timestamp("us")),
            "text": pa.array(["1"] * 7 + [SECRET]),
            "number": pa.array([n - part for n in rows], pa.int64()),
            "same": pa.array([0] * 8, pa.int64()),
            "large": pa.array([2**62] * 8, pa.int64()),
            "list": pa.array([[1, 2]] * 7 + [[1]], pa.list_(pa.int64())),
        }
    )


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Two files of two row groups; partitions `part` 0 and 1."""
    folder = tmp_path_factory.mktemp("filters")
    for part in range(2):
        save(folder / "tree" / f"part={part}", table(part), row_group=4)
    made = Scene(str(folder / "dataset"))
    made.write(folder / "tree", policy=Policy(columns={"pii": ("text",)}, plaintext_partitions=("part",)))
    return made


USES: dict[str, Callable[[Dataset, Any], object]] = {
    "to_table": lambda dataset, filter: dataset.to_table(filter=filter),
    "another column": lambda dataset, filter: dataset.to_table(["same"], filter),
    "count": lambda dataset, filter: dataset.count_rows(filter),
    "row groups": lambda dataset, filter: [
        groups.read(n) for groups in [dataset.scan(filter=filter).row_groups()] for n in range(len(groups))
    ],
}
each_use = pytest.mark.parametrize("use", USES)

ILL_FITTING: dict[str, Any] = {
    **{f"time zone, {unit}": pc.field(unit) > pa.scalar(NAIVE) for unit in ("s", "ms", "us", "ns")},
    "no time zone": pc.field("naive") < pa.scalar(START, pa.timestamp("us", "UTC")),
    "time zone, tuple": [("us", ">=", NAIVE)],
    "regular expression": pc.match_substring_regex(pc.field("text"), "("),
    "index below 0": pc.list_element(pc.field("list"), -7) > 1,
}


@pytest.mark.parametrize("filter", ILL_FITTING.values(), ids=ILL_FITTING.keys())
def test_one_that_does_not_fit_the_schema_is_refused_before_a_file_is_opened(
    scene: Scene, filter: Any
) -> None:
    with scene.open() as dataset, pytest.raises(ConfigError, match="does not fit the dataset") as refused:
        dataset.scan(filter=filter)
    assert refused.value.code == "filter"
    assert refused.value.hint


@pytest.mark.parametrize("unit", ["s", "us"])
def test_the_hint_says_how_to_compare_with_a_time_zone(scene: Scene, unit: str) -> None:
    with scene.open() as dataset, pytest.raises(ConfigError) as refused:
        dataset.to_table(filter=[(unit, ">", NAIVE)])
    assert "tzinfo=timezone.utc" in refused.value.hint
    with scene.open() as dataset:
        assert dataset.count_rows([(unit, ">", START)]) == 14


FAILING: dict[str, tuple[Any, str]] = {
    "cast": (pc.field("text").cast(pa.int64()) > 0, "a text cannot be read"),
    "strptime": (
        pc.strptime(pc.field("text"), "%Y", "s") > pa.scalar(NAIVE, pa.timestamp("s")),
        "a text cannot",
    ),
    "divide": (pc.divide(pc.scalar(8), pc.field("number")) > 1, "divides by zero"),
    "divide by what is always 0": (pc.divide(pc.scalar(8), pc.field("same")) > 1, "divides by zero"),
    "overflow": (pc.multiply_checked(pc.field("large"), 4) > 1, "outside the range"),
    "narrow cast": (pc.field("large").cast(pa.int8()) > 1, "outside the range"),
    "list index": (pc.list_element(pc.field("list"), 1) > 0, "no element at the index"),
}


@each_use
@pytest.mark.parametrize(("filter", "reason"), FAILING.values(), ids=FAILING.keys())
def test_one_that_fails_on_the_rows_is_an_error_of_the_filter(
    scene: Scene, use: str, filter: Any, reason: str
) -> None:
    with scene.open() as dataset, pytest.raises(ConfigError, match=reason) as failed:
        USES[use](dataset, filter)
    assert failed.value.code == "filter"
    assert failed.value.hint
    told = "".join(traceback.format_exception(failed.value)) + failed.value.hint
    assert "file data/" in told or "file part=" in told
    assert SECRET not in told
    assert str(2**62) not in told
    column = str(filter).replace("(", " ").replace(",", " ")
    assert any(repr(name) in failed.value.message for name in dataset.schema.names if name in column)


def test_one_that_fails_on_a_partition_value_is_an_error_of_the_filter(scene: Scene) -> None:
    with scene.open() as dataset, pytest.raises(ConfigError, match=r"'part'.*divides by zero") as failed:
        dataset.to_table(filter=pc.divide(pc.scalar(8), pc.field("part")) > 1)
    assert failed.value.code == "filter"


def test_rows_before_those_it_fails_on_are_given(scene: Scene) -> None:
    with scene.open() as dataset:
        rows = iter(dataset.scan(["number"], pc.field("text").cast(pa.int64()) > 0, threads=1))
        assert next(rows).num_rows == 4
        with pytest.raises(ConfigError):
            list(rows)


@each_use
@pytest.mark.parametrize(
    "filter", [pc.field("number") > 0, FAILING["cast"][0], FAILING["divide"][0]], ids=str
)
def test_a_damaged_file_is_not_blamed_on_the_filter(
    scene: Scene, tmp_path: Path, use: str, filter: Any
) -> None:
    copy = scene.at(str(shutil.copytree(scene.url, tmp_path / "copy")))
    path = copy.folder / copy.open().files[0].path
    data = bytearray(path.read_bytes())
    for place in range(4, len(data) - 4, 16):
        data[place] ^= 1
    path.write_bytes(data)
    with copy.open() as dataset, pytest.raises(IntegrityError) as found:
        USES[use](dataset, filter)
    assert found.value.code == "file-damaged"


ODD: dict[str, pa.Array] = {
    "dictionary": pa.array(["a", "b"]).dictionary_encode(),
    "decimal": pa.array([Decimal("1.5")] * 2, pa.decimal256(40, 3)),
    "date": pa.array([date(2026, 1, 1)] * 2),
    "time": pa.array([1, 2], pa.time64("us")),
    "duration": pa.array([1, 2], pa.duration("us")),
    "binary": pa.array([b"1", b"2"], pa.binary(1)),
    "large text": pa.array(["1", "2"], pa.large_string()),
    "half": pa.array([1.0, 2.0], pa.float16()),
    "map": pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int64())),
    "fixed list": pa.array([[1, 2], [3, 4]], pa.list_(pa.int64(), 2)),
    "struct": pa.array([{"x": {"y": 1}}] * 2),
    "uuid": pa.array([b"0" * 16, b"1" * 16], pa.uuid()),
    "tensor": pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.int64(), [2]), pa.array([[1, 2], [3, 4]], pa.list_(pa.int64(), 2))
    ),
    "nothing": pa.nulls(2),
}


def test_a_filter_fits_columns_of_every_type(tmp_path: Path) -> None:
    scene = Scene(str(tmp_path / "dataset"))
    fields = [pa.field(name, array.type, nullable=array.null_count > 0) for name, array in ODD.items()]
    scene.write(pa.Table.from_arrays(list(ODD.values()), schema=pa.schema(fields)), policy=Policy())
    with scene.open() as dataset:
        for name, array in ODD.items():
            assert dataset.count_rows(pc.field(name).is_valid()) == 2 - array.null_count, name


def test_a_type_that_pyarrow_cannot_filter_is_said_to_be_one(tmp_path: Path) -> None:
    scene = Scene(str(tmp_path / "dataset"))
    scene.write(pa.table({"id": [1, 2], "view": pa.array(["1", "2"], pa.string_view())}), policy=Policy())
    with scene.open() as dataset:
        assert dataset.count_rows(pc.field("id") > 1) == 1
        with pytest.raises(ConfigError, match="column of such a type") as failed:
            dataset.to_table(filter=pc.field("id") > 1)
    assert failed.value.code == "filter"


@pytest.mark.parametrize("given", ["age > 3", b"x", 5, {"id": 3}, lambda row: True])
def test_what_is_no_filter_at_all_is_told_what_one_is(scene: Scene, given: Any) -> None:
    told = r"a filter is a pyarrow expression or a list of \(column, op, value\)"
    with scene.open() as dataset, pytest.raises(ConfigError, match=told) as refused:
        dataset.to_table(filter=given)
    assert refused.value.code == "filter"
    assert refused.value.hint


@pytest.mark.parametrize(
    "given", [[], [[]], [()], ["number > 3"], [("number", ">")], ("number", ">", 3), [(1, ">", 3)],
              [("number", "in", 3)], [{"number": 3}]],
    ids=str,
)  # fmt: skip
def test_a_list_that_is_not_well_formed_is_refused(scene: Scene, given: Any) -> None:
    with scene.open() as dataset, pytest.raises(ConfigError, match="not well formed") as refused:
        dataset.to_table(filter=given)
    assert refused.value.code == "filter"
    assert refused.value.hint


def test_partition_values_that_do_not_decide_keep_all_files(scene: Scene) -> None:
    with scene.open() as dataset:
        kept = prune_by_partition(dataset.files, dataset.schema, ds.field("number") > 0)
    assert len(kept) == 2
