"""NIfTI and MetaImage volumes: against bytes written here, and SimpleITK and nibabel where they are installed."""

from __future__ import annotations

import gzip
import itertools
import struct
import tracemalloc
import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from osteograde.imaging.geometry import apply
from osteograde.imaging.image_files import UnreadableImage
from osteograde.imaging.volume_files import is_volume_file, read_volume, slices_first

SHAPE = (3, 5, 4)  # (Z, Y, X)
TYPES = ("u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8")


def voxels_of(kind: str, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind.startswith("f"):
        return rng.normal(0, 100, SHAPE).astype(kind)
    info = np.iinfo(kind)
    return rng.integers(max(info.min, -2000), min(info.max, 2000), SHAPE, endpoint=True).astype(kind)


def turn(seed: int) -> np.ndarray:
    """A random rotation, rows unit axes; every second one mirrored."""
    axes, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return axes


def metaimage(voxels: np.ndarray, *, spacing=(0.5, 0.75, 4.0), origin=(1.0, -2.0, 3.0), axes=None, **lines) -> bytes:
    """spacing, origin, axes in the order x, y, z."""
    names = {"u1": "MET_UCHAR", "i1": "MET_CHAR", "i2": "MET_SHORT", "u2": "MET_USHORT", "i4": "MET_INT",
             "u4": "MET_UINT", "f4": "MET_FLOAT", "f8": "MET_DOUBLE"}  # fmt: skip
    axes = np.eye(3) if axes is None else axes
    head = {
        "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False", "TransformMatrix": " ".join(map(repr, map(float, axes.ravel()))),
        "Offset": " ".join(map(str, origin)), "ElementSpacing": " ".join(map(str, spacing)),
        "DimSize": " ".join(map(str, voxels.shape[::-1])), "ElementType": names[voxels.dtype.str[1:]],
    } | lines  # fmt: skip
    text = "".join(f"{name} = {value}\n" for name, value in head.items())
    return (text + "ElementDataFile = LOCAL\n").encode() + voxels.tobytes()


def nifti(voxels: np.ndarray, *, sform=None, order: str = "<", slope: float = 0.0, inter: float = 0.0) -> bytes:
    codes = {"u1": 2, "i2": 4, "i4": 8, "f4": 16, "f8": 64, "i1": 256, "u2": 512, "u4": 768}
    head = bytearray(352)
    struct.pack_into(order + "i", head, 0, 348)
    struct.pack_into(order + "8h", head, 40, 3, *voxels.shape[::-1], 1, 1, 1, 1)
    struct.pack_into(order + "h", head, 70, codes[voxels.dtype.str[1:]])
    struct.pack_into(order + "8f", head, 76, 1, 0.5, 0.75, 4, 0, 0, 0, 0)
    struct.pack_into(order + "f", head, 108, 352.0)
    struct.pack_into(order + "2f", head, 112, slope, inter)
    head[123] = 2
    if sform is not None:
        struct.pack_into(order + "h", head, 254, 1)
        struct.pack_into(order + "12f", head, 280, *np.asarray(sform)[:3].ravel())
    head[344:348] = b"n+1\0"
    return bytes(head) + voxels.astype(voxels.dtype.newbyteorder(order)).tobytes()


@pytest.mark.parametrize("kind", TYPES)
def test_a_metaimage_is_read_as_it_was_written(tmp_path, kind):
    voxels, axes = voxels_of(kind), turn(1)
    (tmp_path / "a.mha").write_bytes(metaimage(voxels, axes=axes))
    volume = read_volume(tmp_path / "a.mha")
    np.testing.assert_array_equal(volume.voxels, voxels)
    expected = np.array([1.0, -2.0, 3.0]) + 2 * 4.0 * axes[2] + 3 * 0.75 * axes[1] + 1 * 0.5 * axes[0]
    np.testing.assert_allclose(apply(volume.to_mm, [2, 3, 1]), expected, atol=1e-9)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("zipped", [False, True])
def test_a_nifti_of_either_byte_order_lies_where_its_sform_says(tmp_path, order, zipped):
    voxels = voxels_of("i2")
    sform = np.eye(4)
    sform[:3, :3], sform[:3, 3] = turn(2) * [0.5, 0.75, 4.0], (7.0, 8.0, 9.0)
    path = tmp_path / ("a.nii.gz" if zipped else "a.nii")
    contents = nifti(voxels, sform=sform, order=order)
    path.write_bytes(gzip.compress(contents) if zipped else contents)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.voxels, voxels)
    ras = sform.astype(np.float32) @ [1, 3, 2, 1]
    np.testing.assert_allclose(apply(volume.to_mm, [2, 3, 1]), ras[:3] * [-1, -1, 1], atol=1e-5)


