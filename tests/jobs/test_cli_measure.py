"""``virtnic measure``: its tables, JSON and pages, with testpmd between two ports."""

import os
import re
import shutil
import signal
import struct
import subprocess
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from peers.testpmd import Testpmd
from support.program import running, virtnic, virtnic_json

pytestmark = pytest.mark.needs("qemu", "testpmd")
SMALL = ("--memory", "16M", "--warmup", "0.1")


@pytest.fixture
def ends(testpmd: Callable[..., Testpmd], qemu_command: str) -> tuple[str, ...]:
    """The options of two ports with testpmd between."""
    backend = testpmd(mode="io", ports=2)
    tx, rx = (f"vhost-user,path={path}" for path in backend.sockets)
    return ("--tx", tx, "--rx", rx)


@pytest.fixture
def folder(scratch: Path) -> Iterator[Path]:
    """A directory for reports."""
    path = scratch / "reports"
    path.mkdir()
    yield path
    shutil.rmtree(path)


def checked_page(file: Path) -> ET.Element:
    """Return a report as XML; it refers to nothing outside, and a browser shows it."""
    text = file.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>\n<html")
    tree = ET.fromstring(text.partition("\n")[2])
    outside = {
        f"{element.tag} {name}={value}"
        for element in tree.iter()
        for name, value in element.attrib.items()
        if re.search(r"^(src|href|data|xlink:href)$|https?:|url\(", f"{name}") or "//" in value
    }
    assert outside == set()
    assert not re.search(r"@import|url\(|<script|<link|<img", text)
    for plot in tree.iter("{http://www.w3.org/2000/svg}svg"):
        assert any(line.get("points") for line in plot.iter("{http://www.w3.org/2000/svg}polyline"))
        assert "nan" not in ET.tostring(plot, encoding="unicode").lower()
    browser = shutil.which("chromium")
    if browser is not None:
        look(browser, file)
    return tree


def look(browser: str, file: Path) -> None:
    """Have a browser show a page: it reports no error, and the picture is not blank."""
    picture = file.with_suffix(".png")
    # It leaves files in all of these.
    homes = dict.fromkeys(("HOME", "TMPDIR", "XDG_RUNTIME_DIR"), str(file.parent))
    shown = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *(f"--user-data-dir={file.parent / 'browser'}", "--enable-logging=stderr"),
            *("--window-size=900,1400", f"--screenshot={picture}", file.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=os.environ | homes,
    )
    assert "CONSOLE" not in shown.stderr, shown.stderr
    data, at, packed = picture.read_bytes(), 8, b""
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        if data[at + 4 : at + 8] == b"IDAT":
            packed += data[at + 8 : at + 8 + length]
        at += 12 + length
    pixels = zlib.decompress(packed)
    assert len({pixels[at : at + 4] for at in range(0, len(pixels), 4)}) > 200


def test_latency_prints_percentiles_json_and_a_page(ends: tuple[str, ...], folder: Path) -> None:
    file = folder / "latency.html"
    words = ("measure", "latency", *ends, *SMALL, "--sizes", "64,imix", "--rate", "5kpps")
    found = virtnic_json(*words, "--flows", "10", "--seconds", "0.5", "--html", str(file))
    assert (found["kind"], found["interrupted"]) == ("latency", False)
    assert [each["label"] for each in found["results"]] == ["64", "imix"]
    for each in found["results"]:
        result = each["result"]
        assert result["received"] + result["lost"] == result["signed"] > 0
        assert result["latency"]["count"] == result["received"]
        assert len(result["streams"][0]["flows"]) == 10
    tree = checked_page(file)
    assert len([*tree.iter("{http://www.w3.org/2000/svg}svg")]) == 3
    printed = virtnic(*words, "--seconds", "0.2").stdout.splitlines()
    assert printed[0].startswith("MEASURE latency from vhost-user")
    heads = ["size", "received", "lost", "p50", "p99", "p99.9", "p99.99", "max"]
    assert printed[1].split() == heads
    assert {line.split()[0] for line in printed[2:] if not line.startswith(" ")} == {"64", "imix"}


def test_throughput_is_searched_for_each_size(ends: tuple[str, ...], folder: Path) -> None:
    file = folder / "throughput.html"
    found = virtnic_json(
        *("measure", "throughput", *ends, *SMALL, "--sizes", "64,512", "--loss", "5"),
        *("--method", "bisection", "--seconds", "0.05", "--html", str(file)),
    )
    assert [each["size"] for each in found["throughput"]] == [64, 512]
    for each in found["throughput"]:
        assert each["method"] == "bisection"
        assert len(each["trials"]) >= 2
        assert each["limit"] is None or each["limit"] >= each["pps"]
    checked_page(file)


def test_loss_goes_down_to_a_rate_that_loses_nothing(ends: tuple[str, ...], folder: Path) -> None:
    file = folder / "loss.html"
    found = virtnic_json(
        *("measure", "loss", *ends, *SMALL, "--sizes", "64", "--seconds", "0.1"),
        *("--html", str(file)),
    )
    losses = [each["result"]["lost"] for each in found["results"]]
    assert 2 <= len(losses) <= 10
    assert len(losses) == 10 or losses[-2:] == [0, 0]
    checked_page(file)


def test_soak_runs_until_ctrl_c_and_tells_of_lost_frames(
    testpmd: Callable[..., Testpmd], qemu_command: str
) -> None:
    backend = testpmd(mode="macswap")
    tx = f"vhost-user,path={backend.sockets[0]}"
    words = ("measure", "soak", "--tx", tx, *SMALL, "--rate", "1kpps", "--interval", "0.1")
    with running(*words) as process:
        assert process.stdout is not None
        while "sent" not in process.stdout.readline():
            pass
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == (1 if re.search(r"^imix +\d+ +[1-9]", out, re.MULTILINE) else 0)
    assert "Traceback" not in err
    assert "imix" in out

    backend.command("set fwd rxonly")
    backend.command("stop")
    backend.command("start")
    said = virtnic(*words, "--seconds", "0.3", status=1).stdout
    assert re.search(r"^imix +0 +[1-9]\d* ", said, re.MULTILINE)
    # Where nothing arrives there is no latency, and none to go on with.
    again = ("measure", "latency", "--tx", tx, *SMALL, "--sizes", "64", "--seconds", "0.3")
    said = virtnic(*again, status=1).stdout
    assert re.search(r"^64 +0 +[1-9]\d*( +-){5}$", said, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["throughput"], "--tx is required"),
        (["speed", "--tx", "user"], "throughput"),
        (["latency", "--tx", "user", "--sizes", "12"], "64 bytes or more"),
        (["latency", "--tx", "user", "--rate", "fast"], "rate"),
        (["throughput", "--tx", "user", "--loss", "100"], "percentage"),
        (["soak", "--tx", "user", "--sizes", "64,512"], "soak is one run"),
        (
            ["latency", "--tx", "user", "--html", "/nowhere/at/all.html", "--seconds", "0"],
            "/nowhere",
        ),
    ],
)
def test_what_cannot_be_is_said(words: list[str], said: str) -> None:
    status = 3 if "--html" in words else 2
    assert said in virtnic("measure", *words, status=status).stderr
