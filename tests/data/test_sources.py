"""What a path names: a file, a folder, a glob, or files of a data set on the Hub."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar
from urllib.parse import unquote

import pytest
from huggingface_hub import constants

from finetune import hubs
from finetune.data.readers import BadRow, LocatedRow
from finetune.data.sources import content_hashes, find_files, read_rows
from finetune.errors import DataError
from tests.data.test_readers import write

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB = f"hf://datasets/pizza/orders@{COMMIT}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder; `lay` puts files with one row each into it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lay(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in ("", ".md", ".txt") or path.name.startswith((".", "dataset_", "state")):
            path.write_text("{}")
        else:
            write(path, [{"from": name}])


def found(path: str) -> list[str]:
    return [str(file) for file in find_files(path)]


def refusal(path: str) -> str:
    with pytest.raises(DataError) as error:
        find_files(path)
    for reader in (lambda: list(read_rows(path)), lambda: content_hashes(path)):
        with pytest.raises(DataError) as again:
            reader()
        assert str(again.value) == str(error.value)
    return str(error.value)


def test_a_file_is_itself(folder: Path) -> None:
    lay(folder, "a.jsonl", "data[1].csv")
    assert found("a.jsonl") == found("./a.jsonl") == ["a.jsonl"]
    assert found("data[1].csv") == ["data[1].csv"]  # not the glob for data1.csv
    assert list(read_rows("a.jsonl")) == [LocatedRow({"from": "a.jsonl"}, "a.jsonl:1")]


def test_a_home_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    lay(folder, "a.jsonl")
    assert found("~/a.jsonl") == found("~/*.jsonl") == [f"{folder}/a.jsonl"]
    assert "~nobody-at-all/a.jsonl: no such data file" in refusal("~nobody-at-all/a.jsonl")


def test_a_folder_gives_all_its_data_files_by_path(folder: Path) -> None:
    lay(folder, "d/b.jsonl", "d/a.parquet", "d/sub/c.csv.gz", "d/sub/README.md", "d/notes.txt", "d/.cache/x.jsonl")
    lay(folder, "d/.hidden.jsonl", "d/dataset_info.json", "d/state.json", "d/sub/deep/x.arrow")
    assert found("d") == found("d/") == ["d/a.parquet", "d/b.jsonl", "d/sub/c.csv.gz", "d/sub/deep/x.arrow"]
    assert [row.where for row in read_rows("d")] == [
        "d/a.parquet:row 1",
        "d/b.jsonl:1",
        "d/sub/c.csv.gz:2",
        "d/sub/deep/x.arrow:row 1",
    ]


def test_a_folder_without_data_says_what_it_saw(folder: Path) -> None:
    lay(folder, "d/README.md", "d/sub/notes.txt", "d/state.json")
    assert refusal("d") == "d: holds no data file but README.md, state.json, sub/notes.txt"
    (folder / "e").mkdir()
    assert refusal("e") == "e: holds no data file but nothing"
    lay(folder, *(f"f/{n:02}.txt" for n in range(15)))
    assert refusal("f").endswith("08.txt, 09.txt and 5 more")


def test_a_saved_dict_of_splits_asks_for_one(folder: Path) -> None:
    lay(folder, "d/dataset_dict.json", "d/train/a.arrow", "d/test/a.arrow")
    assert refusal("d") == "d: holds several splits of a data set; name one, such as d/train"
    assert found("d/train") == ["d/train/a.arrow"]


def test_links_are_followed_once(folder: Path) -> None:
    lay(folder, "real/a.jsonl", "d/b.jsonl")
    (folder / "d/link").symlink_to(folder / "real")
    (folder / "d/self").symlink_to(folder / "d")
    (folder / "d/c.jsonl").symlink_to(folder / "real/a.jsonl")
    assert found("d") == ["d/b.jsonl", "d/c.jsonl", "d/link/a.jsonl"]


def test_a_glob_gives_what_matches(folder: Path) -> None:
    lay(folder, "d/b.jsonl", "d/a.jsonl", "d/x.csv", "d/sub/c.jsonl", "d/notes.txt", "d/.h.jsonl")
    assert found("d/*.jsonl") == ["d/a.jsonl", "d/b.jsonl"]
    assert found("d/**/*.jsonl") == found("**/*.jsonl") == ["d/a.jsonl", "d/b.jsonl", "d/sub/c.jsonl"]
    assert found("d/*") == ["d/a.jsonl", "d/b.jsonl", "d/x.csv"]
    assert found(f"{folder}/d/[ax].*") == [f"{folder}/d/a.jsonl", f"{folder}/d/x.csv"]


def test_a_glob_without_matches_is_named(folder: Path) -> None:
    lay(folder, "d/notes.txt")
    assert refusal("d/*.jsonl") == f"d/*.jsonl: matches no file; looked in {folder}"
    assert refusal("d/*.txt") == "d/*.txt: matches no data file but d/notes.txt"
    assert refusal(f"{folder}/d/*.txt").endswith(f"matches no data file but {folder}/d/notes.txt")


def test_a_path_that_names_nothing_is_refused(folder: Path) -> None:
    lay(folder, "rows.jsonl", "rows.txt")
    assert refusal("row.jsonl") == "row.jsonl: no such data file; did you mean rows.jsonl?"
    assert refusal("zzz.csv") == f"zzz.csv: no such data file; looked for {folder}/zzz.csv"
    assert refusal("nowhere/x.csv") == f"nowhere/x.csv: no such data file; looked for {folder}/nowhere/x.csv"
    assert refusal("data") == f"data: no such data file; looked for {folder}/data"
    assert refusal("rows.txt").startswith("rows.txt: unknown kind of data file '.txt'; use one of .jsonl")
    assert refusal("none.txt").startswith("none.txt: unknown kind of data file '.txt'")
    assert "cannot be read (File name too long)" in refusal(f"{'x' * 999}.jsonl")


def test_hashes_are_those_of_the_bytes_under_the_names_of_the_rows(folder: Path) -> None:
    lay(folder, "d/a.jsonl", "d/b.csv.gz")
    expected = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("d/a.jsonl", "d/b.csv.gz")}
    assert content_hashes("d") == expected
    assert {row.where.rpartition(":")[0] for row in read_rows("d")} == set(expected)


def test_bad_rows_of_one_file_do_not_hide_the_next(folder: Path) -> None:
    lay(folder, "d/a.jsonl", "d/b.jsonl")
    (folder / "d/a.jsonl").write_text("{\n")
    assert [type(row) for row in read_rows("d")] == [BadRow, LocatedRow]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hub cache, and offline mode."""
    root = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return root


