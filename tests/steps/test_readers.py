"""Values of `vector` in every reader that people use, without embedx."""

import json
import subprocess
import sys

import pytest

READERS = {
    "pyarrow": "import pyarrow.parquet as pq\nrows = [r for f in files for r in pq.read_table(f).select(['item_id', 'vector']).to_pylist()]",
    "pandas": "import pandas as pd\nrows = pd.concat([pd.read_parquet(f) for f in files])[['item_id', 'vector']].to_dict('records')",
    "duckdb": (
        "import duckdb\nfound = duckdb.connect().execute('select item_id, vector from read_parquet(?)', [files]).fetchall()\n"
        "rows = [{'item_id': i, 'vector': v} for i, v in found]"
    ),
    "polars": "import polars as pl\nrows = pl.scan_delta(store).select('item_id', 'vector').collect().to_dicts()",
    "deltalake": "from deltalake import DeltaTable\nrows = DeltaTable(store).to_pyarrow_table(columns=['item_id', 'vector']).to_pylist()",
    "datasets": (
        "from datasets import load_dataset\n"
        "rows = load_dataset('parquet', data_files=files, split='train', cache_dir=cache).select_columns(['item_id', 'vector']).to_list()"
    ),
    "dask": "import dask.dataframe as dd\nrows = dd.read_parquet(files).compute()[['item_id', 'vector']].to_dict('records')",
}

SCRIPT = """
import json, sys
store, cache, files = sys.argv[1], sys.argv[2], sys.argv[3:]
{reader}
assert not any(name.startswith('embedx') for name in sys.modules)
print(json.dumps({{row['item_id']: [float(v) for v in row['vector']] for row in rows}}))
"""


@pytest.mark.parametrize("reader", READERS)
def test_values_are_equal(embedx, tmp_path, support_store, reader):
    from embedx.store.reader import open_store

    files = embedx("inspect", support_store, "--files").stdout.split()
    code = SCRIPT.format(reader=READERS[reader])
    done = subprocess.run(
        [sys.executable, "-c", code, str(support_store), str(tmp_path), *files], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    ids, vectors = open_store(support_store).vectors()
    assert json.loads(done.stdout) == dict(zip(ids, vectors.astype(float).tolist()))
