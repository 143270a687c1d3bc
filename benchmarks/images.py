"""Photographs through image encoders, files to published vectors, against the loop that a user would otherwise write.

    python benchmarks/images.py PHOTOS [--short] [--rounds 5] [--only resnet50 clip mobilenet] [--large 160]

PHOTOS is any folder of JPEGs (sub-folders too). The encoders have their true architecture and random weights made here
from a fixed seed: speed does not depend on the values. Contestants, each a whole process over the same files:

resnet50    torchvision's ResNet-50: a `DataLoader` with two workers, batches of 32, fp32, vectors kept in memory
clip        open_clip's ViT-B-32 image tower: the same loop with its `preprocess` and `encode_image`
mobilenet   torchvision's MobileNetV3-small on the photographs enlarged to 12 megapixels: the same loop

embedx extract publishes a durable store, in fp32 and in bf16.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import Contestant, race, table, write_results

LOADER = """
import sys
from pathlib import Path
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

class Photos(Dataset):
    def __init__(self, folder, transform):
        self.paths, self.transform = sorted(Path(folder).rglob("*.jpg")), transform
    def __len__(self):
        return len(self.paths)
    def __getitem__(self, number):
        return self.transform(Image.open(self.paths[number]).convert("RGB"))

def run(model, transform, dim):
    model.eval()
    vectors = []
    with torch.inference_mode():
        for batch in DataLoader(Photos(sys.argv[1], transform), batch_size=32, num_workers=2):
            vectors.append(model(batch))
    vectors = torch.cat(vectors)
    assert vectors.shape == (len(list(Path(sys.argv[1]).rglob("*.jpg"))), dim)
"""

RESNET50 = """
from torchvision.models import ResNet50_Weights, resnet50
model = resnet50()
model.load_state_dict(torch.load(sys.argv[2], weights_only=True))
model.fc = torch.nn.Identity()
run(model, ResNet50_Weights.IMAGENET1K_V2.transforms(), 2048)
"""

CLIP = """
import open_clip
model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32", pretrained=sys.argv[2])
encode, model.forward = model.encode_image, lambda images: encode(images)
run(model, preprocess, 512)
"""

MOBILENET = """
from torchvision.models import MobileNet_V3_Small_Weights, mobilenet_v3_small
model = mobilenet_v3_small()
model.load_state_dict(torch.load(sys.argv[2], weights_only=True))
model.classifier = torch.nn.Identity()
run(model, MobileNet_V3_Small_Weights.IMAGENET1K_V1.transforms(), 576)
"""

MAKE_WEIGHTS = {
    "resnet50": "from torchvision.models import resnet50 as make",
    "clip": "import open_clip\ndef make(): return open_clip.create_model('ViT-B-32')",
    "mobilenet": "from torchvision.models import mobilenet_v3_small as make",
}

CASES = {
    "resnet50": (RESNET50, "torchvision:resnet50", "DataLoader loop, torchvision fp32"),
    "clip": (CLIP, "open_clip:ViT-B-32", "DataLoader loop, open_clip fp32"),
    "mobilenet": (MOBILENET, "torchvision:mobilenet_v3_small", "DataLoader loop, torchvision fp32"),
}

TITLES = {
    "resnet50": "ResNet-50, photographs as they are",
    "clip": "CLIP ViT-B/32, photographs as they are",
    "mobilenet": "MobileNetV3-small, photographs of 12 megapixels",
}


def main() -> None:
    """Run every case's race."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--items", type=int, help="only so many photographs, spread over the folder")
    parser.add_argument("--large", type=int, default=160, help="files of 12 megapixels, 5 MB each")
    parser.add_argument("--times", type=int, default=1, help="each file of 12 megapixels under so many names")
    parser.add_argument("--short", action="store_true", help="a fifth of the photographs, 2 rounds")
    arguments = parser.parse_args()
    photos = sorted(arguments.photos.rglob("*.jpg"))
    if not photos:
        sys.exit(f"{arguments.photos} holds no .jpg files: name a folder of photographs")
    items = arguments.items or (len(photos) // 5 if arguments.short else len(photos))
    photos = [photos[position * len(photos) // items] for position in range(min(items, len(photos)))]
    rounds = 2 if arguments.short else arguments.rounds
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for case in arguments.only:
            corpus = home / f"{case}-photos"
            if case == "mobilenet":
                count = enlarge(photos, corpus, arguments.large) * arguments.times
                repeat(corpus, arguments.times)
            else:
                count = link(photos, corpus)
            lines += ["", f"## {TITLES[case]}: {count} files", "", *race_case(home, case, corpus, count, rounds)]
    write_results("images", "Images: files to vectors", lines, {"rounds": rounds})


def race_case(home: Path, case: str, corpus: Path, count: int, rounds: int) -> list[str]:
    """Race one encoder; returns the table."""
    script, ref, peer = CASES[case]
    weights = home / f"{case}.pt"
    make = (
        f"import sys, torch\ntorch.manual_seed(0)\n{MAKE_WEIGHTS[case]}\ntorch.save(make().state_dict(), sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", make, str(weights)], check=True)
    program = home / f"{case}.py"
    program.write_text(f"{LOADER}\nif __name__ == '__main__':\n" + indented(script))
    contestants = [Contestant(peer, [sys.executable, str(program), str(corpus), str(weights)])]
    for precision in ("fp32", "bf16"):
        store = home / f"{case}-{precision}"
        command = [sys.executable, "-m", "embedx", "extract", str(corpus), "--encoder", ref, "--weights", str(weights)]
        command += ["--precision", precision, "--out", str(store)]
        ours = Contestant(f"embedx {precision}", command, before=lambda store=store: shutil.rmtree(store, True))
        ours.run(counted=False)  # converts the model once
        contestants.append(ours)
    race(contestants, rounds, warm_up=0)
    card = json.loads((home / f"{case}-bf16" / "_embedx" / "encoder.json").read_text())
    return [*table(contestants, count), "", f"bf16: {card['why_precision']}"]


def link(photos: list[Path], folder: Path) -> int:
    """Put the photographs in one folder under numbers."""
    folder.mkdir()
    for number, photo in enumerate(photos):
        (folder / f"{number:05}.jpg").symlink_to(photo.resolve())
    return len(photos)


def enlarge(photos: list[Path], folder: Path, most: int) -> int:
    """Write some photographs enlarged to 4000 x 3000, with noise, so that the files weigh what a camera's weigh."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    random = np.random.default_rng(0)
    chosen = photos[:: max(1, len(photos) // most)][:most]
    for number, photo in enumerate(chosen):
        large = np.asarray(Image.open(photo).convert("RGB").resize((4000, 3000)), dtype=np.int16)
        noise = random.integers(-8, 9, (3000, 4000, 1), dtype=np.int16)
        pixels = np.clip(large + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05}.jpg", quality=90)
    return len(chosen)


def repeat(folder: Path, times: int) -> None:
    """Give each file of a folder further names; nobody here looks whether two files are the same."""
    for file in sorted(folder.iterdir()):
        for number in range(1, times):
            file.with_name(f"{number}-{file.name}").hardlink_to(file)


def indented(text: str) -> str:
    """Return a program's lines as the body of a block."""
    return "".join(f"    {line}\n" for line in text.strip().splitlines())


if __name__ == "__main__":
    main()
