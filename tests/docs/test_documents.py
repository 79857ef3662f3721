"""Check that the links, headings and files that the documents refer to exist, and that all versions agree."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
PARTS = ("cafe_core", "workers", "server", "tests", "deploy", "docs")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_resolve(document: Path) -> None:
    broken = []
    for target in _links(document):
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        if not file.exists() or (anchor and anchor not in _anchors(file)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_named_files_exist(document: Path) -> None:
    named = re.findall(rf"`((?:{'|'.join(PARTS)})/[\w./-]+)`", _without_code_blocks(document))
    made_later = "deploy/secrets/"  # by deploy/secrets.sh
    assert [path for path in named if not path.startswith(made_later) and not (ROOT / path).exists()] == []


def test_every_document_is_reachable_from_the_readme() -> None:
    reached, new = set(), [ROOT / "README.md"]
    while new:
        document = new.pop()
        reached.add(document)
        linked = {(document.parent / target.partition("#")[0]).resolve() for target in _links(document)}
        new += [path for path in DOCUMENTS if path in linked - reached]
    assert [path.name for path in DOCUMENTS if path not in reached] == []


def test_versions_agree() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    [kustomization] = yaml.safe_load_all((ROOT / "deploy" / "kubernetes" / "kustomization.yaml").read_text())
    assert re.findall(r'^VERSION = "(.+)"$', (ROOT / "server" / "app.py").read_text(), re.MULTILINE) == [version]
    assert re.findall(r"^ARG VERSION=(.+)$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE) == [version]
    assert re.findall(r"CAFE_VERSION:-(.+)}", (ROOT / "docker-compose.yml").read_text()) == [version]
    assert kustomization["images"][0]["newTag"] == version
    assert re.findall(r"^## \[(\d\S*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0] == version


def _links(document: Path) -> list[str]:
    """Return the targets of the document's relative links and images."""
    targets = re.findall(r"\]\(([^)\s]+)\)", _without_code_blocks(document))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def _anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub gives to the document's headings."""
    seen: dict[str, int] = {}
    anchors = set()
    for heading in re.findall(r"^#+ (.+)$", _without_code_blocks(document), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        count = seen.get(slug, 0)
        seen[slug] = count + 1
        anchors.add(f"{slug}-{count}" if count else slug)
    return anchors


def _without_code_blocks(document: Path) -> str:
    return re.sub(r"^ *```.*?^ *```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
