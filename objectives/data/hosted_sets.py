"""Data sets of other hosts: what they are called, where they are, and how their files read."""

import ast
import gzip
import io
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.csv

from objectives.data.cache import cache_batches, cache_folder
from objectives.data.download import download
from objectives.errors import UserError

_BLOCK_BYTES = 16 << 20
_ROWS = 1 << 17
_DAMAGED = (
    KeyError, ValueError, SyntaxError, EOFError, OSError, zlib.error, zipfile.BadZipFile,
    pa.ArrowException,
)  # fmt: skip
_VERSION = 1
"""Of the files that are made of what was fetched."""


@dataclass(frozen=True)
class HostedSet:
    """A data set that its host gives to everybody.

    Attributes:
        url: Of a zip with the file as a member, or of a file, which may be gzipped.
        licence: What to know before using it; shown when it is fetched.
        columns: Of the file, by our names.
        digest: That its host gives, such as `md5:…`, or None.
        member: The file inside a zip.
        header: Its columns where it does not name them; of a file without, all of them.
        separator: Between columns; "literals": a Python dict a line.
    """

    url: str
    licence: str
    columns: dict[str, str]
    digest: str | None = None
    member: str | None = None
    header: tuple[str, ...] | None = None
    separator: str = ","


_GROUPLENS = "https://files.grouplens.org/datasets/movielens"
_MOVIELENS = (
    "MovieLens (GroupLens): research use, no redistribution, no commercial use without "
    "permission; cite Harper and Konstan, 2015. https://grouplens.org/datasets/movielens/"
)
_RATINGS = {"user": "userId", "item": "movieId", "time": "timestamp", "rating": "rating"}
_MCAULEY = "https://mcauleylab.ucsd.edu/public_datasets/data"
_AMAZON_2018 = (
    "Amazon reviews 2018: no formal licence, research use; cite Ni et al., EMNLP 2019. "
    "https://nijianmo.github.io/amazon/"
)
_AMAZON_2023 = (
    "Amazon Reviews 2023: no formal licence, research use; cite Hou et al., 2024. "
    "https://amazon-reviews-2023.github.io/"
)
_BOTH_YEARS = [
    "All_Beauty", "Appliances", "Arts_Crafts_and_Sewing", "Automotive", "Books", "CDs_and_Vinyl",
    "Cell_Phones_and_Accessories", "Clothing_Shoes_and_Jewelry", "Digital_Music", "Electronics",
    "Gift_Cards", "Grocery_and_Gourmet_Food", "Home_and_Kitchen", "Industrial_and_Scientific",
    "Kindle_Store", "Magazine_Subscriptions", "Movies_and_TV", "Musical_Instruments",
    "Office_Products", "Patio_Lawn_and_Garden", "Pet_Supplies", "Software", "Sports_and_Outdoors",
    "Tools_and_Home_Improvement", "Toys_and_Games", "Video_Games",
]  # fmt: skip
_2018 = [*_BOTH_YEARS, "AMAZON_FASHION", "Luxury_Beauty", "Prime_Pantry"]
_2023 = [
    *_BOTH_YEARS, "Amazon_Fashion", "Baby_Products", "Beauty_and_Personal_Care",
    "Handmade_Products", "Health_and_Household", "Health_and_Personal_Care",
    "Subscription_Boxes", "Unknown",
]  # fmt: skip

HOSTED_SETS = {
    "ml-1m": HostedSet(
        f"{_GROUPLENS}/ml-1m.zip",
        _MOVIELENS,
        {name: name for name in ("user", "item", "time", "rating")},
        "md5:c4d9eecfca2ab87c1945afe126590906",
        "ml-1m/ratings.dat",
        ("user", "item", "rating", "time"),
        "::",
    ),
    "ml-20m": HostedSet(
        f"{_GROUPLENS}/ml-20m.zip",
        _MOVIELENS,
        _RATINGS,
        "md5:cd245b17a1ae2cc31bb14903e1204af3",
        "ml-20m/ratings.csv",
    ),
    "ml-25m": HostedSet(
        f"{_GROUPLENS}/ml-25m.zip",
        _MOVIELENS,
        _RATINGS,
        "md5:6b51fb2759a8657d3bfcbfc42b592ada",
        "ml-25m/ratings.csv",
    ),
    "gowalla": HostedSet(
        "https://snap.stanford.edu/data/loc-gowalla_totalCheckins.txt.gz",
        "Gowalla check-ins (SNAP): no formal licence; cite Cho, Myers and Leskovec, KDD 2011. "
        "https://snap.stanford.edu/data/loc-gowalla.html",
        {"user": "user", "item": "location", "time": "time"},
        header=("user", "time", "latitude", "longitude", "location"),
        separator="\t",
    ),
    "steam": HostedSet(
        f"{_MCAULEY}/steam/steam_reviews.json.gz",
        "Steam reviews: no formal licence, research use; cite Kang and McAuley, ICDM 2018. "
        "https://cseweb.ucsd.edu/~jmcauley/datasets.html#steam_data",
        {"user": "username", "item": "product_id", "time": "date"},
        separator="literals",
    ),
    **{
        f"amazon-2018-{category.lower().replace('_', '-')}": HostedSet(
            f"{_MCAULEY}/amazon_v2/categoryFilesSmall/{category}.csv",
            _AMAZON_2018,
            {name: name for name in ("user", "item", "time", "rating")},
            header=("item", "user", "rating", "time"),
        )
        for category in _2018
    },
    **{
        f"amazon-2023-{category.lower().replace('_', '-')}": HostedSet(
            f"{_MCAULEY}/amazon_2023/benchmark/0core/rating_only/{category}.csv.gz",
            _AMAZON_2023,
            {"user": "user_id", "item": "parent_asin", "time": "timestamp", "rating": "rating"},
        )
        for category in _2023
    },
}

