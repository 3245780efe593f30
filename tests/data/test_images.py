"""Every format against Pillow's own full-size decoding, and every kind of damage against its code."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin, TiffImagePlugin

from retailray.data import images
from retailray.data.containers import gif
from retailray.data.images import Limits, _load, decode, open_image
from retailray.data.scaling import Scaling
from retailray.data.synthetic import PRODUCTS, broken_files, render
from retailray.errors import ImageError

LIMITS = Limits(max_pixels=4_000_000, max_aspect_ratio=20)


def picture(width=420, height=300):
    image = render(PRODUCTS["laptop bag"], np.random.default_rng(5))
    return image.resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def reference(data, *, resize=128, crop=112):
    """torchvision's eval transform by Pillow: decode at full size, shorter side to ``resize``, central ``crop``."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    scale = resize / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = (image.width - crop) // 2, (image.height - crop) // 2
    return np.asarray(image.crop((left, top, left + crop, top + crop))).transpose(2, 0, 1)


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


RGBA = picture().convert("RGBA")
RGBA.putalpha(Image.linear_gradient("L").resize(RGBA.size))
KINDS = {
    "jpeg": encoded(picture(), "JPEG", quality=95),
    "jpeg progressive": encoded(picture(), "JPEG", quality=95, progressive=True),
    "jpeg cmyk": encoded(picture().convert("CMYK"), "JPEG", quality=95),
    "jpeg grey": encoded(picture().convert("L"), "JPEG", quality=95),
    "jpeg large": encoded(picture(1680, 1200), "JPEG", quality=95),
    **{f"jpeg exif {n}": encoded(picture(), "JPEG", quality=95, exif=exif(n)) for n in range(1, 9)},
    "png": encoded(picture(), "PNG"),
    "png palette": encoded(picture().quantize(64), "PNG"),
    "png palette transparent": encoded(picture().quantize(64), "PNG", transparency=0),
    "png alpha": encoded(RGBA, "PNG"),
    "png grey alpha": encoded(RGBA.convert("LA"), "PNG"),
    "png 1 bit": encoded(picture().convert("1", dither=Image.Dither.NONE), "PNG"),
    "webp": encoded(picture(), "WEBP", quality=95),
    "webp alpha": encoded(RGBA, "WEBP", lossless=True),
    "gif animated": encoded(picture().quantize(128), "GIF", save_all=True, append_images=[Image.new("P", (420, 300))]),
    "bmp": encoded(picture(), "BMP"),
    "tiff": encoded(picture(), "TIFF"),
    **{f"tiff exif {n}": encoded(picture(), "TIFF", tiffinfo={274: n}) for n in (3, 6, 8)},
    "tiff cmyk": encoded(picture().convert("CMYK"), "TIFF"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_decode_equals_pillow(kind):
    image = decode(KINDS[kind], Scaling(128, 112), LIMITS)
    assert image.shape == (3, 112, 112)
    assert image.dtype == np.uint8
    difference = np.abs(image.astype(int) - reference(KINDS[kind]).astype(int))
    # reduced-scale JPEG decoding and rounding of the cut account for a little; a wrong turn or colour does not fit
    assert difference.mean() < 3, difference.mean()
    assert np.percentile(difference, 95) < 25


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_keep_the_picture(kind):
    grey = np.asarray(picture().convert("L")).astype(np.uint16)
    data = encoded(Image.fromarray(grey * 257), kind)
    plain = decode(encoded(picture().convert("L"), "PNG"), Scaling(128, 112), LIMITS)
    deep = decode(data, Scaling(128, 112), LIMITS)
    assert np.abs(deep.astype(int) - plain.astype(int)).max() <= 1


def test_transparent_is_white():
    data = encoded(Image.new("RGBA", (40, 40), (255, 0, 0, 0)), "PNG")
    assert (decode(data, Scaling(16, 16), LIMITS) == 255).all()


def test_training_source_holds_the_eval_crop():
    """What augmentation starts from, cut to the centre, is what the model is served."""
    data = KINDS["png"]
    source = decode(data, Scaling(128, 128), LIMITS)
    served = decode(data, Scaling(128, 112), LIMITS)
    assert np.abs(source[:, 8:-8, 8:-8].astype(int) - served.astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("code", "data"), [(c, d) for c, d in broken_files(np.random.default_rng(0)).items() if d is not None]
)
def test_damage_has_its_code(code, data):
    with pytest.raises(ImageError) as caught:
        decode(data, Scaling(16, 16), LIMITS)
    assert caught.value.code == code


def outcome(data):
    try:
        return decode(data, Scaling(16, 16), LIMITS).shape
    except ImageError as error:
        return error.code


def test_every_truncation_is_an_error_row_or_an_image():
    """No cut of a file raises anything but ImageError."""
    for kind in ("jpeg", "png", "webp", "gif animated", "tiff", "bmp"):
        data = KINDS[kind]
        found = {outcome(data[: int(len(data) * share)]) for share in np.linspace(0.001, 0.97, 30)}
        assert found <= {"corrupt", "truncated", "not_an_image", "empty_file", (3, 16, 16)}
        assert {"corrupt", "truncated", "not_an_image"} & found


def test_facts_are_as_displayed():
    _, facts = open_image(KINDS["jpeg exif 6"], LIMITS)
    assert (facts.format, facts.width, facts.height, facts.mode) == ("JPEG", 300, 420, "RGB")


def missing_pixels(data, whole):
    """Pixels of a file that are not those of the whole file, or its error code."""
    try:
        found, _ = open_image(data, LIMITS)
        rgb = np.asarray(_load(found, at_least=10**6)).astype(int)
    except ImageError as error:
        return error.code
    return int((np.abs(rgb - whole).max(axis=2) > 8).sum())


NOISY = picture(300, 200)
NOISY = Image.fromarray(
    (np.asarray(NOISY).astype(int) + np.random.default_rng(0).integers(-20, 20, (200, 300, 3)))
    .clip(0, 255)
    .astype("u1")
)
ENDS = {
    "jpeg": encoded(NOISY, "JPEG", quality=90),
    "jpeg 4:4:4": encoded(NOISY, "JPEG", quality=90, subsampling=0),
    "jpeg progressive": encoded(NOISY, "JPEG", quality=90, progressive=True),
    "png": encoded(NOISY, "PNG"),
    "png palette": encoded(NOISY.quantize(64), "PNG"),
    "png 1 bit": encoded(NOISY.convert("1"), "PNG"),
    "gif": encoded(NOISY.quantize(64), "GIF"),
    "webp": encoded(NOISY, "WEBP", quality=90),
    "webp lossless": encoded(NOISY, "WEBP", lossless=True),
    "bmp": encoded(NOISY, "BMP"),
    "tiff": encoded(NOISY, "TIFF"),
    "avif": encoded(NOISY, "AVIF"),
}


@pytest.mark.parametrize("kind", ENDS)
def test_a_file_that_ends_early_is_read_if_less_than_a_row_is_missing(kind):
    """Kind of fault: a JPEG without its last byte is truncated, and a PNG with the same loss is read."""
    data = ENDS[kind]
    whole = np.asarray(_load(open_image(data, LIMITS)[0], at_least=10**6)).astype(int)
    for cut in [1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, *np.linspace(0.1, 0.98, 9) * len(data)]:
        found = missing_pixels(data[: len(data) - int(cut)], whole)
        assert found == "truncated" or found < 300, f"{cut} bytes are missing"
        if cut > 0.05 * len(data):
            assert found == "truncated", f"{cut} bytes are missing"
    assert missing_pixels(data[:-1], whole) != "corrupt"
    if kind.startswith(("jpeg", "png", "gif")):
        assert missing_pixels(data[:-1], whole) == 0


@pytest.mark.parametrize(
    "options",
    [{"restart_marker_blocks": 1}, {"restart_marker_rows": 1}, {"progressive": True, "restart_marker_rows": 1}],
)
def test_intervals_of_a_jpeg_that_are_missing_are_missing_pixels(options):
    """Kind of fault: a decoder that finds no restart marker leaves half of a picture grey, and it passes for whole."""
    data = encoded(NOISY, "JPEG", quality=90, **options)
    whole = np.asarray(_load(open_image(data, LIMITS)[0], at_least=10**6)).astype(int)
    for cut in np.linspace(1, 0.97 * len(data), 80).astype(int):
        found = missing_pixels(data[: len(data) - cut], whole)
        assert found == "truncated" or found < 300, f"{cut} bytes are missing"
    assert missing_pixels(data[:-2], whole) == 0


@pytest.mark.parametrize("kind", ENDS)
@pytest.mark.parametrize("tail", [b"\n", b"\0" * 20, b"appended by a camera or a mail program"])
def test_what_follows_a_picture_is_no_part_of_it(kind, tail):
    plain = decode(ENDS[kind], Scaling(64, 64), LIMITS)
    assert (decode(ENDS[kind] + tail, Scaling(64, 64), LIMITS) == plain).all()


@pytest.mark.parametrize("data", [b"BMX bikes and more, a text", b"II*or not", b"GIF8" + bytes(200)])
def test_texts_that_begin_like_pictures(data):
    assert outcome(data) in ("not_an_image", "corrupt", "truncated")
    assert not data.startswith(b"BMX") or outcome(data) == "not_an_image"


def test_a_gif_with_impossible_codes_is_corrupt():
    """Kind of fault: the length of a table is taken from the file, and takes all memory."""
    data = bytearray(ENDS["gif"])
    _, start = gif._picture(bytes(data))
    data[start] = 30
    assert outcome(bytes(data[: len(data) // 2])) in ("corrupt", "truncated")


@pytest.mark.parametrize("kind", ENDS)
def test_damage_before_the_end_is_no_missing_end(kind):
    data = bytearray(ENDS[kind])
    data[len(data) // 3 : len(data) // 3 + 40] = bytes(40)
    assert outcome(bytes(data)) in ("corrupt", (3, 16, 16)), "Pillow reads some damage as noise"


def test_brightness_does_not_jump_as_samples_grow():
    """Kind of fault: a picture of 10 or 12 bits in a 16 bit file is black, or turns dark where a sample passes 255."""
    ramp = np.linspace(0, 1, 64 * 64).reshape(64, 64)
    for kind in ("PNG", "TIFF"):
        for top in (100, 254, 255, 256, 511, 1023, 4095, 4096, 16_383, 20_000, 32_767, 65_534):
            brightness = [
                decode(
                    encoded(Image.fromarray(np.rint(ramp * largest).astype(np.uint16)), kind),
                    Scaling(64, 64),
                    LIMITS,
                ).max()
                for largest in (top, top + 1)
            ]
            assert abs(int(brightness[1]) - int(brightness[0])) <= 3, f"from {top} to {top + 1}"
        levels = decode(
            encoded(Image.fromarray(np.rint(ramp * 4095).astype(np.uint16)), kind), Scaling(64, 64),
            LIMITS,
        )  # fmt: skip
        assert len(np.unique(levels)) > 250
    almost = encoded(Image.fromarray((ramp * 1.001).astype(np.float32)), "TIFF")
    assert decode(almost, Scaling(64, 64), LIMITS).max() == 255, "a float that passes 1 a little"


@pytest.mark.parametrize("chunk", ["text", "profile"])
def test_large_texts_and_profiles_say_nothing_of_the_pixels(chunk):
    """Kind of fault: a file is refused for what it holds besides its pixels."""
    options = {}
    if chunk == "text":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_text("notes", "a" * 3_000_000, zip=True)
    else:
        options["icc_profile"] = bytes(3_000_000)
    data = encoded(picture(), "PNG", **options)
    plain = decode(encoded(picture(), "PNG"), Scaling(32, 32), LIMITS)
    assert (decode(data, Scaling(32, 32), LIMITS) == plain).all()


def test_heic_is_named(monkeypatch):
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)
    monkeypatch.setattr(images, "_reads_heif", lambda: False)
    with pytest.raises(ImageError, match=r"HEIC.*retailray\[heic\]"):
        decode(heic, Scaling(16, 16), LIMITS)


def test_heic_is_read_where_its_package_is():
    heif = pytest.importorskip("pillow_heif", reason="pip install 'retailray[heic]'")
    heif.register_heif_opener()
    buffer = io.BytesIO()
    picture().save(buffer, "HEIF", quality=95)
    image = decode(buffer.getvalue(), Scaling(128, 112), LIMITS)
    assert np.abs(image.astype(int) - reference(encoded(picture(), "PNG")).astype(int)).mean() < 5


def test_a_picture_that_is_too_large_is_not_decoded_to_see_whether_it_ends_early(monkeypatch):
    """Kind of fault: the limit on pixels is asked after they have been decoded."""
    data = encoded(Image.new("L", (3000, 2000)), "TIFF", compression="tiff_lzw")
    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "load", lambda image: pytest.fail("it was decoded"))
    with pytest.raises(ImageError, match="too_many_pixels"):
        open_image(data[:-1], Limits(max_pixels=1_000_000, max_aspect_ratio=20))
