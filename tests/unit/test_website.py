"""The documentation's site: every page is in the menu, and a dead link is found."""

from pathlib import Path

from website import links, nav
from website.pages import Pages


def test_the_menu_has_every_page() -> None:
    titles = [section.title for section in nav.sections()]
    assert titles[0] == "Start"
    assert "Reference" in titles


def test_dead_links_are_found(tmp_path: Path) -> None:
    page, other = tmp_path / "index.html", tmp_path / "other" / "index.html"
    other.parent.mkdir()
    other.write_text('<h1 id="here">Other</h1><a href="../">back</a>')
    page.write_text(
        '<a href="other/">a page</a><a href="other/#here">a place</a><a href="#top">top</a>'
        '<a href="https://www.example.com/nowhere">not ours</a><i id="top"></i>'
        '<a href="gone/">gone</a><a href="other/#gone">no such place</a><img src="gone.png">'
    )
    assert sorted(links.dead(tmp_path)) == [
        "index.html links to gone.png, which is not there",
        "index.html links to gone/, which is not there",
        "index.html links to other/#gone, which has no such place",
    ]


def test_links_out_of_docs_lead_to_pages_of_the_site(tmp_path: Path) -> None:
    pages = Pages(tmp_path / "pages")
    text = (
        "[log](../CHANGELOG.md#unreleased) [code](../python/virtnic/memory.py) [site](https://x.y/)"
    )
    linked = pages._linked(text, nav.DOCS / "check.md", tmp_path / "pages" / "check.md")
    assert linked == (
        "[log](CHANGELOG.md#unreleased) [code](source/python/virtnic/memory.py.md) "
        "[site](https://x.y/)"
    )


def test_what_is_no_page_is_shown_as_a_source(tmp_path: Path) -> None:
    """Files and folders beside the pages as well."""
    pages = Pages(tmp_path / "pages")
    text = "[one](containers/kubernetes.yaml) [all](containers) [page](check.md)"
    assert pages._linked(text, nav.DOCS / "ovs-ci.md", tmp_path / "pages" / "ovs-ci.md") == (
        "[one](source/docs/containers/kubernetes.yaml.md) [all](source/docs/containers.md) "
        "[page](check.md)"
    )
