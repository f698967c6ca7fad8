"""What there is to read: every link within the repository leads to a file, and to a heading in it."""

import json
import re
from pathlib import Path

import pytest

from tests.training_cases import ROOT

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)[^)]*\)")
DOCUMENTS = (
    "README.md", "CONTRIBUTING.md", "LOG.md", "benchmarks/README.md", "code_snippets.ipynb", "results.ipynb",
    "weights/README.md", "weights/examples/README.md",
    "model_cards/captioner.md", "model_cards/encoder.md", "model_cards/onnx.md",
    "docs/many_gpus.md", "docs/own_data.md", "docs/recipes.md", "docs/reliability.md",
)  # fmt: skip


def markdown(path: Path) -> str:
    """A document's text, without its code blocks."""
    text = path.read_text()
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"^(    |\t).*$", "", text, flags=re.MULTILINE)


def anchors(text: str) -> set[str]:
    """Of a document's headings, as GitHub makes them: lower case, blanks to hyphens, no punctuation."""
    headings = re.findall(r"^#+ +(.+?) *#*$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(document: Path) -> list[str]:
    """The links of a document that lead nowhere."""
    text, found = markdown(document), []
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = document.parent / place if place else document
        if not target.exists() or (anchor and anchor not in anchors(markdown(target))):
            found.append(link)
    return found


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_within_the_repository_leads_somewhere(name):
    assert broken(ROOT / name) == []


def test_all_documents_with_links_are_looked_at():
    documents = {*ROOT.glob("*.md"), *ROOT.glob("[a-z]*/*.md")}
    assert documents <= {ROOT / name for name in DOCUMENTS}
    assert len(LINK.findall(markdown(ROOT / "README.md"))) > 10


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    (tmp_path / "other.md").write_text("# What `a_b` is, & why\n")
    lines = (
        "## Here, too", "[a](other.md) [b](#here-too) [c](other.md#what-a_b-is--why) ![d](other.md)",
        "[e](https://nowhere.example/x) [f](gone.md) ![g](gone.png) [h](#gone) [i](other.md#gone)",
        "    [j](in_code.md)", "```", "[k](in_code.md)", "```",
    )  # fmt: skip
    (tmp_path / "page.md").write_text("\n".join(lines))
    assert broken(tmp_path / "page.md") == ["gone.md", "gone.png", "#gone", "other.md#gone"]