def test_grey_values_are_scaled_only_where_the_header_says_so(tmp_path):
    voxels = voxels_of("i2")
    for slope, inter, expected in ((0.0, 5.0, voxels), (1.0, 0.0, voxels), (2.0, -3.0, voxels * 2.0 - 3.0)):
        (tmp_path / "a.nii").write_bytes(nifti(voxels, slope=slope, inter=inter))
        np.testing.assert_allclose(read_volume(tmp_path / "a.nii").voxels, expected)


def test_packed_pixels_are_the_same(tmp_path):
    import zlib

    voxels = voxels_of("u2")
    plain = metaimage(voxels)
    packed = zlib.compress(voxels.tobytes())
    head = plain[: -voxels.nbytes].replace(b"CompressedData = False", b"CompressedData = True")
    (tmp_path / "a.mha").write_bytes(head + packed)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.mha").voxels, voxels)


def test_a_header_beside_its_raw_file_is_read_and_never_leads_out_of_the_folder(tmp_path):
    voxels = voxels_of("i2")
    head = metaimage(voxels)[: -voxels.nbytes]
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.mhd").write_bytes(head.replace(b"LOCAL", b"a.raw"))
    (tmp_path / "inner" / "a.raw").write_bytes(voxels.tobytes())
    np.testing.assert_array_equal(read_volume(tmp_path / "inner" / "a.mhd").voxels, voxels)
    (tmp_path / "secret.raw").write_bytes(voxels.tobytes())
    (tmp_path / "inner" / "b.mhd").write_bytes(head.replace(b"LOCAL", b"../secret.raw"))
    with pytest.raises(UnreadableImage, match="file_unreadable"):
        read_volume(tmp_path / "inner" / "b.mhd")


@pytest.mark.parametrize("name", ["a.mha", "a.nii", "a.nii.gz"])
@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 2000), damage=st.binary(min_size=1, max_size=8), place=st.integers(0, 600))
@example(cut=189, damage=b"\x00\x00\x00\x00\xc3", place=107)  # the values begin before the file does
@example(cut=189, damage=b"\x00\x00\x00\x00\xe0", place=107)
def test_damaged_files_are_refused_with_a_code_and_nothing_else(tmp_path_factory, name, cut, damage, place):
    contents = metaimage(voxels_of("i2")) if name.endswith("mha") else nifti(voxels_of("i2"))
    contents = contents[:place] + damage + contents[place + len(damage) :]
    contents = gzip.compress(contents) if name.endswith("gz") else contents
    path = tmp_path_factory.mktemp("damaged") / name
    path.write_bytes(contents[:cut])
    is_volume_file(path)
    try:
        volume = read_volume(path)
        assert volume.voxels.ndim == 3 and np.isfinite(volume.to_mm).all()
    except UnreadableImage as error:
        assert error.code


