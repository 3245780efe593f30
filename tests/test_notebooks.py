"""Notebooks are executed from the first cell to the last, and shown what they say they show.

On real photos where RETAILRAY_REAL_DATA is set, else on generated pictures.
"""

from pathlib import Path

import nbclient
import nbformat
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
# how many pictures a notebook shows, and texts that its outputs hold
SHOWN = {
    "1_explore_a_catalog": (1, ["advice", "error_code", "data:text/html;base64"]),
    "2_fine_tune_and_read_mistakes": (3, ["validation_loss", "95 % interval", "pred_label"]),
    "3_search_freeze_depth_and_learning_rates": (1, ["model.trainable", "/bundle", "head_lr"]),
    "4_a_nightly_run_and_its_review": (1, ["review", "item_id", "somebody knows"]),
    "5_products_shoppers_and_sales": (0, ["pred_label", "bought_with", "data:text/html;base64", "segment"]),
}
ON_RAY = "3_search_freeze_depth_and_learning_rates"


def test_every_notebook_is_here():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(SHOWN)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.ray] if name == ON_RAY else []) for name in SHOWN]
)
def test_notebook_runs_and_shows_what_it_says(name):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "commit notebooks without outputs"
    nbclient.NotebookClient(notebook, timeout=500, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures, texts = SHOWN[name]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == pictures
    said = "\n".join(str(part) for output in outputs for part in (output.get("data", {}), output.get("text", "")))
    assert not [text for text in texts if text not in said]
    assert '"event":' not in said, "commands are quiet in a notebook"
    assert not [output for output in outputs if output.get("name") == "stderr" and "Traceback" in output["text"]]
