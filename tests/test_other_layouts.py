"""Layouts and exports that segrow does not read: one line names each and says what to do."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import only_line

from segrow import cli
from segrow.data.given import open_given
from segrow.errors import UserError

GREY, CLEAR = np.zeros((6, 8), np.uint8), np.zeros((6, 8, 3), np.uint8)
LABELBOX = '{"data_row": {"id": "1"}, "projects": {}}\n'
V7 = {"version": "2.0", "item": {"name": "x"}, "annotations": []}
MIN = [{"image": "/data/upload/1/a.jpg", "id": 1, "tag": [{"format": "rle", "rle": [1]}]}]
CREATE_ML = [{"image": "0.jpg", "annotations": [{"label": "a", "coordinates": {"x": 1}}]}]


def build(root: Path, files: dict[str, str | bytes]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".jpg", ".png") and not text:
            Image.fromarray(GREY if path.suffix == ".png" else CLEAR).save(path)
        else:
            path.write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize(
    ("files", "named", "advice"),
    [
        ({"train/a.jpg": "", "train/a_mask.png": "", "train/_classes.csv": "Pixel Value, Class\n"},
         r"semantic masks of Roboflow \(_classes.csv\)", "without _mask"),
        ({"img_dir/train/a.jpg": "", "ann_dir/train/a.png": ""}, "MMSegmentation", "rename img_dir"),
        ({"images/a.jpg": "", "annotations/a.png": "", "labels.txt": "x\ny", "train.txt": "a b"},
         "PaddleSeg", "rename annotations to masks"),
        ({"train/a.jpg": "", "train_labels/a_L.png": "", "class_dict.csv": "name,r,g,b\na,1,2,3"},
         r"CamVid has them \(train, train_labels\)", "move images to images/train"),
        ({"val/a.jpg": "", "valannot/a.png": ""}, r"\(val, valannot\)", "list the classes in classes.txt"),
        ({"train/images/a.jpg": "", "train/masks/a.png": "", "classes.txt": "bg\na"},
         r"a folder per split \(train/images, train/masks\)", "move images to images/train"),
        ({"a.jpg": "", "a_mask.png": ""}, r"masks beside their images \(a_mask.png\)", "move images"),
        ({"a.jpg": "", "a.png": ""}, r"masks beside their images \(a.png\)", "move images"),
        ({"a.jpg": "", "e.ndjson": LABELBOX}, r"JSON lines, as Labelbox .*\(e.ndjson\)", "export masks"),
        ({"a.jpg": "", "output.manifest": "{}"}, "manifest of SageMaker", "save its masks"),
        ({"a.dcm": b"\0" * 128 + b"DICM"}, r"DICOM \(a.dcm\)", "as PNG"),
        ({"images/a.jpg": "", "l/a.geojson": "{}"}, "GeoJSON", "burn them into masks"),
        ({"images/a.jpg": "", "l/a.shp": "x"}, "shapefile", "burn them into masks"),
        ({"data-0.arrow": "x"}, "Arrow, as Hugging Face", "save their masks"),
        ({"images/a.jpg": "", "p.json": json.dumps(MIN)}, r"Label Studio's short JSON \(JSON-MIN\)", "COCO"),
        ({"a.jpg": "", "c.json": json.dumps(CREATE_ML)}, "CreateML's JSON: boxes", "annotate outlines"),
        ({f"annotations/{k}.json": json.dumps(V7) for k in "ab"}, r"V7's \(Darwin\) JSON", "as COCO"),
        ({f"{k}.jpg___objects.json": '{"metadata": {}, "instances": []}' for k in "ab"},
         "SuperAnnotate's JSON", "as COCO"),
    ],
)  # fmt: skip
def test_each_is_named_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, str | bytes], named: str, advice: str
) -> None:
    build(tmp_path, files)
    with pytest.raises(UserError, match=f"holds .*{named}.*; .*{advice}"):
        open_given(tmp_path, "--data")
    assert cli.main(["scenario", "--data.name", "folder", "--data.root", str(tmp_path), "--task", "1-1"]) == 2
    assert advice in only_line(capsys.readouterr().err)