def test_a_small_file_that_claims_to_be_huge_is_refused_without_the_memory(tmp_path):
    contents = metaimage(voxels_of("u1")).replace(b"DimSize = 4 5 3", b"DimSize = 40000 50000 30000")
    (tmp_path / "a.mha").write_bytes(contents)
    with pytest.raises(UnreadableImage, match="image_too_large"):
        read_volume(tmp_path / "a.mha")


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha"])
def test_a_small_file_that_unpacks_to_far_more_than_its_header_says_takes_no_memory(tmp_path, name):
    voxels, bomb = voxels_of("u1"), bytes(1 << 28)
    if name == "a.mha":
        head, pixels = metaimage(voxels, CompressedData="True").split(b"LOCAL\n")
        contents = head + b"LOCAL\n" + zlib.compress(pixels + bomb)
    else:
        contents = gzip.compress(nifti(voxels) + bomb)
    (tmp_path / name).write_bytes(contents)
    tracemalloc.start()
    read = read_volume(tmp_path / name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(read.voxels, voxels)
    assert peak < 1 << 26, f"{peak >> 20} MiB for {len(contents) >> 10} KiB"


@pytest.mark.parametrize("start", [float("nan"), float("inf"), -5.0, 1e30])
def test_a_nonsense_place_of_the_voxels_is_refused_with_a_code(tmp_path, start):
    contents = bytearray(nifti(voxels_of("u1")))
    struct.pack_into("<f", contents, 108, start)
    (tmp_path / "a.nii").write_bytes(contents)
    with pytest.raises(UnreadableImage, match=r"damaged_header|pixels_damaged|image_too_large"):
        read_volume(tmp_path / "a.nii")


def test_slices_come_first_by_their_thickness_else_by_the_view(tmp_path):
    voxels = voxels_of("i2")
    sagittal = np.array([1.0, 0.0, 0.0])
    for spacing, first in (((4.0, 0.5, 0.5), 4), ((0.5, 0.5, 4.0), 3), ((1.0, 1.0, 1.0), 4)):
        (tmp_path / "a.mha").write_bytes(metaimage(voxels, spacing=spacing))
        volume = read_volume(tmp_path / "a.mha")
        turned = slices_first(volume, sagittal)
        assert turned.voxels.shape[0] == first == len(turned.names)
        index = np.array([1, 2, 1])
        here = apply(turned.to_mm, index)
        there = np.linalg.solve(volume.to_mm, [*here, 1])[:3].round().astype(int)
        assert turned.voxels[tuple(index)] == volume.voxels[tuple(there)]


def test_of_several_volumes_the_first_is_read_and_the_rest_counted(tmp_path):
    voxels = voxels_of("i2")
    contents = bytearray(nifti(voxels))
    struct.pack_into("<8h", contents, 40, 4, *voxels.shape[::-1], 6, 1, 1, 1)
    (tmp_path / "a.nii").write_bytes(bytes(contents) + voxels.tobytes() * 5)
    codes: Counter[str] = Counter()
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii", codes).voxels, voxels)
    assert codes["several_volumes"] == 1


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", ["a.mha", "a.nii", "a.nii.gz", "a.mhd"])
def test_every_type_and_orientation_is_read_as_simpleitk_reads_it(tmp_path, kind, name):
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    for seed in range(4):
        image = sitk.GetImageFromArray(voxels_of(kind, seed))
        image.SetSpacing((0.5 + seed, 0.75, 4.0))
        image.SetOrigin((1.5, -20.0, 33.25))
        image.SetDirection(tuple(turn(seed).ravel()))
        sitk.WriteImage(image, str(tmp_path / name), useCompression=bool(seed % 2))
        theirs, ours = sitk.ReadImage(str(tmp_path / name)), read_volume(tmp_path / name)
        assert is_volume_file(tmp_path / name)
        np.testing.assert_array_equal(ours.voxels, sitk.GetArrayFromImage(theirs))
        for z, y, x in itertools.product((0, 2), (0, 4), (0, 3)):
            mm = theirs.TransformIndexToPhysicalPoint((x, y, z))
            np.testing.assert_allclose(apply(ours.to_mm, [z, y, x]), mm, atol=1e-6)


@pytest.mark.parametrize("version", ["Nifti1Image", "Nifti2Image"])
@pytest.mark.parametrize(("sform", "qform"), [(1, 0), (0, 1), (0, 0), (2, 1)])
def test_every_form_of_nifti_lies_where_nibabel_puts_it(tmp_path, version, sform, qform):
    nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed")
    for seed in range(4):
        place = np.eye(4)
        place[:3, :3], place[:3, 3] = turn(seed) * [0.5, 0.75, 4.0], (7.0, -8.0, 9.0)
        image = getattr(nibabel, version)(voxels_of("i2", seed).T, place)
        image.set_sform(place, code=sform)
        image.set_qform(place, code=qform)
        nibabel.save(image, tmp_path / "a.nii.gz")
        theirs, ours = nibabel.load(tmp_path / "a.nii.gz"), read_volume(tmp_path / "a.nii.gz")
        np.testing.assert_array_equal(ours.voxels, np.asarray(theirs.dataobj).T)
        mm = (theirs.affine @ [1, 3, 2, 1])[:3] * [-1, -1, 1]
        np.testing.assert_allclose(apply(ours.to_mm, [2, 3, 1]), mm, atol=1e-6)
