"""Six rows of the motion world as a JSON folder, as tables of every kind, and a hub on this machine."""

import hashlib
import io
import json
import tarfile
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import datasets
import numpy as np
import pyarrow
from pyarrow import parquet

from moss_vllm.data.world.scenes import TRAIN_KINDS, caption, draw_scene_plan, render_scene
from moss_vllm.video.write import FILE_FPS, write_clip

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_six(root):
    """A folder as FAVOR-Train's: train.json and six videos."""
    rng, rows = np.random.default_rng(5), []
    videos = root / "videos" / "FAVOR-Train"
    videos.mkdir(parents=True)
    for index in range(6):
        scene = draw_scene_plan(rng, TRAIN_KINDS)
        write_clip(render_scene(scene, FILE_FPS), videos / f"world_{index}.mp4")
        rows.append({"video_name": f"world_{index}.mp4", "caption": caption(scene, rng), "subset": "world"})
    (root / "train.json").write_text(json.dumps(rows))
    return root


def rows_of(folder):
    """The rows of train.json, each with its video as bytes."""
    videos = folder / "videos" / "FAVOR-Train"
    for row in json.loads((folder / "train.json").read_text()):
        name = row["video_name"]
        yield {**row, "video": {"bytes": (videos / name).read_bytes(), "path": name}}


def write_parquet(path, rows):
    rows = list(rows)
    names = dict.fromkeys(name for row in rows for name in row)
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {name: [row.get(name) for row in rows] for name in names}
    parquet.write_table(pyarrow.table(columns), path, row_group_size=4)
    return path


def write_saved(path, rows):
    datasets.disable_progress_bars()
    made = datasets.Dataset.from_list(list(rows)).cast_column("video", datasets.Video())
    datasets.DatasetDict({"train": made, "test": made.select([0])}).save_to_disk(path)
    return path


def write_video_column(path, rows):
    """A parquet file whose column of videos has the type `Video` of the library."""
    datasets.disable_progress_bars()
    path.parent.mkdir(parents=True, exist_ok=True)
    made = datasets.Dataset.from_list(list(rows)).cast_column("video", datasets.Video())
    made.to_parquet(path)
    return path


def write_shard(path, samples):
    """A tar of samples: by name, the bytes of each of its files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, files in samples:
            for suffix, content in files.items():
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def write_shards(folder, rows):
    """Two shards whose json does not name its video."""
    samples = samples_of(rows)
    write_shard(folder / "shard-0.tar", samples[:4])
    write_shard(folder / "shard-1.tar", samples[4:])
    return folder


def samples_of(rows):
    return [
        (Path(row["video_name"]).stem, {"mp4": row["video"]["bytes"], "json": _told(row)}) for row in rows
    ]


def _told(row):
    return json.dumps({name: row[name] for name in ("caption", "subset")}).encode()


@contextmanager
def stand_in_hub(repositories):
    """The address of a hub with these data sets, a folder by name; and the list of what is asked of it."""
    asked = []

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.answer(body)

        def do_GET(self):
            self.answer(b"")

        do_HEAD = do_GET

        def answer(self, body):
            path = unquote(urlsplit(self.path).path)
            asked.append(f"{self.command} {path}")
            found = respond(path, body)
            if isinstance(found, Path):
                content = found.read_bytes()
                digest = hashlib.sha256(content).hexdigest()
                headers = {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
                first, _, last = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
                if first:
                    end = int(last) + 1 if last else len(content)
                    headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(content)}"
                    self.send(content[int(first) : end], headers, 206)
                else:
                    self.send(content, headers)
            elif isinstance(found, str):
                self.send(b"{}", {"X-Error-Code": found, "X-Repo-Commit": COMMIT}, 404)
            else:
                self.send(json.dumps(found).encode(), {"Content-Type": "application/json"})

        def send(self, content, headers, status=200):
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    def respond(path, body):
        name = next((name for name in repositories if f"datasets/{name}" in path), None)
        if name is None:
            return "RepoNotFound"
        folder = Path(repositories[name])
        before, _, rest = path.partition(f"datasets/{name}")
        verb, _, rest = rest.lstrip("/").partition("/")
        revision, _, inner = rest.partition("/")
        if revision not in ("main", COMMIT, ""):
            return "RevisionNotFound"
        if before == "/" and verb == "resolve":
            return folder / inner if (folder / inner).is_file() else "EntryNotFound"
        files = sorted(folder.rglob("*"))
        if verb == "tree":
            base = folder / inner
            inside = [file for file in files if file.is_relative_to(base) and file != base]
            return [entry(file, folder) for file in inside]
        if verb == "paths-info":
            wanted = json.loads(body)["paths"] if body[:1] == b"{" else parse_qs(body.decode())["paths"]
            return [entry(folder / one, folder) for one in wanted if (folder / one).exists()]
        siblings = [
            {"rfilename": file.relative_to(folder).as_posix(), "size": file.stat().st_size}
            for file in files
            if file.is_file()
        ]
        return {"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}

    def entry(file, folder):
        path = file.relative_to(folder).as_posix()
        if file.is_dir():
            return {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}
        return {"type": "file", "path": path, "oid": "0" * 40, "size": file.stat().st_size}

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
