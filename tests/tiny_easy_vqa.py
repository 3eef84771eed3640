"""An archive in easy-VQA's form, of pictures of one colour."""

import io
import json
import tarfile

from PIL import Image


def archive(path):
    """Pictures of one colour and what is asked of them; the last 400 training pictures are kept out of the pool."""
    with tarfile.open(path, "w:gz") as tar:

        def add(name, content):
            about = tarfile.TarInfo(f"easy_vqa/{name}")
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))

        for split, count in (("train", 412), ("test", 4)):
            asked = []
            for number in range(count):
                color = ("red", "blue")[number % 2]
                asked += [["what color is the shape?", color, number], ["what shape is it?", "circle", number]]
                asked.append(["is there a red shape?", "yes" if color == "red" else "no", number])
                picture = io.BytesIO()
                Image.new("RGB", (8, 8), color).save(picture, "png")
                add(f"{split}/images/{number}.png", picture.getvalue())
            add(f"{split}/questions.json", json.dumps(asked).encode())