BY_HAND = {
    "yelp": (
        "https://business.yelp.com/data/resources/open-dataset/ asks for consent",
        "yelp_academic_dataset_review.json --columns.user user_id --columns.item business_id "
        "--columns.time date --columns.rating stars",
    ),
    "30music": (
        "https://recsys.deib.polimi.it/datasets/ has it as idomaar files, to be made a table",
        "30music.csv --columns.user user --columns.item track --columns.time time",
    ),
    "zvuk": (
        "https://www.kaggle.com/datasets/alexxl/zvuk-dataset asks for an account",
        "zvuk-interactions.parquet --columns.user user_id --columns.item track_id "
        "--columns.time datetime",
    ),
    "megamarket": (
        "https://www.kaggle.com/datasets/alexxl/megamarket asks for an account",
        "megamarket.parquet --columns.user user_id --columns.item item_id --columns.time datetime "
        "--columns.event event --filter.events 2",
    ),
    "globo-news": (
        "https://www.kaggle.com/datasets/gspmoreira/news-portal-user-interactions-by-globocom "
        "asks for an account",
        "clicks --columns.user user_id --columns.item click_article_id "
        "--columns.time click_timestamp",
    ),
}
"""Where sets are that cannot be fetched, and how their files are then named."""


def fetch_hosted(name: str, source: HostedSet) -> tuple[list[Path], tuple[str, ...]]:
    """The set's interactions in the cache, fetched and verified on first use.

    Returns:
        The files, and what to tell the user.

    Raises:
        UserError: It cannot be fetched, or is not what is expected.
    """
    raw = cache_folder() / "raw"
    target = raw / f"{name}-{_VERSION}"
    notes: tuple[str, ...] = ()
    if not target.is_dir():
        archive = raw / f"{name}-{source.url.rpartition('/')[2]}"
        notes = (*download(source.url, archive, source.digest), f"licence: {source.licence}")
        cache_batches(target, _batches(name, archive, source))
    return sorted(target.glob("*.parquet")), notes


def _open(archive: Path, member: str | None) -> BinaryIO:
    if member is not None:
        return cast(BinaryIO, zipfile.ZipFile(archive).open(member))
    if archive.suffix == ".gz":
        return io.BufferedReader(gzip.open(archive))
    return archive.open("rb")


def _batches(name: str, archive: Path, source: HostedSet) -> Iterator[pa.RecordBatch]:
    """Batches of text with columns under our names."""
    try:
        with _open(archive, source.member) as stream:
            yield from _rows(stream, source)
    except _DAMAGED as error:
        raise UserError(
            f"--data {name}: {archive} is damaged, or not of the form that is expected; delete it "
            "to fetch it again"
        ) from error


def _rows(stream: BinaryIO, source: HostedSet) -> Iterator[pa.RecordBatch]:
    if source.separator == "literals":
        yield from _literals(stream, source.columns)
        return
    header, separator = source.header, source.separator
    if separator == "::":
        # Arrow separates at one character: between two there is a column of nothing.
        assert header is not None
        header = tuple(name for each in header for name in (each, f"after {each}"))[:-1]
        separator = ":"
    reader = pa.csv.open_csv(
        stream,
        read_options=pa.csv.ReadOptions(block_size=_BLOCK_BYTES, column_names=header),
        parse_options=pa.csv.ParseOptions(delimiter=separator),
        convert_options=pa.csv.ConvertOptions(
            include_columns=list(source.columns.values()),
            column_types={name: pa.binary() for name in source.columns.values()},
        ),
    )
    for batch in reader:
        yield batch.rename_columns(list(source.columns))


def _literals(stream: BinaryIO, columns: dict[str, str]) -> Iterator[pa.RecordBatch]:
    rows: list[dict[str, object]] = []
    for line in stream:
        rows.append(ast.literal_eval(line.decode()))
        if len(rows) == _ROWS:
            yield _batch(rows, columns)
            rows = []
    if rows:
        yield _batch(rows, columns)


def _batch(rows: list[dict[str, object]], columns: dict[str, str]) -> pa.RecordBatch:
    arrays = [pa.array([str(row.get(name) or "") for row in rows]) for name in columns.values()]
    return pa.record_batch(arrays, list(columns))
