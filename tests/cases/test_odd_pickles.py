"""PyTorch's files that are cut off, hold more than plain tensors, or grow when they are read: one line each."""

import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch
from run import refused

from converters.torch_checkpoint import open_torch_checkpoint


def write_archive(path, pickle, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in {"data.pkl": pickle, "version": "3\n", "byteorder": "little"}.items():
            archive.writestr(f"archive/{name}", data)
    return path


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"\x80\x02}q\x00(X",
        b"\x80\x63.",
        b"\x80\x02" + b"(" * 5000,
        b"\x80\x02X\xff\xff\xff\xffa.",
        b"\x80\x02K.",
    ],
)
def test_a_damaged_pickle_is_one_line(tmp_path, capsys, data):
    path = write_archive(tmp_path / "a.pt", data)
    assert refused(capsys, "inspect", path).startswith(f"error: {path}: ")


@pytest.mark.filterwarnings("ignore::UserWarning:torch")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.empty(3, device="meta"), "a has no values, it is on PyTorch's device 'meta'"),
        (lambda: torch.ones(3, dtype=torch.uint8).view(torch.bits8), "a is bits8, expected one of float64"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "a is a nested, sparse or quantised"),
        (lambda: torch.ones(2, 2).to_sparse(), "a is a nested, sparse or quantised"),
        (lambda: torch.ones(2, dtype=torch.complex64), "a is complex64, expected one of float64"),
        (lambda: 3.0, "a is a float, expected a tensor"),
    ],
)
def test_a_tensor_of_another_kind_is_named(tmp_path, capsys, make, words):
    torch.save({"generator": {"a": make()}}, tmp_path / "a.pt")
    assert f"a.pt: {words}" in refused(capsys, "inspect", tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("dtype", "ours"),
    [
        (torch.float8_e4m3fn, ml_dtypes.float8_e4m3fn),
        (torch.float8_e5m2, ml_dtypes.float8_e5m2),
        (torch.bfloat16, ml_dtypes.bfloat16),
        (torch.float16, np.float16),
        (torch.float64, np.float64),
    ],
)
def test_a_plain_tensor_of_any_type_is_read_bit_by_bit(tmp_path, dtype, ours):
    values = torch.tensor([[1.0, -0.5, 2.0], [0.25, 0.0, -3.0]])
    torch.save({"a": values.to(dtype).t(), "b": values[0, 0].to(dtype)}, tmp_path / "a.pt")
    tensors = open_torch_checkpoint(tmp_path / "a.pt", None).tensors
    np.testing.assert_array_equal(tensors["a"].load(), values.numpy().T.astype(ours))
    assert (tensors["a"].dtype, tensors["b"].shape) == (ours, ())


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path, capsys):
    path = write_archive(tmp_path / "a.pt", bytes(1 << 26), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    assert "archive/data.pkl is compressed, which no checkpoint of PyTorch is" in refused(capsys, "inspect", path)


class Optimiser:
    """A class that no reader knows."""


def test_an_object_names_its_class_and_what_to_save_instead(tmp_path, capsys):
    torch.save({"model": {"a": torch.ones(1)}, "optimizer": Optimiser()}, tmp_path / "a.pt")
    line = refused(capsys, "inspect", tmp_path / "a.pt")
    assert "it calls " in line
    assert "Optimiser; a whole module or an optimiser cannot be read; save the module's state_dict()" in line


def test_only_whole_names_of_wrappers_are_taken_out_of_keys(tmp_path):
    keys = ("module._orig_mod.a.module.w", "a.submodule.w")
    torch.save({"generator": dict.fromkeys(keys, torch.ones(2))}, tmp_path / "a.pt")
    assert list(open_torch_checkpoint(tmp_path / "a.pt", None).tensors) == ["a.w", "a.submodule.w"]


def test_a_state_dict_with_a_table_in_it_is_told_in_one_short_line(tmp_path, capsys):
    tensors = {f"layer.{i}.weight": torch.ones(1) for i in range(1000)}
    torch.save(tensors | {"_extra_state": {"a": torch.ones(1)}}, tmp_path / "a.pt")
    line = refused(capsys, "inspect", tmp_path / "a.pt")
    assert "a.pt: has ['_extra_state'], none of generator_ema, ema" in line