def store(cache: Path, *names: str, ref: str = "main") -> Path:
    """Lay files down as the Hub's library does: content in blobs, links to it in the commit's snapshot."""
    repo = cache / "datasets--pizza--orders"
    for name in names:
        lay(repo / "new", name)
        blob = repo / "blobs" / hashlib.sha256(name.encode()).hexdigest()
        blob.parent.mkdir(exist_ok=True)
        (repo / "new" / name).rename(blob)
        link = repo / "snapshots" / COMMIT / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (repo / "refs").mkdir(exist_ok=True)
    (repo / "refs" / ref).parent.mkdir(exist_ok=True, parents=True)
    (repo / "refs" / ref).write_text(COMMIT)
    return repo / "snapshots" / COMMIT


def names(path: str) -> list[str]:
    """What the rows say they are from; every place must be under the path's own name."""
    rows = list(read_rows(path))
    files = [row.where.removesuffix(":row 1").removesuffix(":1").removesuffix(":2") for row in rows]
    assert list(content_hashes(path)) == files
    pinned = path.split("@")[0] + "@" + path.split("@")[1].split("/")[0]
    assert all(file.startswith(f"{pinned}/") for file in files)
    assert all(isinstance(row, LocatedRow) for row in rows)
    return [file.removeprefix(f"{pinned}/") for file in files]


