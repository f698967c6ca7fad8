"""Where the scripts put the sample data set, wherever they are called from."""

import pytest

import paths
import process_coco
import sample_coco
from paths import default_paths


@pytest.mark.parametrize(("main", "arguments"), [(process_coco.main, ["--sample"]), (sample_coco.main, [])])
def test_the_sample_data_set_lies_where_training_looks_for_it(tmp_path, monkeypatch, main, arguments):
    """Both wrote below the working directory; training and evaluation read below the repository."""
    monkeypatch.setattr(paths, "ROOT", tmp_path / "repository")
    monkeypatch.setattr(paths, "SAMPLE", tmp_path / "repository" / "data" / "sample")
    monkeypatch.setattr(sample_coco, "SIZES", {"train": 6, "val": 4, "test": 2, "unlabeled": 3})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    main(arguments)
    assert [path.name for path in tmp_path.iterdir() if any(path.iterdir())] == ["repository"]
    where = default_paths(sample=True)
    assert where["data"] == tmp_path / "repository" / "data" / "sample"
    assert len(list(where["train_images"].iterdir())) == 6
    assert where["tokenizer"].is_file() == (main is process_coco.main)


def test_coco_root_moves_coco_and_not_the_sample(tmp_path, monkeypatch):
    monkeypatch.setenv("COCO_ROOT", str(tmp_path))
    (tmp_path / "annotations").mkdir()
    with pytest.raises(process_coco.UsageError, match=f"^{tmp_path}/annotations/captions_"):
        process_coco.main(["--captions-only"])
    assert sample_coco.default_paths(sample=True)["data"] == paths.ROOT / "data" / "sample"
