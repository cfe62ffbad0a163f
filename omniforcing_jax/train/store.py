"""Rows of a prompt and equally shaped arrays on disk: ArrayRecord shards under one header.

Who writes what follows from the header alone: row i belongs to one shard, a shard belongs to one process. A row is on
disk as soon as it is put, so a writer that was killed goes on with the row that it was at. docs/pairs.md has the
format; pairs.py and contexts.py say what the rows are.
"""

import contextlib
import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from omniforcing_jax.io import lock
from omniforcing_jax.io.atomic_write import replacing, write_json
from omniforcing_jax.strict_json import as_texts, parse, read_list, read_object, require, shorten
from omniforcing_jax.train.compare import differences, refuse

FORMAT = "omniforcing_jax rows 1"
HEADER = "header.json"
HEADER_KEYS = {"kind", "count", "shards", "arrays", "facts"}
LENGTH_BYTES = 4
MOST_SHARDS = 100_000  # their names have five digits


class Row(NamedTuple):
    """A prompt and what belongs to it."""

    prompt: str
    arrays: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
    """What a store holds, all of it known before the first row is written.

    Attributes:
        kind: What the rows are, such as "ode_pairs".
        count: Rows in all.
        shards: Files that they lie in, each a run of rows.
        arrays: Dtype and shape by name, in the order in which they lie in a record.
        facts: What else a reader must know, as JSON has it.
    """

    kind: str
    count: int
    shards: int
    arrays: dict[str, tuple[str, tuple[int, ...]]]
    facts: dict[str, Any]

    def __post_init__(self):
        """Check ranges."""
        require(1 <= self.shards <= self.count, "shards", self.shards, f"must lie between 1 and count={self.count}")
        require(self.shards <= MOST_SHARDS, "shards", self.shards, f"must be at most {MOST_SHARDS}")
        for name, (dtype, _) in self.arrays.items():
            try:
                has_size = jnp.dtype(dtype).itemsize > 0
            except TypeError:
                has_size = False
            require(has_size, f"arrays.{name}", dtype, "must be a type of numbers that have a size")

    def rows_of(self, shard: int) -> range:
        """Rows of a shard."""
        return range(self.count * shard // self.shards, self.count * (shard + 1) // self.shards)

    def name_of(self, shard: int) -> str:
        """File name of a shard, without its ending."""
        return f"part-{shard:05}-of-{self.shards:05}"

    def fact(self, name: str) -> Any:
        """Return one of the facts.

        Raises:
            ValueError: If the header has none of that name.
        """
        if name not in self.facts:
            raise ValueError(f"the header's facts have no '{name}': made by another version?")
        return self.facts[name]

    @property
    def row_bytes(self) -> int:
        """Bytes of a record, its prompt apart."""
        return LENGTH_BYTES + sum(_nbytes(dtype, shape) for dtype, shape in self.arrays.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the header as JSON has it."""
        return json.loads(json.dumps({"format": FORMAT, **dataclasses.asdict(self)}))


def read_header(folder: Path) -> Header:
    """Read a store's header.

    Raises:
        ValueError: If there is none, or it has another format; names the file.
    """
    path = folder / HEADER
    values = read_object(path, "; a store begins with its header")
    if values.pop("format", None) != FORMAT:
        raise ValueError(f"{path}: not of format '{FORMAT}'")
    if set(values) != HEADER_KEYS:
        raise ValueError(f"{path}: has the keys {sorted(values)}, expected {sorted(HEADER_KEYS)}")
    arrays, facts = values["arrays"], values["facts"]
    for name in ("arrays", "facts"):
        require(isinstance(values[name], dict), f"{path}: {name}", values[name], "must be an object")
    try:
        return Header(
            kind=parse(str, values["kind"], "kind"),
            count=parse(int, values["count"], "count"),
            shards=parse(int, values["shards"], "shards"),
            arrays={name: _parse_array(name, form) for name, form in arrays.items()},
            facts=facts,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _parse_array(name: str, form: Any) -> tuple[str, tuple[int, ...]]:
    """Read dtype and shape of an array."""
    if not isinstance(form, list) or len(form) != 2:
        raise ValueError(f"arrays.{name}={shorten(form)}: must be [dtype, shape]")
    shape = parse(tuple[int, ...], form[1], f"arrays.{name}")
    require(all(size >= 0 for size in shape), f"arrays.{name}", shape, "must have no negative size")
    return parse(str, form[0], f"arrays.{name}"), shape


def encode(header: Header, row: Row) -> bytes:
    """Make a record: the prompt's length and UTF-8, then each array's bytes, little-endian, rows first.

    Raises:
        ValueError: If the arrays are not those of the header, or hold what is not a number; names them.
    """
    found = {name: [str(array.dtype), list(array.shape)] for name, array in row.arrays.items()}
    wanted = {name: [dtype, list(shape)] for name, (dtype, shape) in header.arrays.items()}
    refuse(f"row of '{row.prompt}'", "not what the header says", differences(found, wanted))
    for name, array in row.arrays.items():
        if not np.all(np.isfinite(array.astype(np.float32))):
            raise ValueError(f"row of '{row.prompt}': {name} is not finite")
    prompt = row.prompt.encode()
    parts = [np.ascontiguousarray(row.arrays[name]).tobytes() for name in header.arrays]
    return b"".join([len(prompt).to_bytes(LENGTH_BYTES, "little"), prompt, *parts])


def decode(header: Header, record: bytes) -> Row:
    """Read what `encode` made.

    Raises:
        ValueError: If the record has another length than the header's arrays.
    """
    begin = LENGTH_BYTES + int.from_bytes(record[:LENGTH_BYTES], "little")
    prompt, arrays = record[LENGTH_BYTES:begin].decode(), {}
    if len(record) - begin != header.row_bytes - LENGTH_BYTES:
        raise ValueError(f"{len(record) - begin} bytes of arrays, expected {header.row_bytes - LENGTH_BYTES}")
    for name, (dtype, shape) in header.arrays.items():
        count = math.prod(shape)
        arrays[name] = np.frombuffer(record, jnp.dtype(dtype), count, begin).reshape(shape)
        begin += _nbytes(dtype, shape)
    return Row(prompt, arrays)


def shard_path(folder: Path, header: Header, shard: int) -> Path:
    """Where a shard lies once it is whole."""
    return folder / f"{header.name_of(shard)}.array_record"


def prompts_path(folder: Path, header: Header, shard: int) -> Path:
    """Where the prompts of a shard lie, so that nobody reads arrays to find a prompt."""
    return folder / f"{header.name_of(shard)}.prompts.json"


def partial_path(folder: Path, header: Header, shard: int) -> Path:
    """Where the rows of a shard lie, one file each, until it is whole."""
    return folder / f"{header.name_of(shard)}.partial"


class Writer:
    """Writes the shards of one process; a second one goes on where the first stopped."""

    def __init__(self, folder: Path, header: Header, *, process: int = 0, processes: int = 1):
        """Begin or go on; process p has the shards p, p + processes, ...

        Raises:
            ValueError: If the folder holds a store with another header, or the disk has too little room for the rows
                that are missing.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.header = folder, header
        self._shards = range(process, header.shards, processes)
        if (folder / HEADER).exists():
            refuse(folder, "holds another store", differences(read_header(folder).to_dict(), header.to_dict()))
        else:
            write_json(folder / HEADER, header.to_dict())
        for shard in self._shards:
            self._pack_if_whole(shard)
        self._check_space()

    def missing(self) -> list[int]:
        """Rows that this process has yet to put, in order."""
        return [row for shard in self._shards for row in self._missing_of(shard)]

    def put(self, index: int, row: Row) -> None:
        """Write row `index`; when it is the last of its shard, the shard.

        Raises:
            ValueError: If the row is not this process's or not what the header says.
        """
        shard = next((s for s in self._shards if index in self.header.rows_of(s)), None)
        if shard is None:
            raise ValueError(f"row {index}: not of this process, which has the shards {list(self._shards)}")
        partial = partial_path(self.folder, self.header, shard)
        partial.mkdir(exist_ok=True)
        with replacing(partial / str(index)) as new:
            new.write_bytes(encode(self.header, row))
        self._pack_if_whole(shard)

    def _missing_of(self, shard: int) -> list[int]:
        if shard_path(self.folder, self.header, shard).exists():
            return []
        partial = partial_path(self.folder, self.header, shard)
        there = {path.name for path in partial.iterdir()} if partial.exists() else set()
        return [row for row in self.header.rows_of(shard) if str(row) not in there]

    def _pack_if_whole(self, shard: int) -> None:
        partial, path = partial_path(self.folder, self.header, shard), shard_path(self.folder, self.header, shard)
        if not path.exists() and not self._missing_of(shard):
            pack(self.folder, self.header, shard)
        if path.exists() and partial.exists():
            shutil.rmtree(partial)

    def _check_space(self) -> None:
        largest = max(len(self.header.rows_of(shard)) for shard in self._shards) if self._shards else 0
        missing = len(self.missing())
        needed = (missing + largest) * self.header.row_bytes if missing else 0  # a shard is packed beside its rows
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise ValueError(f"{self.folder}: rows need {needed / 1e9:.3g} GB of disk, {free / 1e9:.3g} GB are free")


@contextlib.contextmanager
def writing(folder: Path, header: Header, *, process: int = 0, processes: int = 1) -> Iterator[Writer]:
    """Context manager that yields a `Writer` and keeps out another one with the same shards.

    Raises:
        lock.TakenError: Another program writes the same shards; says which.
        ValueError: As `Writer`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with lock.held(folder / f".omniforcing-{process}-of-{processes}.lock", str(folder)):
        yield Writer(folder, header, process=process, processes=processes)


def fill(folder: Path, header: Header, read: Callable[[int], Row], *, process: int = 0, processes: int = 1) -> int:
    """Put what is missing of this process's rows; returns how many rows were put now."""
    with writing(folder, header, process=process, processes=processes) as writer:
        missing = writer.missing()
        for index in missing:
            writer.put(index, read(index))
        return len(missing)


def pack(folder: Path, header: Header, shard: int) -> None:
    """Make a shard of its rows.

    Raises:
        OSError: If it cannot be read back whole, as on a full disk.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    path, prompts = shard_path(folder, header, shard), []
    with replacing(path) as new:
        writer = ArrayRecordWriter(str(new), "group_size:1,uncompressed")  # latents do not compress
        for index in header.rows_of(shard):
            record = (partial_path(folder, header, shard) / str(index)).read_bytes()
            prompts.append(decode(header, record).prompt)
            writer.write(record)
        writer.close()
        if count_records(new) != len(prompts):
            raise OSError(f"{path}: {count_records(new)} of {len(prompts)} rows could be read back; is the disk full?")
        with replacing(prompts_path(folder, header, shard)) as names:
            names.write_text(json.dumps(prompts, ensure_ascii=False))


def count_records(path: Path) -> int:
    """Count the records of a file; 0 where it is cut off or not ArrayRecord at all."""
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(path))
    count = reader.num_records()
    with contextlib.suppress(RuntimeError):  # of a file that is none it says so only here
        reader.close()
    return count


def _nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * jnp.dtype(dtype).itemsize


class Store:
    """A whole store, read at random."""

    def __init__(self, folder: Path, kind: str):
        """Open and check it.

        Raises:
            ValueError: If it is of another kind, a shard is missing (with how far it was written), or cut off.
        """
        import grain

        self.folder, self.header = folder, read_header(folder)
        if self.header.kind != kind:
            raise ValueError(f"{folder}: holds {self.header.kind}, expected {kind}")
        shards = range(self.header.shards)
        paths = [shard_path(folder, self.header, shard) for shard in shards]
        refuse(folder, "shards are missing", [self._progress(shard) for shard in shards if not paths[shard].exists()])
        refuse(folder, "damaged", [line for shard in shards for line in self._damage(shard, paths[shard])])
        self.prompts = [prompt for shard in shards for prompt in self._prompts(shard)]
        self._records = grain.sources.ArrayRecordDataSource([str(path) for path in paths])

    def __len__(self) -> int:
        """Number of rows."""
        return self.header.count

    def __getitem__(self, index: int) -> Row:
        """Read a row.

        Raises:
            ValueError: If its bytes are damaged, or it is another row, as in shards that changed places; names row and
                shard.
        """
        try:
            row = decode(self.header, self._records[index])
            if row.prompt != self.prompts[index]:
                raise ValueError(f"its prompt is {shorten(row.prompt)}, the list says {shorten(self.prompts[index])}")
            return row
        except (RuntimeError, ValueError) as error:
            shard = next(s for s in range(self.header.shards) if index in self.header.rows_of(s))
            path = shard_path(self.folder, self.header, shard)
            raise ValueError(f"{path}: row {index} is damaged: {error}") from None

    def _progress(self, shard: int) -> str:
        partial = partial_path(self.folder, self.header, shard)
        written = sum(path.suffix != ".new" for path in partial.iterdir()) if partial.exists() else 0
        return f"{self.header.name_of(shard)} ({written} of {len(self.header.rows_of(shard))} rows written)"

    def _damage(self, shard: int, path: Path) -> list[str]:
        found, expected = count_records(path), len(self.header.rows_of(shard))
        return [] if found == expected else [f"{path.name} has {found} rows, expected {expected}; is it cut off?"]

    def _prompts(self, shard: int) -> list[str]:
        path = prompts_path(self.folder, self.header, shard)
        prompts = list(as_texts(read_list(path), str(path)))
        if len(prompts) != len(self.header.rows_of(shard)):
            raise ValueError(f"{path}: {len(prompts)} prompts, expected {len(self.header.rows_of(shard))}")
        return prompts