def test_a_data_set_in_the_cache_is_read(cache: Path) -> None:
    snapshot = store(
        cache, "data/train-00000.parquet", "data/train-00001.parquet", "data/test-00000.parquet", "README.md"
    )
    assert names(HUB) == ["data/train-00000.parquet", "data/train-00001.parquet"]
    assert find_files(HUB) == (snapshot / "data/train-00000.parquet", snapshot / "data/train-00001.parquet")
    assert next(read_rows(HUB)).where == f"{HUB}/data/train-00000.parquet:row 1"


def test_a_branch_or_tag_is_a_revision_too(cache: Path) -> None:
    store(cache, "orders.jsonl", ref="v1.0")
    assert names("hf://datasets/pizza/orders@v1.0") == ["orders.jsonl"]
    store(cache, "more.jsonl.gz", ref="refs/convert/parquet")
    for revision in ("refs/convert/parquet", "refs%2Fconvert%2Fparquet"):
        rows = read_rows(f"hf://datasets/pizza/orders@{revision}/more*")
        assert [row.where for row in rows] == [f"hf://datasets/pizza/orders@{revision}/more.jsonl.gz:1"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("test.jsonl", ["test.jsonl"]),
        ("*.jsonl", ["test.jsonl", "train.jsonl"]),
        ("**/*.csv", ["de/train.csv", "fr/test.csv", "fr/train.csv"]),
        ("de/**/*.csv", ["de/train.csv"]),
        ("fr", ["fr/test.csv", "fr/train.csv"]),
        ("fr/", ["fr/test.csv", "fr/train.csv"]),
    ],
)
def test_a_glob_chooses_among_the_files_of_a_data_set(cache: Path, pattern: str, expected: list[str]) -> None:
    store(cache, "train.jsonl", "test.jsonl", "de/train.csv", "fr/train.csv", "fr/test.csv", "fr/README.md")
    assert names(f"{HUB}/{pattern}") == expected


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (["orders.jsonl"], ["orders.jsonl"]),
        (["test.jsonl"], ["test.jsonl"]),  # there is nothing else
        (["a.jsonl", "b.jsonl", "dataset_infos.json"], ["a.jsonl", "b.jsonl"]),
        (["Train.jsonl", "constrained.jsonl"], ["Train.jsonl"]),
        (["train/0.parquet", "test/0.parquet"], ["train/0.parquet"]),
    ],
)
def test_the_training_split_is_chosen_by_name(cache: Path, stored: list[str], expected: list[str]) -> None:
    store(cache, *stored)
    assert names(HUB) == expected


@pytest.mark.parametrize(
    "stored", [["de/train.csv", "fr/train.csv"], ["train.csv", "train.parquet"], ["de/a.csv", "fr/b.csv", "README.md"]]
)
def test_several_configurations_ask_for_a_glob(cache: Path, stored: list[str]) -> None:
    store(cache, *stored)
    listing = ", ".join(name for name in stored if name != "README.md")
    expected = f"{HUB}: has files in several folders or of several kinds: {listing}; choose some: {HUB}/GLOB"
    assert refusal(HUB) == expected


def test_a_data_set_without_data_says_what_it_saw(cache: Path) -> None:
    store(cache, "README.md", "notes.txt")
    assert refusal(HUB) == f"{HUB}: holds no data file but README.md, notes.txt"
    assert refusal(f"{HUB}/*.jsonl").startswith(f"{HUB}/*.jsonl: matches no file; looked in ")
    assert refusal(f"{HUB}//etc/*.conf").startswith(f"{HUB}//etc/*.conf: matches no file; looked in {cache}")


@pytest.mark.parametrize(
    "path", ["hf://pizza/orders@main", "hf://datasets/orders@main", "hf://datasets/a/b@", "hf://datasets/a/b/c@main"]
)
def test_what_names_no_data_set_says_how_to_write_one(cache: Path, path: str) -> None:
    if path == "hf://datasets/a/b/c@main":  # a GLOB may hold an @, so this one names no revision
        assert "names no revision" in refusal(path)
    else:
        assert refusal(path).startswith(
            f"{path}: names no data set on the Hub; write hf://datasets/OWNER/NAME@REVISION"
        )


