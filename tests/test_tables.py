"""Parquet files whose footers claim what they do not have: refused at once."""

from __future__ import annotations

import base64
import io
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catdog import tables
from catdog.data import parquet_images
from catdog.errors import CatdogError

# Found by fuzzing: a catalog of five rows, in a group that claims 6,687,749,755, for which Arrow took 4 GB.
CLAIMS = (
    "eNqNVk1sG0UUntm1F8dYipN0lt3KQouFV6lwk9iJC6laKbNO4zg4ITFtHBuhdu1Ym3Ucx/U6CU0pQkhIPXBACKEeOPTEiXKinBDiUCHBAYHE"
    "BY4IIRA3fk/8vBmv/xqnZWS9mXnvm+99783I9irNxoiH3MSkkSF+gkYRGr87+bc2/zpGJ4QhhFDJbE7EJip1K765awXAYWrhYjiqlZjPi+aQ"
    "5ytnWHss+NujBAFDKAomSCQihc6g8SE4MxFnSCXQe25kBLmJvKcQEsWbCwhUxMl8nwj1c4QwAGPMxJmZZmaGmcSAbDih4Nhg6i8xeaWP27qL"
    "0UUhCFh7x7TKzmRfnWO9YiV0xTvzKokmhn/64Bd9bEDioMvRrXbM9bR4StrxRQdJOANTR5iPIj5YkZBqlDzZTaV4mFfxsLgsjPfsutxDaYQE"
    "2IjDWAwA8QxZyMDhDv/JrxHyQrzZMO0aW+ybVXuTkTTLThMy+sjJvuK8HKB4WLibxvMEpBHnBcgwR85l4FQng3YHoToGESLytGpB4kXYYSA/"
    "QfQecmHc10YoPuyuujn8a+1SBPEH6JX6cgIpklPaKu+YJIBIIIIUcbt8LYIyIdYtthfszd6tuNew23shIijeqlksVyOPZ94f8420QV6nXrWb"
    "bZgHYNKmDbfXjIQANzfKuu1XQ2pVRyESUBNICqo8MQnIfvlNQX5D0G9h3feQF69G2T0TgV1rEKZz8hVVUiVg7+WFAjjtW1j+COu/C/rbQu/b"
    "PkriH0DCyuYsvwryh4L+o0f/Qvw/D/UBWt/DPXkEN0+rnTzTu1j+FOsfS/o/3ge/0yPUpyRVF3z3VdC6E858G8v3sH7bp3/yyID3eFTpVI9Q"
    "j0vnXijn+wzL32D9uyH9taHjn+DxKuV3/PKf3/71c+yPf7+PKhJ8b0A3leT1cOthXt4vNxx7txY+q8WiWrhUNR3ncs3cKTvgeSEMcGhzGI6E"
    "X4R5t94ELAtdv3EDKQGazT6XO9tiUm55J9l4yjIopWu0NZ6ldIYaFl2g1KJJi/sMoy9+wOYLnfii5e7bLDyeZrPBZxY3eMTgyGW2ejpdW6mY"
    "qfVmfn02XthYOjRzs3vpyq61bB9Y6Z0VJ7+xcrgRT2wVc+uHzJ+7tlTJb6zZmSS1C6nZWro65aSTS/ulxWy9GE9wTHk6NktpnvFX8rnsdjFe"
    "oq09vcS0TbNVhkkxZthytSM6uc1awSVucafV0dsaKWYKqWqtsLEy1XLlaZLXne8gn18FEl7+pbXOoU7r3C4srhwUU1XOscrwL1HW7DTjMQ7o"
    "stvM9qHj9CwwU0wt2IVct9+gZ9GFcniS11uBJM/wMxc6Itz74oPfR6y0s02vMj2zhw/Bp5mzXgB72KefDtJPjazbrH7988yY8fUEgxp9/OfP"
    "I0Wrm42re+Xm6VK9ftpsNHYPNPfha/EzE1MTMbUK36b3fdA9+MFZhb8c/wHY6r73"
)


def test_rows_that_a_group_only_claims() -> None:
    data = zlib.decompress(base64.b64decode(CLAIMS))
    with pytest.raises(pa.ArrowInvalid, match="5 rows, of which its groups have 6,687,749,755"):
        tables.table_from_bytes(data)
    with pytest.raises(CatdogError, match="x.parquet is not a Parquet file, or damaged .5 rows, of which its groups"):
        parquet_images.read_rows(io.BytesIO(data), "x.parquet")


def test_every_number_of_groups() -> None:
    for count in (0, 1, 3):
        sink = pa.BufferOutputStream()
        table = pa.table({"a": list(range(2 * count))}, pa.schema([("a", pa.int64())]))
        pq.write_table(table, sink, row_group_size=2)
        assert tables.table_from_bytes(sink.getvalue().to_pybytes()).equals(table)
