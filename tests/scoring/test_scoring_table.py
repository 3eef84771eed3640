import math

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlmsel import runs
from vlmsel.scoring.table import read_table, score_columns, write_table

NAN = float("nan")


def columns():
    return {
        "uid": [0, 1, 2],
        "id": ["007", "", "b"],
        "source": ["coco", "", "text"],
        "tokens": [9, 0, 4],
        "loss": [0.5, NAN, 1.5],
        "HyperINF/gqa": [-1.0, NAN, 0.1],
        "HyperINF/pope": [NAN, NAN, NAN],
        "HyperINF.official/gqa": [1.0, NAN, 2.0],
    }


def saved(folder):
    pool = folder / "pool.json"
    pool.write_text("[]")
    about = {"pool": str(pool), "pool_sha256": runs.file_hash(pool), "details": {"bound": math.inf}}
    write_table(folder / "scores.parquet", columns(), about)
    return folder / "scores.parquet", pool


def test_a_table_comes_back_as_it_was(tmp_path):
    path, pool = saved(tmp_path)
    table, about = read_table(path, pool)
    assert list(table) == list(columns())
    for name, values in columns().items():
        same = values if name in ("id", "source") else pytest.approx(values, abs=0, nan_ok=True)
        assert table[name].tolist() == same, name
    assert about["pool"] == str(pool)
    assert about["details"] == {"bound": math.inf}


@pytest.mark.parametrize("name", ["exp:1", "s3:run", "a b", "ü#1?x=%20", "file:"])
def test_a_folder_may_have_any_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_table(f"{name}/scores.parquet", columns(), {})
    assert list(read_table(f"{name}/scores.parquet")[0]) == list(columns())
    assert {path.name for path in (tmp_path / name).iterdir()} == {"scores.parquet", "scores.json"}


@pytest.mark.parametrize("name", ["scores.parquet", "mine.parquet", "mine.csv"])
def test_a_table_survives_pandas_in_any_order_of_its_rows(name, tmp_path):
    path, pool = saved(tmp_path)
    frame = pd.read_parquet(path).sort_values("HyperINF/gqa", ascending=False)
    frame.to_csv(tmp_path / name) if name.endswith("csv") else frame.to_parquet(tmp_path / name)
    table, about = read_table(tmp_path / name, pool)
    assert list(table) == list(columns()) and about["details"] == {"bound": math.inf}
    for column, values in columns().items():
        same = values if column in ("id", "source") else pytest.approx(values, abs=0, nan_ok=True)
        assert table[column].tolist() == same, column
    pool.write_text("[1]")
    with pytest.raises(ValueError, match="these scores belong to another pool"):
        read_table(tmp_path / name, pool)


def test_a_table_saved_again_needs_all_rows_and_the_metadata_beside_it(tmp_path):
    path, pool = saved(tmp_path)
    frame = pd.read_parquet(path)
    frame[:2].to_parquet(path)
    with pytest.raises(ValueError, match=r"scores.parquet: 2 rows, and the pool has 3 records; keep one row of each"):
        read_table(path)
    frame.to_parquet(path)
    (tmp_path / "scores.json").unlink()
    with pytest.raises(ValueError, match=r"nor is scores.json beside it; leave the table in its run folder"):
        read_table(path)


def test_missing_scores_are_nulls_and_types_do_not_depend_on_them(tmp_path):
    table = pq.read_table(saved(tmp_path)[0])
    assert [table[name].null_count for name in table.column_names] == [0, 0, 0, 0, 1, 1, 3, 1]
    assert table.schema.types == [pa.int64(), pa.string(), pa.string(), pa.int64(), *[pa.float64()] * 4]


def test_the_table_of_another_pool_is_refused(tmp_path):
    path, pool = saved(tmp_path)
    other = tmp_path / "other.json"
    other.write_text("[1]")
    with pytest.raises(ValueError, match=r"scores.parquet: these scores belong to another pool \(.*pool.json\) than"):
        read_table(path, other)
    pool.write_text("[2]")
    with pytest.raises(ValueError, match="score this pool first"):
        read_table(path, pool)
    pool.unlink()
    with pytest.raises(FileNotFoundError, match=r"pool.json: no such file; give the pool that was scored"):
        read_table(path, pool)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such score table"):
        read_table(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("not a table")
    with pytest.raises(ValueError, match=r"text.parquet: not a parquet file"):
        read_table(tmp_path / "text.parquet")
    pq.write_table(pa.table({"uid": [1]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"other.parquet: not a score table"):
        read_table(tmp_path / "other.parquet")
    path, _ = saved(tmp_path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match="not a parquet file"):
        read_table(path)


def test_columns_of_one_scorer():
    assert score_columns(columns(), "HyperINF") == ["HyperINF/gqa", "HyperINF/pope"]
    assert score_columns(columns(), "HyperINF", ["pope"]) == ["HyperINF/pope"]
    with pytest.raises(ValueError, match="no scores named 'loss' in the table; it has HyperINF/gqa, HyperINF/pope, Hy"):
        score_columns(columns(), "loss")
    with pytest.raises(ValueError, match="no scores named 'HyperINF/vqav2'"):
        score_columns(columns(), "HyperINF", ["pope", "vqav2"])