def test_a_revision_must_be_named(cache: Path) -> None:
    store(cache, "orders.jsonl")
    what = "names no revision, so its rows may change from run to run; pin a commit"
    path = "hf://datasets/pizza/orders"
    assert refusal(path) == f"{path}: {what}: {path}@COMMIT"
    assert refusal(f"{path}/*.jsonl") == f"{path}/*.jsonl: {what}: {path}@COMMIT/*.jsonl"


def test_what_is_not_in_the_cache_says_so_offline(cache: Path) -> None:
    store(cache, "orders.jsonl")
    other = HUB.replace("0", "f")
    for path in (other, "hf://datasets/pizza/none@main"):
        assert refusal(path) == (
            f"{path}: cannot load the data set: it is not in the local cache and offline mode is on (HF_HUB_OFFLINE); "
            "unset HF_HUB_OFFLINE"
        )


def test_without_network_the_answer_comes_at_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(cache, "orders.jsonl")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    hubs.reachable.cache_clear()
    try:
        assert names(HUB) == ["orders.jsonl"]
        assert "not in the local cache and the Hub cannot be reached; check" in refusal("hf://datasets/pizza/no@main")
        assert refusal("hf://datasets/pizza/orders").endswith("pin a commit: hf://datasets/pizza/orders@COMMIT")
    finally:
        hubs.reachable.cache_clear()


def test_behind_a_proxy_the_hub_may_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid")
    hubs.reachable.cache_clear()
    assert hubs.reachable()
    hubs.reachable.cache_clear()


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as a download needs, with one public, one gated and no other data set."""

    files: ClassVar[dict[str, bytes]] = {
        "data/train.jsonl": b'{"n": 1}\n',
        "data/test.jsonl": b'{"n": 2}\n',
        "README.md": b"# Orders",
    }

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path.split("?")[0])
        if "/pizza/gated" in path:
            self.answer(403, b"{}", **{"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"})
        elif "/pizza/orders" not in path:
            self.answer(404, b"{}", **{"X-Error-Code": "RepoNotFound"})
        elif path.endswith(("/orders", f"/revision/{COMMIT}", "/revision/main")):
            self.answer(200, json.dumps({"_id": "1", "id": "pizza/orders", "sha": COMMIT, "private": False}).encode())
        elif f"/tree/{COMMIT}" in path:
            tree = [{"type": "file", "oid": "1", "size": len(b), "path": name} for name, b in self.files.items()]
            self.answer(200, json.dumps(tree).encode())
        elif f"/resolve/{COMMIT}/" in path:
            name = path.partition(f"/resolve/{COMMIT}/")[2]
            self.answer(200, self.files[name], **{"ETag": f'"{len(name)}"', "X-Repo-Commit": COMMIT})
        else:
            self.answer(404, b"{}", **{"X-Error-Code": "RevisionNotFound"})

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), "Content-Type": "application/json", **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


READ_ALL = """
import json, sys
from finetune.data.sources import content_hashes, read_rows
from finetune.errors import DataError
for path in sys.argv[1:]:
    try:
        print(json.dumps([[row.row, row.where] for row in read_rows(path)]))
    except DataError as error:
        print(json.dumps(str(error)))
"""


def test_data_sets_are_loaded_from_the_hub(tmp_path: Path, hub: str) -> None:
    """In a process of its own: the Hub's library reads its address once."""
    public = "hf://datasets/pizza/orders"
    paths = [
        f"{public}@{COMMIT}",
        f"{public}@main/data/te*.jsonl",
        f"{public}@none",
        public,
        "hf://datasets/pizza/gated@main",
        "hf://datasets/pizza/nowhere@main",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, *paths], capture_output=True, text=True, env=environment, check=True
    )
    train, test, revision, unpinned, gated, missing = map(json.loads, done.stdout.splitlines())
    assert train == [[{"n": 1}, f"{public}@{COMMIT}/data/train.jsonl:1"]]
    assert test == [[{"n": 2}, f"{public}@main/data/test.jsonl:1"]]
    assert "the Hub has no such revision of it; check what stands behind the @" in revision
    assert unpinned.endswith(f"pin the current commit: {public}@{COMMIT}")
    assert "the data set is gated: its owner must grant access first; accept its terms" in gated
    assert "the Hub has no such data set, or it is private; check the spelling" in missing
