"""Image folders of captioned portraits, rendered from DiceBear's avatar styles: one folder per style.

    python infra/styles/portraits.py out/portraits --count 3000 micah personas
    python infra/styles/portraits.py out/styles --count 1200 --first 100000 pixelArt lorelei

A folder has `metadata.jsonl` (file_name, text, attributes) and PNG files, as Hugging Face's imagefolder wants it. Needs
Node 20 and the packages resvg-py and pillow; DiceBear is fetched once from the npm registry, at the pinned version. A
folder that is complete is left as it is.
"""

import argparse
import io
import json
import shutil
import subprocess
from pathlib import Path

from PIL import Image

from oral_ray.local.packages import cache_folder

HERE = Path(__file__).parent
CACHE = cache_folder() / "dicebear"


def dicebear() -> Path:
    """The folder that has DiceBear installed beside the script that uses it."""
    if not (CACHE / "done").exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        shutil.copy(HERE / "package.json", CACHE)
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=CACHE, check=True)
        (CACHE / "done").touch()
    shutil.copy(HERE / "portraits.mjs", CACHE)
    return CACHE


def portraits(style: str, count: int, first: int) -> list[dict[str, object]]:
    """`count` portraits of a style from seed `first` on: svg, caption, attributes."""
    command = ["node", "portraits.mjs", style, str(count), str(first)]
    lines = subprocess.run(command, cwd=dicebear(), check=True, capture_output=True, text=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


def draw(svg: str, size: int) -> Image.Image:
    """An SVG as an RGB image of size x size pixels, on white where it is transparent."""
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size))
    drawn = Image.open(io.BytesIO(png)).convert("RGBA")
    image = Image.new("RGBA", drawn.size, "white")
    image.alpha_composite(drawn)
    return image.convert("RGB")


def write_folder(folder: Path, style: str, count: int, first: int, size: int) -> None:
    """The image folder of a style; metadata.jsonl is written last, so its existence means complete."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, portrait in enumerate(portraits(style, count, first)):
        name = f"{first + i:06d}.png"
        draw(str(portrait["svg"]), size).save(folder / name)
        rows.append({"file_name": name, "text": portrait["caption"], "attributes": portrait["attributes"]})
    text = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
    (folder / "metadata.jsonl.part").write_text(text)
    (folder / "metadata.jsonl.part").rename(folder / "metadata.jsonl")


def main() -> None:
    """Render what is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("styles", nargs="+")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="the first seed; other seeds are other people")
    parser.add_argument("--size", type=int, default=64, help="pixels")
    args = parser.parse_args()
    for style in args.styles:
        folder = args.out / style
        if not (folder / "metadata.jsonl").exists():
            write_folder(folder, style, args.count, args.first, args.size)
        print(f"{folder}: {sum(1 for _ in (folder / 'metadata.jsonl').open())} images")


if __name__ == "__main__":
    main()
