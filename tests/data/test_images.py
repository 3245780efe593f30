"""Every format against Pillow's own full-size decoding, and every kind of damage against its code."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from retailray.data.images import Limits, decode, open_image
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
    image = decode(KINDS[kind], resize_size=128, crop_size=112, limits=LIMITS)
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
    plain = decode(encoded(picture().convert("L"), "PNG"), resize_size=128, crop_size=112, limits=LIMITS)
    deep = decode(data, resize_size=128, crop_size=112, limits=LIMITS)
    assert np.abs(deep.astype(int) - plain.astype(int)).max() <= 1


def test_transparent_is_white():
    data = encoded(Image.new("RGBA", (40, 40), (255, 0, 0, 0)), "PNG")
    assert (decode(data, resize_size=16, crop_size=16, limits=LIMITS) == 255).all()


def test_training_source_holds_the_eval_crop():
    """What augmentation starts from, cut to the centre, is what the model is served."""
    data = KINDS["png"]
    source = decode(data, resize_size=128, crop_size=128, limits=LIMITS)
    served = decode(data, resize_size=128, crop_size=112, limits=LIMITS)
    assert np.abs(source[:, 8:-8, 8:-8].astype(int) - served.astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("code", "data"), [(c, d) for c, d in broken_files(np.random.default_rng(0)).items() if d is not None]
)
def test_damage_has_its_code(code, data):
    with pytest.raises(ImageError) as caught:
        decode(data, resize_size=16, crop_size=16, limits=LIMITS)
    assert caught.value.code == code


def outcome(data):
    try:
        return decode(data, resize_size=16, crop_size=16, limits=LIMITS).shape
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
