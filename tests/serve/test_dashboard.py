"""The dashboard in a browser: what a live server has lived through is on the page, as text."""

import re
import shutil

import pytest

from serve.dashboard import dom, server_with_a_story, status

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed (apt-get install chromium)"),
]


def points(polyline: str) -> list[list[float]]:
    return [[float(x) for x in point.split(",")] for point in polyline.split()]


def test_the_page_shows_robots_versions_curves_and_events(tmp_path):
    with server_with_a_story(tmp_path, moving="arm <i>7", quiet="desk_arm") as server:
        page, told = dom(server, tmp_path / "profile").split("<script>")[0], status(server)
    assert "2 robots connected, 2 embodiments" in page and "the server does not answer" not in page
    assert "<h2>arm &lt;i&gt;7</h2>" in page and "<h2>desk_arm</h2>" in page, "names are text, never markup"
    first, second = re.findall(r"<section>.*?</section>", page, re.DOTALL)
    body = told["arm <i>7"]
    kinds = [event["kind"] for event in body["events"]]
    assert set(kinds) >= {"given", "calibrated", "drift began", "accepted", "rejected", "rolled back"}
    shown = re.findall(r"<tr><td>[^<]*</td><td[^>]*>([^<]*)</td><td>(\d+)</td>", first)
    assert [kind for kind, _ in reversed(shown)] == kinds
    assert [int(version) for _, version in reversed(shown)] == [event["version"] for event in body["events"]]
    live = [loss["live"] for _, loss in body["losses"]]
    before = [loss["before"] for _, loss in body["losses"] if "before" in loss]
    lines = dict(re.findall(r'<polyline class="(\w+)" points="([^"]*)"', first.split("last alignment")[0]))
    assert len(points(lines["live"])) == len(live) and len(points(lines["before"])) == len(before) > 0
    heights = [y for _, y in points(lines["live"])]
    assert heights.index(min(heights)) == live.index(max(live)), "the highest loss is the highest point"
    assert 'class="usual"' in first and 'class="mark good"' in first and 'class="mark bad"' in first
    curve = next(event for event in reversed(body["events"]) if event["about"].get("curve"))["about"]["curve"]
    drawn = re.findall(r'<polyline class="live" points="([^"]*)"', first)[1]
    assert len(points(drawn)) == len(curve)
    assert re.findall(r"<option>(\d+)</option>", first) == ["1"] and "go back to version" in first
    assert "<option>" not in second and "align now" in second
    assert "NaN" not in page and "undefined" not in page
